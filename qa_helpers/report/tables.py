"""What a notebook shows for reading: recorded runs as tables, which are data frames, and a passage with its answer."""

import html
import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from qa_helpers.evaluation.comparisons import mcnemar, paired_difference
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.scores import METRICS
from qa_helpers.experiment.spec import Combination, training_in_words

MARK = "#E69F00"  # Okabe and Ito's orange
METRIC_NAMES = {"string_equality": "string equality", "exact_match": "EM", "f1": "F1", "contained": "contained"}
# What stands to the right: a number, a range, a share, an interval, and the dash that stands for what is missing.
_NUMBER = re.compile(r"[-+]?[\d.,]*(e-?\d+)?( (to|of) [\d.,]+)?( ?\[.*\])?|–")


# ---- how a table is shown --------------------------------------------------------------------------------------
class Table(pd.DataFrame):
    """A data frame that a notebook shows for reading: all of it, texts to the left and numbers to the right.

    Floats have one decimal, those of a column `p` two digits; what is missing is a dash. The index is shown unless it
    only counts lines. What pandas selects of a table is one, too; `Table(frame)` makes one of any frame.
    """

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    def texts(self) -> pd.DataFrame:
        """The cells as they are shown, the index in front."""
        counts_lines = self.index.name is None and pd.api.types.is_integer_dtype(self.index)
        shown = self if counts_lines else self.reset_index()
        columns = [[_text(value, ".2g" if name == "p" else ".1f") for value in cells] for name, cells in shown.items()]
        return pd.DataFrame(dict(enumerate(columns)), dtype=object).set_axis(shown.columns.map(str), axis=1)

    def __repr__(self) -> str:
        """The table as plain text."""
        text: str = self.texts().to_string(index=False)
        return text

    def _repr_html_(self) -> str:
        texts = self.texts()
        sides = ["right" if all(map(_NUMBER.fullmatch, cells)) else "left" for _, cells in texts.items()]
        head = _html_line('th scope="col"', texts.columns, sides)
        body = [_html_line("td", cells, sides) for cells in texts.to_numpy()]
        # Without these classes a page takes what lies between two dollars for a formula.
        start = f'<table class="tex2jax_ignore mathjax_ignore"><thead>\n{head}\n</thead><tbody>'
        return "\n".join([start, *body, "</tbody></table>"])


def _text(value: object, form: str) -> str:
    if value is None or value != value:  # NaN is the one value that is not itself
        return "–"
    return format(value, form) if isinstance(value, float | np.floating) else str(value)


def _html_line(tag: str, cells: Iterable[str], sides: Iterable[str]) -> str:
    styles = {"left": "text-align: left", "right": "text-align: right; white-space: nowrap"}
    parts = zip(cells, sides, strict=True)
    row = "".join(f'<{tag} style="{styles[side]}">{html.escape(cell)}</{tag[:2]}>' for cell, side in parts)
    return f"<tr>{row}</tr>"


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, for documents."""
    texts = Table(table).texts()
    lines = [texts.columns, ["---"] * len(texts.columns), *texts.to_numpy()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def highlight(context: str, start: int, end: int) -> Any:
    """The passage as HTML with the characters `start` to `end` (exclusive) marked."""
    from IPython.display import HTML

    before, marked, after = (html.escape(part) for part in (context[:start], context[start:end], context[end:]))
    mark = f'<mark style="background:{MARK};color:black;padding:0 2px">{marked}</mark>'
    return HTML(f'<p style="max-width:46em;line-height:1.5">{before}{mark}{after}</p>')


# ---- what is known of runs -------------------------------------------------------------------------------------
def scores(runs: Iterable[Run] | Mapping[str, Run]) -> Table:
    """A line a run and evaluation set, with its questions and a column a metric, in percent.

    A score is shown with its interval; `float` of it is its value: `scores(runs).astype({"EM": float})`.

    Args:
        runs: a mapping's keys are shown instead of the runs' own names.
    """
    named = runs.items() if isinstance(runs, Mapping) else ((run.experiment.name, run) for run in runs)
    about = ["run", "trained on", "seed", "asked", "questions"]
    lines = [
        [name, training_in_words(run.experiment), _seed(run), asked, of_set.questions]
        + [getattr(of_set, metric) for metric in METRICS]
        for name, run in named
        for asked, of_set in run.scores.items()
    ]
    table = Table(lines, columns=about + [METRIC_NAMES[metric] for metric in METRICS], dtype=object)
    table["questions"] = table["questions"].astype(int)  # not the seeds: beside a run without one they became decimal
    return table


def _seed(run: Run) -> int | None:
    return None if isinstance(run.experiment, Combination) else run.experiment.seed


def compare(first: Run, second: Run, metrics: Iterable[str] = METRICS, asked: Iterable[str] = ()) -> Table:
    """Two runs question by question: a line an evaluation set and metric, the second less the first.

    Means are in percent, the difference in points. On so many questions the first or the second run is the better
    one; `p` is that both are equally often (sign test; of right and wrong, McNemar's).

    Args:
        first, second: the runs.
        metrics: of `METRICS`.
        asked: evaluation sets of the first run; all questions that both were asked if none is named.

    Raises:
        RecordError: as `paired_columns` does.
    """
    lines = []
    sets: list[str | None] = [*asked] or [None]
    for name, metric in product(sets, metrics):
        mine, theirs = (100 * np.asarray(column, float) for column in paired_columns(first, second, metric, name))
        better = mine > theirs, mine < theirs
        lines.append(
            {
                "asked": name or "all shared",
                "questions": len(mine),
                "metric": METRIC_NAMES[metric],
                "first": mine.mean(),
                "second": theirs.mean(),
                "difference": paired_difference(mine, theirs, bounds=PERCENT_BOUNDS),
                "first better": better[0].sum(),
                "second better": better[1].sum(),
                "p": mcnemar(*better),
            }
        )
    return Table(lines)
