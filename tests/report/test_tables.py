"""Tables of runs: how they are shown, and their figures against the records' own and against counts by hand."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qa_helpers.evaluation.comparisons import mcnemar, win_rate
from qa_helpers.evaluation.statistics import Interval, bootstrap_mean
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.scores import METRICS
from qa_helpers.report.tables import METRIC_NAMES, Table, compare, highlight, markdown, scores

RECORDS = Path(__file__).parents[2] / "records"


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    names = ("quick-baseline-100-seed0", "quick-baseline-500-seed0")
    return {name: read_record(RECORDS / name) for name in names}


@pytest.fixture(scope="module")
def squad() -> Run:
    return read_record(RECORDS / "class-method-head-lr0.03-seed0")


def cells(table: Table) -> list[list[str]]:
    """What a notebook shows of a table, its heading first."""
    lines = re.findall(r"<tr>(.*?)</tr>", table._repr_html_())
    return [[unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line)] for line in lines]


def sides(table: Table) -> list[list[str]]:
    return [re.findall(r"text-align: (\w+)", line) for line in re.findall(r"<tr>(.*?)</tr>", table._repr_html_())]


# ---- how they are shown ----------------------------------------------------------------------------------------
def test_a_table_is_shown_with_a_decimal_and_without_counting_its_lines() -> None:
    table = Table([("a", 3.14159, 7, 0.00123, None)], columns=["name", "score", "number", "p", "more"])
    assert cells(table) == [["name", "score", "number", "p", "more"], ["a", "3.1", "7", "0.0012", "–"]]
    assert repr(table).split() == ["name", "score", "number", "p", "more", "a", "3.1", "7", "0.0012", "–"]
    assert cells(table[table["number"] > 6]) == cells(table), "a selection is shown like the whole"
    assert cells(table.set_index("name")) == cells(table)
    assert cells(Table({"x": [1.0]}, index=["a"])) == [["index", "x"], ["a", "1.0"]]
    assert cells(Table([(1, 2)], columns=["after", "after"])) == [["after", "after"], ["1", "2"]]
    assert cells(Table([], columns=["x"])) == [["x"]]


def test_numbers_stand_to_the_right_and_texts_to_the_left() -> None:
    numbers = [1, -2.5, "0.54", "+1.0", "–", Interval(1.0, -2.0, 3.0), "[-1.00, +0.51]", "57.2 to 63.0", "2 of 16"]
    for number in numbers:
        assert sides(Table([("a text", number)])) == [["left", "right"]] * 2, number
    for text in ("2000 m", "first-500", "all 10,570", "13:10"):
        assert sides(Table([(text,)])) == [["left"]] * 2, text


def test_all_of_a_table_is_shown_and_nothing_of_it_is_taken_for_html_or_a_formula() -> None:
    long = "<b> $5 & _so_ on$ " + "x" * 200
    table = Table({"text": [long] * 100})
    assert cells(table)[1:] == [[long]] * 100
    assert "<b>" not in table._repr_html_()
    assert re.match(r'<table class="[^"]*\btex2jax_ignore mathjax_ignore\b', table._repr_html_())
    assert repr(table).count(long) == 100


def test_a_table_is_accessible_and_written_a_line_a_row() -> None:
    shown = Table([(1, "a"), (2, "b")], columns=["number", "name"])._repr_html_()
    assert re.findall(r'<th scope="col"[^>]*>(\w+)</th>', shown) == ["number", "name"]
    assert [line[:4] for line in shown.splitlines()] == ["<tab", "<tr>", "</th", "<tr>", "<tr>", "</tb"]


def test_a_table_in_markdown() -> None:
    table = pd.DataFrame({"x": [1.25, None]}, index=pd.Index(["a", "b"], name="name"))
    assert markdown(table) == "| name | x |\n| --- | --- |\n| a | 1.2 |\n| b | – |"


def test_highlight_escapes_html() -> None:
    shown = highlight("a <b> & the answer.", 8, 18).data
    assert "a &lt;b&gt; " in shown
    assert ">the answer</mark>." in shown


# ---- scores ----------------------------------------------------------------------------------------------------
def test_scores_have_a_line_a_run_and_evaluation_set(runs: dict[str, Run], squad: Run) -> None:
    table = scores([*runs.values(), squad])
    assert list(table["run"]) == [*runs, squad.experiment.name]
    assert list(table["asked"]) == ["all", "all", "random-500"]
    for (_, line), run in zip(table.iterrows(), [*runs.values(), squad], strict=True):
        recorded = run.scores[line["asked"]]
        assert (line["questions"], line["seed"]) == (recorded.questions, run.experiment.seed)
        for metric in METRICS:
            assert line[METRIC_NAMES[metric]] == getattr(recorded, metric)
    shown = cells(table[["EM", "F1"]])
    assert shown[1] == [str(runs["quick-baseline-100-seed0"].scores["all"].exact_match), "7.2 [4.6, 9.9]"]


def test_scores_become_numbers_and_runs_take_the_names_that_they_are_given(runs: dict[str, Run]) -> None:
    table = scores({"small": runs["quick-baseline-100-seed0"], "large": runs["quick-baseline-500-seed0"]})
    means = table.astype({"EM": float}).groupby("asked")["EM"].mean()
    by_hand = np.mean([100 * np.mean(run.questions.exact_match) for run in runs.values()])
    assert means["all"] == pytest.approx(by_hand, abs=0.006)
    assert list(table["run"]) == ["small", "large"]
    assert list(scores([]).columns) == list(table.columns)


def test_a_run_without_a_seed_leaves_those_of_others_whole(squad: Run) -> None:
    combined = read_record(RECORDS / "class-idea-ensemble-5000-seed0")
    shown = cells(scores([squad, combined]).drop_duplicates("run")[["run", "seed"]])
    assert shown[1:] == [[squad.experiment.name, "0"], [combined.experiment.name, "–"]]


# ---- two runs --------------------------------------------------------------------------------------------------
def test_a_comparison_counts_questions_and_measures_the_difference(runs: dict[str, Run]) -> None:
    first, second = runs.values()
    table = compare(first, second).set_index("metric")
    assert list(table.index) == [METRIC_NAMES[metric] for metric in METRICS]
    for metric in METRICS:
        a, b = (np.array(getattr(run.questions, metric), dtype=float) for run in (first, second))
        line = table.loc[METRIC_NAMES[metric]]
        assert line["questions"] == len(a)
        assert (line["first"], line["second"]) == pytest.approx((100 * a.mean(), 100 * b.mean()))
        assert (line["first better"], line["second better"]) == ((a > b).sum(), (b > a).sum())
        assert line["difference"] == pytest.approx(bootstrap_mean(100 * (b - a), bounds=(-100, 100)))
        assert line["p"] == win_rate(a, b).p
    em = [run.questions.exact_match for run in (first, second)]
    assert table.loc["EM", "p"] == mcnemar(*em) < 0.001
    assert compare(first, first, ["exact_match"]).loc[0, "p"] == 1


def test_a_comparison_is_of_the_sets_and_metrics_asked_for() -> None:
    first, second = (
        read_record(RECORDS / f"class-{name}") for name in ("experiment1-2000-seed0", "experiment2-5000-seed0")
    )
    table = compare(first, second, ["f1"], ["first-500", "random-500"])
    assert table[["asked", "questions", "metric"]].to_numpy().tolist() == [
        ["first-500", 500, "F1"],
        ["random-500", 500, "F1"],
    ]
    for _, line in table.iterrows():
        recorded = [run.scores[line["asked"]].f1.value for run in (first, second)]
        assert (line["first"], line["second"]) == pytest.approx(recorded, abs=0.011)


def test_runs_without_a_question_in_common_are_not_compared(runs: dict[str, Run], squad: Run) -> None:
    with pytest.raises(RecordError, match="share no question"):
        compare(squad, runs["quick-baseline-100-seed0"])
