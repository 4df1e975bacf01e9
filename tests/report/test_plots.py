"""Figures: drawn for real, and asked what they show."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats

from qa_helpers.course.checks import check
from qa_helpers.data.squad import load_qa
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation.statistics import expected_calibration
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.scores import Score
from qa_helpers.model.load import load_tokenizer
from qa_helpers.report import plots
from qa_helpers.report.learning_curve import power_law

RECORDS = Path(__file__).parents[2] / "records"


@pytest.fixture
def run() -> Run:
    return read_record(RECORDS / "class-baseline-1000-seed0")


@pytest.fixture(autouse=True)
def _close() -> object:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_losses_show_every_entry(run: Run) -> None:
    ax = plots.losses({"a run": run}, "title")
    assert ax.lines[0].get_xydata().tolist() == [[float(step), loss] for step, loss in run.losses]
    assert ax.get_xlabel() == "optimizer step"
    assert ax.get_legend().get_texts()[0].get_text() == "a run"


def test_epochs_show_training_and_validation(run: Run) -> None:
    figure = plots.epochs(run, "title")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[1].lines}
    assert drawn["EM, validation questions"] == [epoch.eval.exact_match for epoch in run.epochs]
    assert drawn["F1, training questions"] == [epoch.train.f1 for epoch in run.epochs]


def test_bars_write_their_numbers_in_the_given_form() -> None:
    ax = plots.bars({"one": 1.234, "two": -2.0}, "title", "x", "{:.1f}")
    assert {text.get_text() for text in ax.texts} == {"1.2", "-2.0"}


def test_quality_is_drawn_over_the_share_that_was_trained(run: Run) -> None:
    ax = plots.quality_by_share({"runs": ({"all": run}, "all"), "others": ({"all": run}, "all")}, "title")
    share, em = 100 * run.parameters[0] / run.parameters[1], run.scores["all"].exact_match
    bar, dot, _, other = ax.lines
    assert bar.get_xydata().tolist() == [[share, em.low], [share, em.high]]
    assert dot.get_xydata().tolist() == [[share, em.value]]
    assert ax.get_xscale() == "log"
    assert other.get_xdata()[0] > share, "a second series would hide the first"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["runs", "others"]
    assert [text.get_text() for text in ax.texts] == ["all"]


def test_learning_rates_are_drawn_in_their_order(run: Run) -> None:
    ax = plots.learning_rates({"lora": {1e-4: run, 1e-3: run}}, "all", "title")
    assert ax.lines[0].get_xdata().tolist() == [1e-4, 1e-3]
    assert ax.lines[0].get_ydata().tolist() == [run.scores["all"].exact_match.value] * 2


def test_intervals_span_low_to_high() -> None:
    ax = plots.intervals({"one": Score(value=50, low=40, high=61), "two": Score(value=10, low=5, high=15)}, "title")
    assert ax.lines[0].get_xdata().tolist() == [40, 61]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    low, high = ax.get_ylim()
    assert low > high, "the first must be on top"


def test_a_waterfalls_bars_begin_where_the_last_one_ended() -> None:
    ax = plots.waterfall({"first": 5, "then": 0, "besides": 3, "rest": 2}, "title")
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 5), (5, 0), (5, 3), (8, 2)]
    labels = [text.get_text() for text in ax.texts]
    assert labels == ["+5 → 50.0%", "+0 → 50.0%", "+3 → 80.0%", "2 (20.0%)"]
    assert ax.get_xlabel() == "questions"
    assert ax.get_xlim() == (0, 10)
    assert [bar.get_facecolor() for bar in ax.patches].count(plt.matplotlib.colors.to_rgba(plots.VERMILION)) == 1


def test_scaling_shows_points_laws_bands_and_the_held_out_run() -> None:
    points = {f"seed {seed}": {size: 20 + 10 * np.log10(size) + seed for size in (100, 200, 500)} for seed in (0, 1)}
    sizes, scores = zip(*[point for seed in points.values() for point in seed.items()], strict=True)
    fits = {"fitted": power_law(sizes, scores), "given": power_law(sizes, scores, 90)}
    ax = plots.scaling(points, fits, "title", {1_000: 50})
    drawn = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert list(drawn) == ["fitted", "given", "seed 0", "seed 1", "held out"]
    assert drawn["seed 1"].tolist() == [[size, score] for size, score in points["seed 1"].items()]
    assert drawn["held out"].tolist() == [[1_000, 50]]
    for (label, law), band in zip(fits.items(), ax.collections, strict=True):
        for size, score in drawn[label]:
            assert score == law.predict(size).value
        edge = band.get_paths()[0].vertices
        assert edge[:, 1].min() == pytest.approx(min(law.predict(size).low for size in drawn[label][:, 0]))
        assert edge[:, 1].max() == pytest.approx(max(law.predict(size).high for size in drawn[label][:, 0]))
        assert drawn[label][-1, 0] == pytest.approx(2_000), "the laws go beyond the largest size"
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["100", "200", "500", "1,000"]
    assert ax.get_legend().get_title().get_text() == "bands: 95 %, for the mean"


def test_scaling_draws_the_laws_as_far_as_is_asked() -> None:
    points = {"seed 0": {100: 30.0, 200: 40.0, 500: 50.0}}
    ax = plots.scaling(points, {"given": power_law((100, 200, 500), (30, 40, 50), 90)}, "title", until=10_000)
    assert ax.lines[0].get_xdata()[-1] == pytest.approx(10_000)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["100", "200", "500", "10,000"]


def test_scaling_needs_no_held_out_run() -> None:
    ax = plots.scaling({"seed 0": {100: 30.0, 200: 40.0}}, {}, "title")
    assert [line.get_label() for line in ax.lines] == ["seed 0"]


def test_scatter_names_every_point() -> None:
    points = {"a": (1.0, -2.0), "b": (0.5, 3.0)}
    ax = plots.scatter(points, "title", "small", "large")
    assert [line.get_xydata().tolist() for line in ax.lines[2:]] == [[list(place)] for place in points.values()]
    assert {text.get_text(): text.xy for text in ax.texts} == points
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("small", "large")


def test_reliability_shows_the_bins_that_hold_questions() -> None:
    ax = plots.reliability(expected_calibration([0.1, 0.2, 0.9], [0, 1, 1], bins=4), "title")
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in ax.patches] == [(0, 25, 50), (75, 25, 100)]
    assert [text.get_text() for text in ax.texts] == ["2", "1"]
    dots = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert dots["mean of the bin; calibration error 26.7 points"] == pytest.approx(np.array([[15, 50], [90, 100]]))


def test_windows_mark_the_answer_where_it_lies() -> None:
    row = load_qa("courseqa", "train", 6)[5]
    cut = make_windows([row], load_tokenizer(), max_length=80, stride=30)
    ax = plots.windows(cut, "title")
    marks = [patch for patch in ax.patches if patch.get_facecolor() == plt.matplotlib.colors.to_rgba(plots.VERMILION)]
    assert len(marks) == sum(window.start > 0 for window in cut) > 0
    begin = row["answers"]["answer_start"][0]
    assert all(mark.get_x() == begin and mark.get_width() == len(row["answers"]["text"][0]) for mark in marks)


def test_a_table_of_rows_keeps_each_value_as_it_is() -> None:
    table = plots.table(["name", "score", "score"], [("a", 3.14159, 1), ("b", 7, None)])
    assert table.texts().to_numpy().tolist() == [["a", "3.1", "1"], ["b", "7", "–"]]


def test_check_prints_or_fails(capsys: pytest.CaptureFixture[str]) -> None:
    check("EM", 38.8, above=30, below=60)
    assert capsys.readouterr().out == "check: EM is above 30 and below 60\n"
    with pytest.raises(AssertionError, match=r"expected: EM is above 30; it is 3\.9"):
        check("EM", 3.9, above=30)
    with pytest.raises(AssertionError):
        check("EM", float("nan"), above=30)


def test_lines_of_one_kind_look_the_same_and_stand_in_the_legend_once() -> None:
    series = {"PPO (seed 0)": ([0, 1], [0.0, 2.0]), "PPO (seed 1)": ([0, 1], [0.0, 3.0]), "DPO": ([0, 1], [1.0, 1.0])}
    ax = plots.lines(series, "title", "step", "reward")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 2], [0, 3], [1, 1]]
    one, same, other = ((line.get_color(), line.get_marker()) for line in ax.lines)
    assert one == same != other
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["PPO", "DPO"]


def test_an_image_in_a_notebook_carries_the_figure_in_words(run: Run) -> None:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        select_figure_formats(shell, {"png"})
        for _ in range(2):  # the second figure is told once, too
            figure = plots.losses({"a run": run}, "It falls").figure
            data, more = shell.display_formatter.format(figure)
            assert more["image/png"] == {"alt": "It falls; training loss (nats) against optimizer step"}
            assert data["image/png"].startswith(("iVBOR", b"\x89PNG"))
        assert plots.epochs(run, "Two panels").in_words() == (
            "Two panels; loss: loss (nats) against epoch; EM and F1: score (%) against epoch"
        )
    finally:
        InteractiveShell.clear_instance()
