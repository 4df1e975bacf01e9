"""Tables of recorded runs, in Markdown."""

import re
import statistics
from collections.abc import Iterable, Sequence

from qa_helpers.experiment.record import Run, training_in_words

RECIPE_COLUMNS = (  # heading, evaluation set, metric
    ("EM, first 500", "first-500", "exact_match"),
    ("EM, 500 random", "random-500", "exact_match"),
    ("EM, all", "all", "exact_match"),
    ("F1, all", "all", "f1"),
)


def format_recipes(runs: Iterable[Run]) -> str:
    """A Markdown table with a line a recipe (runs that differ in their seeds alone): means over seeds, in percent."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(re.sub(r"-seed\d+$", "", run.experiment.name), []).append(run)
    headings = ["recipe", "trained on", "seeds", *(heading for heading, _, _ in RECIPE_COLUMNS)]
    rows = [_recipe_row(name, seeds) for name, seeds in by_recipe.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, ["---"] * len(headings), *rows])


def _recipe_row(name: str, seeds: Sequence[Run]) -> list[str]:
    trained = re.sub(r"(start from: [\w-]+)-seed\d+", r"\1", training_in_words(seeds[0].experiment))
    means = []
    for _, asked, metric in RECIPE_COLUMNS:
        values = [getattr(run.scores[asked], metric).value for run in seeds if asked in run.scores]
        means.append(f"{statistics.mean(values):.1f}" if len(values) == len(seeds) else "–")
    return [name, trained, str(len(seeds)), *means]
