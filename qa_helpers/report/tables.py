"""Tables of recorded runs, in Markdown."""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from qa_helpers.common.io import write_atomically
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, Timing
from qa_helpers.experiment.spec import Training, training_in_words

LOST_TEXT = (
    "made with tokenizers 0.23.2, which loses text: of some long passages, the end was never read. Against runs "
    "without a mark these are compared without the questions on such passages."
)
REPORT_MARKS = ("<!-- report -->", "<!-- /report -->")


def format_report(runs: Iterable[Run]) -> str:
    """A Markdown table of runs, a line an evaluation set: scores in percent with 95 % intervals."""
    lines = [
        "| run | trained on | questions asked | string equality | EM | F1 | training | device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    runs = list(runs)
    for run in runs:
        experiment, timing = run.experiment, run.timing
        for name, scores in run.scores.items():
            cells = [
                experiment.name,
                training_in_words(experiment),
                f"{name} ({scores.questions:,})",
                *(str(getattr(scores, metric)) for metric in ("string_equality", "exact_match", "f1")),
                _speed_in_words(timing) if isinstance(experiment, Training) else "–",
                f"{run.machine.where}, {run.machine.precision}" + (" \\*" if run.defects else ""),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if any(run.defects for run in runs):
        lines += ["", f"\\* {LOST_TEXT}"]
    return "\n".join(lines)


def _speed_in_words(timing: Timing) -> str:
    if timing.resumed:
        return "resumed, not timed"
    speed = timing.train_questions_per_second
    return f"{timing.train_seconds:.0f} s, {speed:.{0 if speed >= 1 else 1}f} questions/s"


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


# ---- means over seeds ------------------------------------------------------------------------------------------
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
