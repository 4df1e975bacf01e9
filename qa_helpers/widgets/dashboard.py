"""The run dashboard: choose runs, and see losses, scores, two of them compared, and what one got wrong; all linked."""

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from qa_helpers.common.io import CourseError
from qa_helpers.evaluation.metrics import CATEGORIES
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import load_records
from qa_helpers.experiment.scores import METRICS
from qa_helpers.report.tables import METRIC_NAMES
from qa_helpers.widgets.look import Shown, block, labelled, paragraph, picture, problem
from qa_helpers.widgets.run_views import (
    MOST_RUNS,
    comparison_html,
    overview,
    overview_in_words,
    scores_html,
    wrong_answers,
    wrong_html,
)

ANY = "(any)"


class Dashboard(Shown):
    """Choose runs; everything below follows: figure, scores, a comparison of two, wrong answers of one."""

    def __init__(self, runs: Mapping[str, Run] | None = None, chosen: Sequence[str] = ()) -> None:
        """Show runs.

        Args:
            runs: by name; `load_records()` if None.
            chosen: those that are shown first; the first two if none is named.

        Raises:
            RecordError: if there is no run to show, or none of a chosen name.
        """
        self.runs = dict(load_records() if runs is None else runs)
        if not self.runs:
            raise RecordError("there is no run to show: run an experiment, or give the dashboard runs")
        if unknown := [name for name in chosen if name not in self.runs]:
            raise RecordError(f"the dashboard was not given a run '{unknown[0]}'")
        self._make_inputs()
        self.scores, self.comparison, self.wrong = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        choice, pair = [self.chosen, self.evaluation, self.metric], [self.first, self.second]
        filters = [self.wrong_of, self.category, self.article]
        self.box = ipywidgets.VBox([*choice, self.scores, *pair, self.comparison, *filters, self.wrong])
        self._updating = False  # while options change one after the other, nothing is shown
        self._one_at_a_time = threading.RLock()  # JupyterLab hands inputs to the kernel in more than one thread
        self._offer_runs(chosen or list(itertools.islice(self.runs, 2)))

    def _make_inputs(self) -> None:
        tall = ipywidgets.Layout(width="100%", max_width="60em", height="9em")
        names = {METRIC_NAMES[name]: name for name in METRICS}
        self.chosen = labelled(ipywidgets.SelectMultiple, "Runs", layout=tall)
        self.evaluation = labelled(ipywidgets.Dropdown, "Questions asked")
        self.metric = labelled(ipywidgets.Dropdown, "Metric", options=names, value="exact_match")
        self.first = labelled(ipywidgets.Dropdown, "First run")
        self.second = labelled(ipywidgets.Dropdown, "Second run")
        self.wrong_of = labelled(ipywidgets.Dropdown, "Wrong answers of")
        self.category = labelled(ipywidgets.Dropdown, "Category")
        self.article = labelled(ipywidgets.Dropdown, "Article")
        changed = {"runs": [self.chosen], "scores": [self.evaluation, self.metric]}
        changed |= {"comparison": [self.first, self.second]}
        changed |= {"wrong of": [self.wrong_of], "wrong": [self.category, self.article]}
        for what, inputs in changed.items():
            for control in inputs:
                control.observe(lambda _, what=what: self._follow(what), "value")

    def add(self, run: Run) -> None:
        """Show one more run, beside those that are on show."""
        self.runs[run.experiment.name] = run
        shown = [name for name in self.chosen.value if name != run.experiment.name]
        self._offer_runs([*shown[: MOST_RUNS - 1], run.experiment.name])

    def _offer_runs(self, chosen: Sequence[str]) -> None:
        with self._one_at_a_time:
            self._updating = True
            self.chosen.options = list(self.runs)
            self.chosen.value = tuple(chosen)
            self._updating = False
            self._follow("runs")

    def shown(self) -> dict[str, Run]:
        """The runs on show."""
        return {name: self.runs[name] for name in self.chosen.value[:MOST_RUNS]}

    def figure(self) -> Figure:
        """The figure on show."""
        return overview(self.shown(), self.evaluation.value, self.metric.value)

    def to_html(self) -> str:
        """Figure and tables as they are on show."""
        return "".join(str(part.value) for part in (self.scores, self.comparison, self.wrong))

    def _follow(self, what: str) -> None:
        """Show anew what depends on an input of this kind."""
        with self._one_at_a_time:
            if self._updating:  # it is this thread that changes an input
                return
            self._updating = True
            try:
                self._show_anew(what)
            finally:
                self._updating = False

    def _show_anew(self, what: str) -> None:
        if what == "runs":
            self._offer(self.evaluation, dict.fromkeys(n for run in self.shown().values() for n in run.scores))
            for control, default in ((self.first, 0), (self.second, 1), (self.wrong_of, 0)):
                self._offer(control, self.shown(), default)
            if self.second.value == self.first.value:
                self.second.value = next((n for n in self.shown() if n != self.first.value), self.first.value)
        if what in ("runs", "scores"):
            self.scores.value = self._scores()
        if what in ("runs", "scores", "comparison"):
            self.comparison.value = self._comparison()
        if what in ("runs", "scores", "wrong of"):
            self._offer_filters()
        if what != "comparison":
            self.wrong.value = self._wrong()

    def _offer(self, control: Any, options: Iterable[str], default: int = 0) -> None:
        """Offer other options; what was chosen stays if it is among them, else the option numbered `default` is."""
        options, before = list(options), control.value
        control.options = options
        control.value = before if before in options else next(iter(options[default:] or options), None)

    def _offer_filters(self) -> None:
        run = self._run(self.wrong_of)
        wrong = wrong_answers(run, self.evaluation.value) if run and self.evaluation.value in run.indices else []
        self._offer(
            self.category, [ANY, *(name for name in CATEGORIES if any(answer.category == name for answer in wrong))]
        )
        self._offer(self.article, [ANY, *sorted({answer.article for answer in wrong if answer.article})])

    def _run(self, control: Any) -> Run | None:
        return self.runs.get(control.value)

    def _scores(self) -> str:
        runs, evaluation, metric = self.shown(), self.evaluation.value, self.metric.value
        if not runs:
            return block(problem("choose one or more runs"))
        left_out = len(self.chosen.value) - len(runs)
        note = (
            paragraph(f"The first {MOST_RUNS} are shown; {left_out} more are chosen.", "qa-muted") if left_out else ""
        )
        drawn = picture(self.figure(), overview_in_words(runs, evaluation, metric))
        return block(note, drawn, scores_html(runs, evaluation))

    def _comparison(self) -> str:
        first, second = self._run(self.first), self._run(self.second)
        if first is None or second is None or first is second:
            return block(paragraph("Choose two runs to compare them question by question.", "qa-muted"))
        try:
            return block(comparison_html(first, second, self.metric.value))
        except CourseError as error:
            return block(problem(str(error)))

    def _wrong(self) -> str:
        run, evaluation = self._run(self.wrong_of), self.evaluation.value
        if run is None:
            return ""
        if evaluation not in run.indices:
            return block(paragraph(f"{run.experiment.name} was not asked '{evaluation}'.", "qa-muted"))
        filters = [None if control.value == ANY else control.value for control in (self.category, self.article)]
        return block(wrong_html(wrong_answers(run, evaluation, *filters), run.experiment.name))
