"""What the README and the documents hold of recorded runs: tables in Markdown, and a picture."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from qa_helpers.common.io import write_atomically
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, Timing
from qa_helpers.experiment.spec import Training
from qa_helpers.report import plots
from qa_helpers.report.tables import markdown, scores

LOST_TEXT = (
    "made with tokenizers 0.23.2, which loses text: of some long passages, the end was never read. Against runs "
    "without a mark these are compared without the questions on such passages."
)
RECIPE_COLUMNS = (  # heading, evaluation set, metric
    ("EM, first 500", "first-500", "EM"),
    ("EM, 500 random", "random-500", "EM"),
    ("EM, all", "all", "EM"),
    ("F1, all", "all", "F1"),
)
REPORT_MARKS = ("<!-- report -->", "<!-- /report -->")
_SEED = re.compile(r"-seed\d+$")


def format_report(runs: Iterable[Run]) -> str:
    """A Markdown table of runs, a line an evaluation set: scores in percent with 95 % intervals."""
    runs = list(runs)
    table = pd.concat([scores([run]).assign(**_circumstances(run)) for run in runs])
    table["questions asked"] = table["asked"] + table["questions"].map(" ({:,})".format)
    columns = ["run", "trained on", "questions asked", "string equality", "EM", "F1", "training", "device"]
    report = markdown(table[columns])
    return f"{report}\n\n\\* {LOST_TEXT}" if any(run.defects for run in runs) else report


def _circumstances(run: Run) -> dict[str, str]:
    where = f"{run.machine.where}, {run.machine.precision}" + (" \\*" if run.defects else "")
    return {"training": _speed_in_words(run.timing) if isinstance(run.experiment, Training) else "–", "device": where}


def _speed_in_words(timing: Timing) -> str:
    if timing.resumed:
        return "resumed, not timed"
    speed = timing.train_questions_per_second
    return f"{timing.train_seconds:.0f} s, {speed:.{0 if speed >= 1 else 1}f} questions/s"


def format_recipes(runs: Iterable[Run]) -> str:
    """A Markdown table with a line a recipe (runs that differ in their seeds alone): means over seeds, in percent."""
    table = scores(runs).astype({"EM": float, "F1": float})
    table["recipe"] = table["run"].str.replace(_SEED, "", regex=True)
    table["trained on"] = table["trained on"].str.replace(r"(start from: [\w-]+)-seed\d+", r"\1", regex=True)
    recipes = table.groupby("recipe", sort=False).agg({"trained on": "first", "run": "nunique"})
    recipes = recipes.rename(columns={"run": "seeds"})
    for heading, asked, metric in RECIPE_COLUMNS:
        of_seeds = table[table["asked"] == asked].groupby("recipe")[metric]
        recipes[heading] = of_seeds.mean().where(of_seeds.count().eq(recipes["seeds"]))
    return markdown(recipes)


def replace_report(path: Path | str, report: str) -> None:
    """Put a report between a text file's marks `<!-- report -->` and `<!-- /report -->`.

    Raises:
        RecordError: if the file lacks the marks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecordError(f"{path}: cannot be read as text ({type(problem).__name__})") from None
    begin, end = REPORT_MARKS
    if not 0 <= text.find(begin) < text.find(end):
        raise RecordError(f"{path}: has no line '{begin}' followed by a line '{end}' to put the table between")
    before, rest = text.split(begin, 1)
    write_atomically(path, f"{before}{begin}\n{report}\n{end}{rest.split(end, 1)[1]}")


def save_report_picture(runs: Iterable[Run], path: Path | str) -> None:
    """The README's picture: EM of recorded trainings by the questions that were asked, as a PNG file.

    Raises:
        CourseError: if the name is not a PNG file's, or it cannot be written; then a former picture is as it was.
    """
    if Path(path).suffix != ".png":
        raise RecordError(f"{path}: the picture is a PNG file; give it a name that ends in .png")
    trained = [(run, run.experiment) for run in runs if isinstance(run.experiment, Training)]
    shown = {
        f"{label} ({run.scores[asked].questions:,}), seed {experiment.seed}": run.scores[asked].exact_match
        for asked, label in (("first-500", "validation[:500]"), ("random-500", "random draw"), ("all", "all"))
        for run, experiment in trained
        if asked in run.scores
    }
    names = {f"{plan.model}, {plan.train_size} questions of {plan.data}" for _, plan in trained}
    title = f"{' / '.join(sorted(names))}: EM depends on the questions asked"
    plots.intervals(shown, title, "EM (%)")
    image = io.BytesIO()
    plt.savefig(image, format="png", dpi=110, metadata={"Software": None})  # no version: the same run, the same bytes
    plt.close()
    write_atomically(path, image.getvalue())
