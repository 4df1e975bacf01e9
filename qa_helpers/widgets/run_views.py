"""What the dashboard shows of runs, as plain data, figures and HTML: scores, two runs compared, wrong answers.

What it simplifies: at most `MOST_RUNS` runs at a time, a colour and line style each; tables of wrong answers end after
`MOST_ROWS` rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.metrics import load_card
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.scores import METRICS, Scores
from qa_helpers.report.plots import COLOURS
from qa_helpers.report.tables import METRIC_NAMES, compare
from qa_helpers.widgets.look import paragraph, table

MOST_RUNS = len(COLOURS)
MOST_ROWS = 30
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))  # beside the colour: for who cannot tell colours apart
MARKERS = "osD^v*"


# ---- what is known of runs -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WrongAnswer:
    """A question that a run did not answer exactly; None where the course does not hold the data."""

    id: str
    article: str | None
    question: str | None
    prediction: str
    answers: tuple[str, ...] | None
    confidence: float  # 0 to 1
    category: str  # of `metrics.CATEGORIES`


def wrong_answers(
    run: Run, evaluation: str, category: str | None = None, article: str | None = None
) -> list[WrongAnswer]:
    """What a run got wrong (EM) on an evaluation set, the surest first; of one category or article, if one is given."""
    asked, titles, known = run.questions, articles(run), _rows(run.experiment.data)
    wrong = []
    for number in run.indices[evaluation]:
        if asked.exact_match[number]:
            continue
        row = known.get(asked.id[number])
        answer = WrongAnswer(
            id=asked.id[number],
            article=titles[number] if titles else None,
            question=row["question"] if row else None,
            prediction=asked.prediction[number],
            answers=tuple(dict.fromkeys(row["answers"]["text"])) if row else None,
            confidence=asked.confidence[number],
            category=asked.category[number],
        )
        if category in (None, answer.category) and article in (None, answer.article):
            wrong.append(answer)
    return sorted(wrong, key=lambda answer: -answer.confidence)


def articles(run: Run) -> list[str] | None:
    """The article of each of a run's questions, in its record's order; None where the course does not know them.

    CourseQA's are in its rows, SQuAD's on its card, by the questions' places in the validation set.
    """
    if run.experiment.data == "courseqa":
        known = _rows("courseqa")
        return [known[id]["title"] for id in run.questions.id] if set(run.questions.id) <= set(known) else None
    if run.experiment.data != "squad":
        return None
    titles = load_card("squad").titles
    try:
        numbers = sorted({i for asked in run.experiment.evaluations.values() for i in asked.indices(len(titles))})
    except RecordError:  # more questions than SQuAD has: other data of that name
        return None
    return [titles[number] for number in numbers] if len(numbers) == len(run.questions.id) else None


@lru_cache
def _rows(data: str) -> dict[str, Any]:
    """The validation questions by id, of the data set that comes with the course; none of others."""
    return {row["id"]: row for row in load_qa("courseqa", "validation")} if data == "courseqa" else {}


# ---- figures and tables ----------------------------------------------------------------------------------------
def overview(runs: Mapping[str, Run], evaluation: str, metric: str = "exact_match") -> Figure:
    """Training loss, EM after every epoch, and final scores with intervals: a panel each, a colour and line a run."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    losses, epochs, scores = (figure.add_subplot(2, 2, panel) for panel in (1, 2, (3, 4)))
    losses.set(title="training loss", xlabel="optimizer step", ylabel="loss (nats)")
    epochs.set(title="EM after each epoch", xlabel="epoch", ylabel="EM (%), a few questions")
    name = METRIC_NAMES[metric]
    scores.set(title=f"{name} on '{evaluation}', with 95 % intervals", xlabel=f"{name} (%)")
    for row, (run, colour, line, marker) in enumerate(zip(runs.values(), COLOURS, LINES, MARKERS, strict=False)):
        if run.losses:
            losses.plot(*zip(*run.losses, strict=True), color=colour, linestyle=line)
        if run.epochs:
            points = [(epoch.epoch, epoch.eval.exact_match) for epoch in run.epochs]
            epochs.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker)
        if evaluation in run.scores:
            score = getattr(run.scores[evaluation], metric)
            scores.plot([score.low, score.high], [row, row], color=colour, linestyle=line, linewidth=2)
            scores.plot(score.value, row, marker, color=colour)
    scores.set_yticks(range(len(runs)), list(runs))
    scores.set_ylim(len(runs) - 0.5, -0.5)
    for axes in (losses, epochs):
        axes.set_ylim(bottom=0)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded for these runs", ha="center", transform=axes.transAxes)
    for axes in (losses, epochs, scores):
        axes.title.set_fontsize("medium")
        axes.spines[["top", "right"]].set_visible(False)
    epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def overview_in_words(runs: Mapping[str, Run], evaluation: str, metric: str = "exact_match") -> str:
    """What the overview shows, for who does not see it."""
    parts = []
    for name, run in runs.items():
        loss = f"last training loss {run.losses[-1][1]:.2f}" if run.losses else "no training"
        score = f"{METRIC_NAMES[metric]} {getattr(run.scores[evaluation], metric)}" if evaluation in run.scores else ""
        parts.append(", ".join(filter(None, [f"{name}: {loss}", score])))
    return f"Losses and scores of {len(runs)} runs on '{evaluation}'. " + "; ".join(parts) + "."


def scores_html(runs: Mapping[str, Run], evaluation: str) -> str:
    """A table of the runs' scores with their intervals."""
    rows = []
    for name, run in runs.items():
        scores: Scores | None = run.scores.get(evaluation)
        cells = [str(getattr(scores, metric)) for metric in METRICS] if scores else ["–"] * len(METRICS)
        rows.append([name, scores.questions if scores else "not asked", *cells])
    header = ["run", "questions", *(METRIC_NAMES[metric] for metric in METRICS)]
    return table(f"Scores on '{evaluation}' (%), with 95 % intervals", header, rows)


def comparison_html(first: Run, second: Run, metric: str = "exact_match") -> str:
    """Two runs compared, in a sentence and a table of four fields."""
    compared = compare(first, second, dict.fromkeys(("exact_match", metric))).set_index("metric")
    difference, questions = compared.loc[METRIC_NAMES[metric], ["difference", "questions"]]
    low, high = difference.low, difference.high
    verdict = (
        "cannot be told apart" if low <= 0 <= high else f"differ: the second is {'better' if low > 0 else 'worse'}"
    )
    words = (
        f"{METRIC_NAMES[metric]} of the second less the first, on {questions:,} shared questions: "
        f"{difference.value:+.1f} points [{low:+.1f}, {high:+.1f}]: by this interval the two {verdict}. "
        f"McNemar's exact test of EM: p = {compared.loc['EM', 'p']:.2g}."
    )
    return paragraph(words) + _four_fields(first, second)


def _four_fields(first: Run, second: Run) -> str:
    """How often each of two runs was right: a table of four fields."""
    right, also_right = (column.astype(bool) for column in paired_columns(first, second))
    rows = [
        (label, int((of_first & also_right).sum()), int((of_first & ~also_right).sum()))
        for label, of_first in ((f"first right ({first.experiment.name})", right), ("first wrong", ~right))
    ]
    header = ("questions", f"second right ({second.experiment.name})", "second wrong")
    return table("Who was right (EM)", header, rows)


def wrong_html(wrong: Sequence[WrongAnswer], name: str) -> str:
    """The first of these wrong answers, and how many there are."""
    rows = [
        (
            answer.article or "–",
            answer.question or answer.id,
            answer.prediction,
            " / ".join(answer.answers) if answer.answers else "–",
            100 * answer.confidence,
            answer.category,
        )
        for answer in wrong[:MOST_ROWS]
    ]
    more = f", the surest {MOST_ROWS} of them" if len(wrong) > MOST_ROWS else ", the surest first"
    header = ("article", "question", "prediction", "given answers", "confidence (%)", "category")
    return table(f"{len(wrong):,} wrong answers of {name}{more if wrong else ''}", header, rows)
