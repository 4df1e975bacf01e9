"""The course's figures: each shows one thing, says in its title what to see, and names the units on its axes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qa_helpers.data.windows import Window
from qa_helpers.evaluation.statistics import Calibration, Interval
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.scores import Score
from qa_helpers.report.learning_curve import PowerLaw
from qa_helpers.report.tables import Table

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
Points = tuple[Sequence[float], Sequence[float]]  # places and values


class FigureInWords(Figure):
    """A figure that a notebook keeps with its words, as the image's display metadata: the text of who cannot see it."""

    def in_words(self) -> str:
        """Its title and what is on its axes."""
        parts = [self.get_suptitle()]
        for axes in self.axes:
            labels = " against ".join(filter(None, [axes.get_ylabel(), axes.get_xlabel()]))
            parts.append(": ".join(filter(None, [axes.get_title(), labels])))
        return "; ".join(filter(None, parts))

    def _repr_mimebundle_(self, **_options: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {}, {"image/png": {"alt": self.in_words()}}  # the image itself is drawn as that of any figure


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure, and the axes of its panels as `plt.subplots` gives them."""
    figure = plt.figure(figsize=size, layout="constrained", FigureClass=FigureInWords)
    return figure, figure.subplots(rows, columns)


def _axes(title: str, x: str, y: str, ax: Axes | None = None, size: tuple[float, float] = (7, 3.2)) -> Axes:
    if ax is None:
        figure, ax = panels(1, 1, size)
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


def losses(runs: Mapping[str, Run], title: str) -> Axes:
    """Training loss by optimizer step, a line a run; the keys are the legend."""
    ax = _axes(title, "optimizer step", "training loss (nats)")
    for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
        ax.plot(*zip(*run.losses, strict=True), color=colour, label=label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def lines(
    series: Mapping[str, Points], title: str, x: str, y: str, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Points joined in their order, a line a label: `series[label]`.

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
    figure, (left, right) = panels(1, 2, (8.5, 3.2))
    number = [epoch.epoch for epoch in run.epochs]
    loss, percent = _axes("loss", "epoch", "loss (nats)", left), _axes("EM and F1", "epoch", "score (%)", right)
    for part, style, asked in (("train", "--", "training questions"), ("eval", "-", "validation questions")):
        probes = [getattr(epoch, part) for epoch in run.epochs]
        loss.plot(number, [probe.loss for probe in probes], style, color=BLUE, marker="o", label=asked)
        for metric, name, colour, marker in (("exact_match", "EM", ORANGE, "o"), ("f1", "F1", GREEN, "s")):
            values = [getattr(probe, metric) for probe in probes]
            percent.plot(number, values, style, color=colour, marker=marker, label=f"{name}, {asked}")
    loss.set_ylim(bottom=0)
    percent.set_ylim(0, 105)
    for panel in (loss, percent):
        panel.set_xticks(number)
        panel.legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def intervals(scores: Mapping[str, Score | Interval], title: str, x: str = "score (%)") -> Axes:
    """Scores with their 95 % intervals, the first on top; many are drawn closer together."""
    many = len(scores) > 25
    ax = _axes(title, x, "", size=(7, 0.9 + (0.18 if many else 0.36) * len(scores)))
    ax.tick_params(axis="y", labelsize="small" if many else "medium")
    for row, score in enumerate(scores.values()):
        ends = [score.low, score.high]
        ax.plot(ends, [row, row], color=BLUE, linewidth=3, alpha=0.45, solid_capstyle="butt")
        ax.plot(score.value, row, "o", color=BLUE)
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set_ylim(len(scores) - 0.5, -0.5)
    return ax


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
    ems = {way: [run.scores[evaluation].exact_match.value for run in runs.values()] for way, runs in tried.items()}
    series = {way: (list(runs), ems[way]) for way, runs in tried.items()}
    ax = lines(series, title, "learning rate (logarithmic)", "EM (%)")
    ax.set(xscale="log", ylim=(0, None))
    return ax


def histogram(values: Sequence[int], title: str, x: str, marks: Mapping[str, float] | None = None) -> Axes:
    """How often each value occurs; `marks` are labelled vertical lines."""
    ax = _axes(title, x, "questions")
    ax.hist(values, bins=40, color=SKY)
    for (label, value), colour in zip((marks or {}).items(), (VERMILION, BLUE, GREEN), strict=False):
        ax.axvline(value, color=colour, linestyle="--", label=label)
    if marks:
        ax.legend(frameon=False)
    return ax


def windows(cut: Sequence[Window], title: str) -> Axes:
    """The windows of one question over its passage: which characters each one reads, and where the answer lies."""
    ax = _axes(title, "character of the passage", "", size=(7, 1 + 0.4 * len(cut)))
    for row, window in enumerate(cut):
        first, last = window.characters(window.first, window.first + len(window.offsets) - 1)
        ax.barh(row, last - first, left=first, height=0.55, color=SKY, label="read")
        if window.start:
            start, end = window.characters(window.start, window.end)
            ax.barh(row, end - start, left=start, height=0.55, color=VERMILION, label="answer")
    ax.set_yticks(range(len(cut)), [f"window {number}" for number in range(1, len(cut) + 1)])
    ax.invert_yaxis()
    _legend(ax)
    return ax


def token_probabilities(tokens: Sequence[str], start: Sequence[float], end: Sequence[float], title: str) -> Axes:
    """The probability that the answer starts, and that it ends, at each token."""
    ax = _axes(title, "", "probability", size=(max(7, 0.27 * len(tokens)), 3))
    position = np.arange(len(tokens))
    ax.bar(position - 0.2, start, width=0.4, color=BLUE, label="start")
    ax.bar(position + 0.2, end, width=0.4, color=ORANGE, label="end")
    ax.set_xticks(position, list(tokens), rotation=90, fontsize="small")
    ax.legend(frameon=False)
    return ax


def waterfall(counts: Mapping[str, int], title: str) -> Axes:
    """Steps that add up to all questions, the first on top, each with its count and the percentage reached so far.

    The last one, in another colour, is what remains.
    """
    ax = _axes(title, "questions", "", size=(7, 0.9 + 0.36 * len(counts)))
    number = np.array(list(counts.values()))
    total, reached, rest = number.sum(), number.cumsum(), len(number) - 1
    colours = [BLUE] * rest + [VERMILION]
    ax.barh(list(counts), number, left=reached - number, color=colours)
    for row, (count, end) in enumerate(zip(number, reached, strict=True)):
        label = f"{count} ({count / total:.1%})" if row == rest else f"+{count} → {end / total:.1%}"
        # to the left of what lies far right, so that no label leaves the picture
        x, shift, side = (end - count, -4, "right") if end > 0.7 * total else (end, 4, "left")
        ax.annotate(label, (x, row), (shift, 0), textcoords="offset points", ha=side, va="center", fontsize="small")
        if row < rest:
            ax.plot([end, end], [row, row + 1], color="grey", linewidth=0.8)
    ax.set_xlim(0, total)
    ax.invert_yaxis()
    return ax


def scaling(
    points: Mapping[str, Mapping[int, float]],
    fits: Mapping[str, PowerLaw],
    title: str,
    held_out: Mapping[int, float] | None = None,
    until: float | None = None,
) -> Axes:
    """Scores by the number of training questions, a marker a seed, and fitted laws with their 95 % bands for the mean.

    Args:
        points: `points[seed][size]`, in percent.
        fits: what was fitted to them; the keys are the legend.
        title: what to see.
        held_out: scores of runs that the fits have not seen, by size.
        until: training questions up to which the laws are drawn, instead of twice the largest size.
    """
    ax = _axes(title, "training questions (logarithmic)", "EM (%)", size=(7, 3.8))
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
    _legend(ax, title="bands: 95 %, for the mean" if fits else None)
    return ax


def scatter(points: Mapping[str, tuple[float, float]], title: str, x: str, y: str) -> Axes:
    """Named points, with thin lines where either value is zero."""
    ax = _axes(title, x, y, size=(7, 3.8))
    for line in (ax.axhline, ax.axvline):
        line(0, color="black", linewidth=0.8)
    for name, point in points.items():
        ax.plot(*point, "o", color=BLUE)
        ax.annotate(name, point, xytext=(6, 4), textcoords="offset points", fontsize="small")
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


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of rows, each value as it is."""
    return Table(rows, columns=header, dtype=object)
