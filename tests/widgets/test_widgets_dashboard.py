"""The dashboard: recorded runs, its inputs changed as a reader would, and what is shown against the records."""

import html
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.metrics import load_card
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import change
from qa_helpers.report.plots import COLOURS
from qa_helpers.report.tables import compare
from qa_helpers.widgets import run_views
from qa_helpers.widgets.dashboard import ANY, Dashboard
from qa_helpers.widgets.run_views import articles, comparison_html, overview, wrong_answers

RECORDS = Path(__file__).parents[2] / "records"


def record(name: str) -> Run:
    return read_record(RECORDS / name)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    names = ("quick-baseline-100-seed0", "quick-baseline-500-seed0", "quick-zero-shot-smollm2-seed0")
    return {name: record(name) for name in names}


@pytest.fixture(scope="module")
def squad() -> Run:
    return record("class-method-head-lr0.03-seed0")


@pytest.fixture
def widget(runs: dict[str, Run]) -> Dashboard:
    return Dashboard(runs)


def words(shown: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", shown, flags=re.DOTALL)))


# ---- plain functions -------------------------------------------------------------------------------------------
def test_a_comparison_counts_every_question_once(runs: dict[str, Run]) -> None:
    first, second, _ = runs.values()
    a, b = (np.array(run.questions.exact_match) for run in (first, second))
    fields = re.findall(r'<td class="qa-number">([\d,]+)</td>', comparison_html(first, second))
    counted = [int(field.replace(",", "")) for field in fields]
    assert counted == [(a & b).sum(), (a > b).sum(), (b > a).sum(), len(a) - (a | b).sum()]
    assert sum(counted) == len(a)


def test_wrong_answers_are_those_that_do_not_match(runs: dict[str, Run]) -> None:
    run = runs["quick-baseline-500-seed0"]
    found = wrong_answers(run, "all")
    assert len(found) == len(run.questions.id) - sum(run.questions.exact_match)
    assert [one.confidence for one in found] == sorted((one.confidence for one in found), reverse=True)
    rows = {row["id"]: row for row in load_qa("courseqa", "validation")}
    for one in found:
        assert (one.article, one.question) == (rows[one.id]["title"], rows[one.id]["question"])
        assert set(one.answers or ()) == set(rows[one.id]["answers"]["text"])
        assert one.category != "exact"
    some = wrong_answers(run, "all", category=found[0].category, article=found[0].article)
    assert some == [one for one in found if (one.category, one.article) == (found[0].category, found[0].article)]
    assert 0 < len(some) < len(found)


def test_articles_of_squad_come_from_its_card(squad: Run) -> None:
    titles = load_card("squad").titles
    drawn = sorted(squad.experiment.evaluations["random-500"].indices(len(titles)))
    assert articles(squad) == [titles[place] for place in drawn]
    (one, *_) = wrong_answers(squad, "random-500")
    place = squad.questions.id.index(one.id)
    assert one.article == titles[drawn[place]]
    assert (one.question, one.answers) == (None, None), "the questions are not in the course"


def test_articles_of_other_data_are_not_known(runs: dict[str, Run], squad: Run) -> None:
    run = runs["quick-baseline-100-seed0"]
    other = run.model_copy(update={"experiment": change(run.experiment, data="mine")})
    assert articles(other) is None
    assert wrong_answers(other, "all")[0].article is None
    changed = squad.questions.model_copy(update={"id": squad.questions.id[:-1]})
    assert articles(squad.model_copy(update={"questions": changed})) is None


def test_the_overview_draws_what_was_recorded(runs: dict[str, Run]) -> None:
    figure = overview(runs, "all")
    losses, epochs, scores = figure.axes
    trained = [run for run in runs.values() if run.losses]
    assert [line.get_xydata().tolist() for line in losses.lines] == [
        [[float(step), loss] for step, loss in run.losses] for run in trained
    ]
    assert epochs.lines[0].get_ydata().tolist() == [one.eval.exact_match for one in trained[0].epochs]
    em = [run.scores["all"].exact_match for run in runs.values()]
    assert [line.get_xdata().tolist() for line in scores.lines[::2]] == [[one.low, one.high] for one in em]
    assert [line.get_xdata().tolist() for line in scores.lines[1::2]] == [[one.value] for one in em]
    assert [label.get_text() for label in scores.get_yticklabels()] == list(runs)
    assert {to_hex(line.get_color()).upper() for line in scores.lines} <= set(COLOURS)
    styles = [(line.get_linestyle(), line.get_color()) for line in losses.lines]
    assert len({style for style, _ in styles}) == len({colour for _, colour in styles}) == len(trained)
    assert losses.get_xlabel() == "optimizer step"
    assert scores.get_xlabel() == "EM (%)"


def test_an_overview_says_what_was_not_recorded(runs: dict[str, Run]) -> None:
    figure = overview({"it": runs["quick-zero-shot-smollm2-seed0"]}, "all")
    assert [axes.texts[0].get_text() for axes in figure.axes[:2]] == ["not recorded for these runs"] * 2


# ---- the widget ------------------------------------------------------------------------------------------------
def test_the_first_two_runs_are_shown_and_compared(widget: Dashboard, runs: dict[str, Run]) -> None:
    first, second, third = runs.values()
    shown = words(widget.to_html())
    assert str(first.scores["all"].exact_match) in shown
    assert str(second.scores["all"].f1) in shown
    assert third.experiment.name not in shown
    assert f"{compare(first, second, ['exact_match']).loc[0, 'difference'].value:+.1f} points" in shown
    assert "differ: the second is better" in shown
    assert f"{len(wrong_answers(first, 'all')):,} wrong answers of {first.experiment.name}" in shown
    image = re.search(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)">', widget.to_html())
    assert image
    assert "quick-baseline-100-seed0: last training loss" in image.group(2)


def test_choosing_runs_changes_everything(widget: Dashboard, runs: dict[str, Run]) -> None:
    third = runs["quick-zero-shot-smollm2-seed0"]
    widget.chosen.value = ("quick-baseline-500-seed0", third.experiment.name)
    assert widget.first.options == widget.chosen.value
    assert (widget.first.value, widget.second.value) == widget.chosen.value
    shown = words(widget.to_html())
    assert "quick-baseline-100-seed0" not in shown
    assert "differ: the second is worse" in shown
    widget.wrong_of.value = third.experiment.name
    assert f"wrong answers of {third.experiment.name}" in words(widget.wrong.value)
    widget.chosen.value = ()
    assert "choose one or more runs" in widget.to_html()
    widget.chosen.value = (third.experiment.name,)
    assert "Choose two runs" in words(widget.comparison.value)
    assert "no training" in widget.scores.value


def test_filters_offer_what_occurs_and_narrow_the_table(widget: Dashboard, runs: dict[str, Run]) -> None:
    run = runs["quick-baseline-100-seed0"]
    found = wrong_answers(run, "all")
    assert set(widget.category.options) == {ANY} | {one.category for one in found}
    assert set(widget.article.options) == {ANY} | {one.article for one in found}
    widget.article.value = found[0].article
    widget.category.value = found[0].category
    some = wrong_answers(run, "all", found[0].category, found[0].article)
    assert words(widget.wrong.value).strip().startswith(f"{len(some)} wrong answers")
    widget.wrong_of.value = "quick-baseline-500-seed0"
    assert widget.article.value in (ANY, found[0].article), "a filter stays where it still fits"


def test_a_long_table_ends_and_says_so(widget: Dashboard) -> None:
    shown = widget.wrong.value
    assert shown.count("<tr>") == 1 + run_views.MOST_ROWS
    assert f"the surest {run_views.MOST_ROWS} of them" in words(shown)


def test_the_metric_is_that_of_figure_and_comparison(widget: Dashboard, runs: dict[str, Run]) -> None:
    first, second, _ = runs.values()
    of_f1 = compare(first, second, ["f1"]).iloc[0]
    widget.metric.value = "f1"
    assert f"F1 of the second less the first, on {of_f1.questions} " in words(widget.comparison.value)
    assert f"{of_f1.difference.value:+.1f} points" in widget.comparison.value
    assert widget.figure().axes[2].get_xlabel() == "F1 (%)"


def test_runs_on_other_questions_stand_side_by_side_but_are_not_compared(runs: dict[str, Run], squad: Run) -> None:
    quick = runs["quick-baseline-100-seed0"]
    widget = Dashboard({"quick": quick, "squad": squad})
    assert set(widget.evaluation.options) == {"all", "random-500"}
    assert "share no question" in words(widget.comparison.value)
    widget.evaluation.value = "random-500"
    assert "not asked" in words(widget.scores.value)
    assert "was not asked 'random-500'" in words(widget.wrong.value)
    widget.wrong_of.value = "squad"
    assert wrong_answers(squad, "random-500")[0].article in words(widget.wrong.value)


def test_an_input_that_changes_meanwhile_in_another_thread_is_followed(
    widget: Dashboard, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = list(runs)[1:]
    shows, goes_on = threading.Event(), threading.Event()
    compared = widget._comparison

    def slowly() -> str:
        shown = compared()
        shows.set()
        assert goes_on.wait(60)
        return shown

    monkeypatch.setattr(widget, "_comparison", slowly)
    one = threading.Thread(target=lambda: setattr(widget.metric, "value", "f1"))
    one.start()
    assert shows.wait(60)
    monkeypatch.setattr(widget, "_comparison", compared)
    other = threading.Thread(target=lambda: setattr(widget.first, "value", second))
    other.start()
    other.join(0.2)  # it waits for the one; without a wait it would be over by now
    goes_on.set()
    one.join(60)
    other.join(60)
    assert "Choose two runs" in words(widget.comparison.value)
    assert third not in words(widget.comparison.value)


def test_a_run_is_added_beside_the_others(widget: Dashboard, runs: dict[str, Run]) -> None:
    run = runs["quick-baseline-100-seed0"]
    new = run.model_copy(update={"experiment": change(run.experiment, name="mine")})
    widget.add(new)
    assert widget.chosen.value == ("quick-baseline-100-seed0", "quick-baseline-500-seed0", "mine")
    assert " mine " in words(widget.scores.value)
    widget.add(new)
    assert widget.chosen.options.count("mine") == 1
    for number in range(5):
        name = f"more-{number}"
        widget.add(run.model_copy(update={"experiment": change(run.experiment, name=name)}))
    assert len(widget.shown()) == run_views.MOST_RUNS
    assert "more-4" in widget.shown()
    widget.chosen.value = tuple(widget.chosen.options)
    assert "more are chosen" in widget.scores.value


def test_predictions_are_escaped(runs: dict[str, Run]) -> None:
    run = runs["quick-baseline-100-seed0"]
    texts = ["<img src=x onerror=alert(1)>"] * len(run.questions.id)
    bad = run.model_copy(update={"questions": run.questions.model_copy(update={"prediction": texts})})
    assert "<img src=x" not in Dashboard({"<i>": bad}).to_html()
    assert "&lt;i&gt;" in Dashboard({"<i>": bad}).to_html()


def test_a_dashboard_needs_runs_that_are_there(runs: dict[str, Run]) -> None:
    with pytest.raises(RecordError, match="no run to show"):
        Dashboard({})
    with pytest.raises(RecordError, match="was not given a run 'none'"):
        Dashboard(runs, ["none"])
    assert list(Dashboard(runs, ["quick-zero-shot-smollm2-seed0"]).shown()) == ["quick-zero-shot-smollm2-seed0"]


def test_the_static_form_is_the_same_twice(runs: dict[str, Run]) -> None:
    one, other = (Dashboard(runs)._repr_mimebundle_() for _ in range(2))
    assert one["text/html"] == other["text/html"]
    assert one["text/plain"] == "Dashboard"
