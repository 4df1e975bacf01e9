"""The course's figures: each shows one thing, says in its title what to see, and names the units on its axes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qa_helpers.common.io import write_atomically
from qa_helpers.data.windows import Window
from qa_helpers.evaluation.statistics import Calibration
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import Training
from qa_helpers.report.learning_curve import PowerLaw

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)


def _figure(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes; a notebook keeps what it shows in words, too."""
    made: tuple[Figure, Any] = plt.subplots(*shape, layout="constrained", **options)
    _keep_words()
    return made


def in_words(figure: Figure) -> str:
    """A figure's title and what is on its axes: the text for who does not see it."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        labels = " against ".join(filter(None, [axes.get_ylabel(), axes.get_xlabel()]))
        parts.append(": ".join(filter(None, [axes.get_title(), labels])))
    return "; ".join(filter(None, parts))


def _keep_words() -> None:
    """Once a kernel: have the images of figures carry them in words, as an HTML copy of the notebook shows them."""
    from IPython import get_ipython

    shell = get_ipython()
    formatter = shell.display_formatter.formatters["image/png"] if shell else None
    if formatter is None or Figure not in formatter:
        return  # no notebook
    draw = formatter.lookup_by_type(Figure)
    if hasattr(draw, "keeps_words"):
        return

    def draw_and_say(figure: Figure) -> Any:
        drawn = draw(figure)
        image, more = drawn if isinstance(drawn, tuple) else (drawn, {})
        return (image, {**more, "alt": in_words(figure)}) if image else None

    draw_and_say.keeps_words = True  # type: ignore[attr-defined]
    formatter.for_type(Figure, draw_and_say)


def _axes(title: str, x: str, y: str, ax: Axes | None = None, size: tuple[float, float] = (7, 3.2)) -> Axes:
    if ax is None:
        figure, ax = _figure(figsize=size)
        figure.suptitle(title, fontsize="medium")  # over the whole width: beside long labels an axes' own is cut
    else:
        ax.set_title(title, fontsize="medium")
    ax.set(xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _legend(ax: Axes, beside: bool = True, **options: Any) -> None:
    """Each name once, beside the axes or within them."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    where = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
    ax.legend(handles.values(), handles.keys(), frameon=False, **(where | options))


def losses(runs: Mapping[str, Run], title: str, ax: Axes | None = None) -> Axes:
    """Training loss by optimizer step, a line a run; the keys are the legend."""
    ax = _axes(title, "optimizer step", "training loss (nats)", ax)
    for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
        ax.plot(*zip(*run.losses, strict=True), color=colour, label=label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x: str,
    y: str,
    ax: Axes | None = None,
    legend: bool = True,
) -> Axes:
    """Points joined in their order, a line a label: `series[label]` is (places, values).

    Lines whose labels differ only in what stands in brackets at their end, such as "PPO (seed 1)", look the same.
    """
    ax = _axes(title, x, y, ax)
    colours: dict[str, str] = {}
    for label, (places, values) in series.items():
        kind = label.split(" (")[0]
        name = None if kind in colours else kind
        colour = colours.setdefault(kind, COLOURS[len(colours) % len(COLOURS)])
        marker = "osD^v<"[list(colours).index(kind) % 6]
        ax.plot(places, values, color=colour, marker=marker, markersize=4, label=name)
    if legend:
        _legend(ax, fontsize="small")
    return ax


def epochs(run: Run, title: str) -> Figure:
    """Loss, EM and F1 after every epoch, on training questions (dashed) and on validation questions."""
    figure, panels = _figure(1, 2, figsize=(8.5, 3.2))
    number = [epoch.epoch for epoch in run.epochs]
    loss = _axes("loss", "epoch", "loss (nats)", panels[0])
    scores = _axes("EM and F1", "epoch", "score (%)", panels[1])
    for part, style in (("train", "--"), ("eval", "-")):
        seen = [getattr(epoch, part) for epoch in run.epochs]
        label = "training questions" if part == "train" else "validation questions"
        loss.plot(number, [one.loss for one in seen], style, color=BLUE, marker="o", label=label)
        scores.plot(number, [one.exact_match for one in seen], style, color=ORANGE, marker="o", label=f"EM, {label}")
        scores.plot(number, [one.f1 for one in seen], style, color=GREEN, marker="s", label=f"F1, {label}")
    loss.set_ylim(bottom=0)
    scores.set_ylim(0, 105)
    for panel in panels:
        panel.set_xticks(number)
        panel.legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def intervals(scores: Mapping[str, Score], title: str, x: str = "score (%)", colour: str = BLUE) -> Axes:
    """Scores with their 95 % intervals, the first on top; many are drawn closer together."""
    many = len(scores) > 25
    ax = _axes(title, x, "", size=(7, 0.9 + (0.18 if many else 0.36) * len(scores)))
    ax.tick_params(axis="y", labelsize="small" if many else "medium")
    for place, score in enumerate(scores.values()):
        ax.plot(
            [score.low, score.high],
            [place, place],
            color=colour,
            linewidth=3,
            alpha=0.45,
            solid_capstyle="butt",
        )
        ax.plot(score.value, place, "o", color=colour)
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set_ylim(len(scores) - 0.5, -0.5)
    return ax


def save_report_picture(runs: Iterable[Run], path: Path | str) -> None:
    """The README's picture: EM of recorded trainings by the questions that were asked, as a PNG file.

    Raises:
        CourseError: if the name is not a PNG file's, or it cannot be written; then a former picture is as it was.
    """
    if Path(path).suffix != ".png":
        raise RecordError(f"{path}: the picture is a PNG file; give it a name that ends in .png")
    trained = [(run, run.experiment) for run in runs if isinstance(run.experiment, Training)]
    scores = {
        f"{label} ({run.scores[name].questions:,}), seed {experiment.seed}": run.scores[name].exact_match
        for name, label in (("first-500", "validation[:500]"), ("random-500", "random draw"), ("all", "all"))
        for run, experiment in trained
        if name in run.scores
    }
    names = {f"{plan.model}, {plan.train_size} questions of {plan.data}" for _, plan in trained}
    intervals(scores, f"{' / '.join(sorted(names))}: EM depends on the questions asked", "EM (%)")
    image = io.BytesIO()
    plt.savefig(image, format="png", dpi=110, metadata={"Software": None})  # no version: the same run, the same bytes
    plt.close()
    write_atomically(path, image.getvalue())


def bars(counts: Mapping[str, float], title: str, x: str, form: str = "{:g}") -> Axes:
    """Horizontal bars, the first on top, each with its number, written in this form."""
    ax = _axes(title, x, "", size=(7, 0.9 + 0.3 * len(counts)))
    drawn = ax.barh(list(counts), list(counts.values()), color=BLUE)
    ax.bar_label(drawn, fmt=form, padding=3)
    ax.margins(x=0.1)  # room for the numbers, also left of bars below zero
    ax.invert_yaxis()
    return ax


def quality_by_share(series: Mapping[str, tuple[Mapping[str, Run], str]], title: str) -> Axes:
    """EM with its interval against the share of weights that was trained.

    Args:
        series: by legend, the runs by label and the evaluation set of which the EM is drawn.
        title: what to see.
    """
    ax = _axes(title, "share of the weights that was trained (%, logarithmic)", "EM (%)", size=(7, 3.8))
    for number, ((legend, (runs, evaluation)), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        for label, run in runs.items():
            share, em = 100 * run.parameters[0] / run.parameters[1], run.scores[evaluation].exact_match
            share *= 1.1**number  # beside each other: all series train the same shares
            ax.plot([share, share], [em.low, em.high], color=colour, linewidth=3, alpha=0.4, solid_capstyle="butt")
            ax.plot(share, em.value, "osD"[number % 3], color=colour, label=legend)
            if number == 0:
                ax.annotate(label, (share, em.high), (0, 4), textcoords="offset points", fontsize="small", ha="center")
    ax.set(xscale="log", ylim=(0, None))
    _legend(ax, beside=False, loc="upper left")
    return ax


def learning_rates(tried: Mapping[str, Mapping[float, Run]], evaluation: str, title: str) -> Axes:
    """EM against the learning rate, a line a way to train: `tried[way][learning rate]`."""
    ax = _axes(title, "learning rate (logarithmic)", "EM (%)")
    for (label, runs), colour in zip(tried.items(), COLOURS, strict=False):
        ems = [run.scores[evaluation].exact_match.value for run in runs.values()]
        ax.plot(list(runs), ems, "o-", color=colour, label=label)
    ax.set(xscale="log", ylim=(0, None))
    _legend(ax)
    return ax


def histogram(values: Sequence[int], title: str, x: str, marks: Mapping[str, float] | None = None) -> Axes:
    """How often each value occurs; `marks` are labelled vertical lines."""
    ax = _axes(title, x, "questions")
    ax.hist(values, bins=40, color=SKY)
    for (label, place), colour in zip((marks or {}).items(), (VERMILION, BLUE, GREEN), strict=False):
        ax.axvline(place, color=colour, linestyle="--", label=label)
    if marks:
        ax.legend(frameon=False)
    return ax


def windows(cut: Sequence[Window], title: str) -> Axes:
    """The windows of one question over its passage: which characters each one reads, and where the answer lies."""
    ax = _axes(title, "character of the passage", "", size=(7, 1 + 0.4 * len(cut)))
    for place, window in enumerate(cut):
        first, last = window.characters(window.first, window.first + len(window.offsets) - 1)
        ax.barh(place, last - first, left=first, height=0.55, color=SKY, label="read" if place == 0 else None)
        if window.start:
            start, end = window.characters(window.start, window.end)
            ax.barh(place, end - start, left=start, height=0.55, color=VERMILION, label="answer")
    ax.set_yticks(range(len(cut)), [f"window {number}" for number in range(1, len(cut) + 1)])
    ax.invert_yaxis()
    _legend(ax)
    return ax


def token_probabilities(tokens: Sequence[str], start: Sequence[float], end: Sequence[float], title: str) -> Axes:
    """The probability that the answer starts, and that it ends, at each token."""
    ax = _axes(title, "", "probability", size=(max(7, 0.27 * len(tokens)), 3))
    place = np.arange(len(tokens))
    ax.bar(place - 0.2, start, width=0.4, color=BLUE, label="start")
    ax.bar(place + 0.2, end, width=0.4, color=ORANGE, label="end")
    ax.set_xticks(place, list(tokens), rotation=90, fontsize="small")
    ax.legend(frameon=False)
    return ax


def waterfall(counts: Mapping[str, int], title: str) -> Axes:
    """Steps that add up to all questions, the first on top, each with its count and the percentage reached so far.

    The last one, in another colour, is what remains.
    """
    ax = _axes(title, "questions", "", size=(7, 0.9 + 0.36 * len(counts)))
    number = np.array(list(counts.values()))
    total, reached = number.sum(), number.cumsum()
    colours = [BLUE] * (len(number) - 1) + [VERMILION]
    ax.barh(list(counts), number, left=reached - number, color=colours)
    for place, (count, end) in enumerate(zip(number, reached, strict=True)):
        last = place == len(number) - 1
        label = f"{count} ({count / total:.1%})" if last else f"+{count} → {end / total:.1%}"
        # to the left of what lies far right, so that no label leaves the picture
        right = end > 0.7 * total
        ax.annotate(
            label,
            (end - count if right else end, place),
            (-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize="small",
        )
        if not last:
            ax.plot([end, end], [place, place + 1], color="grey", linewidth=0.8)
    ax.set_xlim(0, total)
    ax.invert_yaxis()
    return ax


def scaling(
    points: Mapping[str, Mapping[int, float]],
    fits: Mapping[str, PowerLaw],
    title: str,
    held_out: Mapping[int, float] | None = None,
    y: str = "EM (%)",
    until: float | None = None,
) -> Axes:
    """Scores by the number of training questions, a marker a seed, and fitted laws with their 95 % bands for the mean.

    Args:
        points: `points[seed][size]`, in percent.
        fits: what was fitted to them; the keys are the legend.
        title: what to see.
        held_out: scores of runs that the fits have not seen, by size.
        y: what was scored.
        until: training questions up to which the laws are drawn, instead of twice the largest size.
    """
    ax = _axes(title, "training questions (logarithmic)", y, size=(7, 3.8))
    held_out = held_out or {}
    sizes = [size for scores in points.values() for size in scores] + list(held_out)
    line = np.geomspace(min(sizes), until or 2 * max(sizes), 60)  # by default a little further than anybody trained
    for (label, law), colour in zip(fits.items(), (BLUE, ORANGE, GREEN), strict=False):
        value, low, high = zip(*map(law.predict, line), strict=True)
        ax.plot(line, value, color=colour, label=label)
        ax.fill_between(line, low, high, color=colour, alpha=0.2, linewidth=0)
    for (label, scores), marker in zip(points.items(), "osD^v<>", strict=False):
        ax.plot(list(scores), list(scores.values()), marker, color="black", markersize=5, fillstyle="none", label=label)
    if held_out:
        ax.plot(list(held_out), list(held_out.values()), "*", color=VERMILION, markersize=12, label="held out")
    ax.set_xscale("log")
    ticks = sorted({*sizes, *([until] if until else [])})
    ax.set_xticks(ticks, [f"{size:,.0f}" for size in ticks])
    ax.minorticks_off()
    heading = "bands: 95 %, for the mean" if fits else None
    _legend(ax, title=heading)
    return ax


def scatter(points: Mapping[str, tuple[float, float]], title: str, x: str, y: str) -> Axes:
    """Named points, with thin lines where either value is zero."""
    ax = _axes(title, x, y, size=(7, 3.8))
    for line in (ax.axhline, ax.axvline):
        line(0, color="black", linewidth=0.8)
    for name, place in points.items():
        ax.plot(*place, "o", color=BLUE)
        ax.annotate(name, place, xytext=(6, 4), textcoords="offset points", fontsize="small")
    ax.margins(x=0.15, y=0.1)
    return ax


def reliability(table: Calibration, title: str) -> Axes:
    """How often answers are right by how sure the model was, with the number of questions on each bar.

    On the dashed line the two are the same; bars that end below it are overconfident answers.
    """
    ax = _axes(title, "confidence (%); the numbers count questions", "right answers (%)", size=(5.4, 4.2))
    full = table.questions > 0
    left, width = 100 * table.edges[:-1][full], 100 * np.diff(table.edges)[full]
    drawn = ax.bar(left, 100 * table.accuracy[full], width, align="edge", color=SKY, edgecolor="white")
    ax.bar_label(drawn, list(map(str, table.questions[full])), padding=5, fontsize="small")
    ax.plot([0, 100], [0, 100], "--", color="black", linewidth=1, label="confidence = share of right answers")
    means = 100 * table.confidence[full], 100 * table.accuracy[full]
    ax.plot(*means, "o", color=VERMILION, label=f"mean of the bin; calibration error {100 * table.error:.1f} points")
    ax.set(xlim=(0, 100), ylim=(0, 110))
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def highlight(context: str, start: int, end: int) -> Any:
    """The passage as HTML with the characters `start` to `end` (exclusive) marked."""
    from IPython.display import HTML

    before, marked, after = (html.escape(part) for part in (context[:start], context[start:end], context[end:]))
    mark = f'<mark style="background:{ORANGE};color:black;padding:0 2px">{marked}</mark>'
    return HTML(f'<p style="max-width:46em;line-height:1.5">{before}{mark}{after}</p>')


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table as Markdown, for notebooks; floats to one decimal, so that tests can tell them from counts."""
    from IPython.display import Markdown

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.1f}"
        text = html.escape(str(value), quote=False).replace("\n", " ")  # a prediction may hold anything
        return re.sub(r"([\\|`*_$])", r"\\\1", text)

    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines))
