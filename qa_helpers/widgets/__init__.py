"""What a reader plays with in a notebook: ranking answers, asking models, comparing runs, training.

Each widget shows what plain functions have worked out, can be used with the keyboard alone, and has a static form,
`to_html()`, which is what a notebook keeps of it: GitHub, an exported page and the notebook's test see that.

| module | what it shows |
| --- | --- |
| `look` | what all share: styles for light and dark pages, marked passages, tables, figures |
| `ranking` | two answers to a question: which one is better? |
| `playground` | one or two models, asked anything |
| `run_views`, `dashboard` | runs: losses, scores, comparisons, wrong answers |
| `trainer` | an experiment that is trained while the notebook stays usable |
"""
