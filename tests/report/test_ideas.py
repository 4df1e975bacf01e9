"""What ideas were worth: gains by hand, what they cost, and the luck of the best of many."""

import pytest

from qa_helpers.evaluation.comparisons import gains_over_blocks, paired_difference
from qa_helpers.evaluation.statistics import Interval
from qa_helpers.experiment.catalogue import SEEDS, at_size, cloze, idea
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import load_records
from qa_helpers.experiment.spec import EvalSet, change
from qa_helpers.report.ideas import confirmations, luck_of_the_best, trained_on, trials, verdict


@pytest.fixture(scope="module")
def recorded():
    return load_records("quick-baseline-100-*")["quick-baseline-100-seed0"]


def run_of(experiment, recorded, right, steps=313):
    """A run of `experiment` on the four first questions of a record, of which `right` are answered exactly."""
    first = {name: getattr(recorded.questions, name)[:4] for name in ("id", "prediction", "confidence")}
    relation = ["but for case" if answer else "elsewhere" for answer in right]
    questions = recorded.questions.model_copy(update=first | {"relation": relation, "f1": [0.5 * r for r in right]})
    asked = change(experiment, evaluations={"all": EvalSet(), "few": EvalSet(limit=2)})
    changes = {"experiment": asked, "questions": questions, "validation_size": 4, "losses": [(steps, 1.0)]}
    return recorded.model_copy(update=changes)


def test_a_gain_is_over_the_run_of_the_same_size_and_seed_without_the_idea(recorded):
    base = run_of(at_size(1_000), recorded, [0, 0, 1, 1])
    better = run_of(idea("epochs-10", 1_000), recorded, [1, 1, 1, 1])
    worse = run_of(idea("batch-8", 1_000), recorded, [0, 0, 0, 1])
    other_seed = run_of(idea("smoothing", 1_000, 1), recorded, [1, 1, 1, 1])  # nothing of seed 1 to compare it with
    runs = {run.experiment.name: run for run in (worse, base, other_seed, better)}
    table = trials(runs, 1_000)
    assert table[["idea", "seed", "questions", "cost"]].to_numpy().tolist() == [
        ["epochs-10", 0, 4, 2.0],
        ["batch-8", 0, 4, 1.0],
    ]
    assert [gain.value for gain in table["gain"]] == [50.0, -25.0]
    assert table.loc[0, "p"] == 0.5  # two questions changed, both for the better
    assert list(table["verdict"]) == [verdict(gain) for gain in table["gain"]]
    assert trials(runs, 2_000).empty


def test_what_an_idea_rests_on_counts_into_its_cost(recorded):
    sizes = {at_size(1_000, seed).name: run_of(at_size(1_000, seed), recorded, [0, 0, 1, 1]) for seed in SEEDS}
    together = idea("ensemble", 1_000)
    first = cloze()
    after = idea("cloze-first", 1_000)
    runs = sizes | {
        together.name: run_of(together, recorded, [1, 1, 1, 1], steps=0),
        first.name: run_of(first, recorded, [0, 0, 0, 0], steps=250),
        after.name: run_of(after, recorded, [0, 0, 1, 1]),
    }
    assert trained_on(runs[together.name], runs) == 3 * 5_000
    assert trained_on(runs[first.name], runs) == 250 * 16
    assert trained_on(runs[after.name], runs) == 5_000 + 250 * 16
    assert trials(runs, 1_000).set_index("idea")["cost"].to_dict() == {"ensemble": 3.0, "cloze-first": 1.8}


@pytest.mark.parametrize(
    ("gain", "words"),
    [((2, 0.1, 4), "better"), ((-2, -4, -0.1), "worse"), ((2, -1, 5), "not told apart"), ((0, 0, 0), "not told apart")],
)
def test_a_verdict_is_whether_the_interval_excludes_zero(gain, words):
    assert verdict(Interval(*gain)) == words


@pytest.fixture
def confirmed_runs(recorded):
    """Two ideas with all seeds, one with a single seed, and one that combines runs."""
    right = {  # by idea, what each seed's run has right of four questions
        "": ([0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]),
        "batch-8": ([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]),
        "cosine": ([1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1]),
        "ensemble": ([1, 1, 1, 1],) * 3,
    }
    experiments = {
        (which, seed): idea(which, 5_000, seed) if which else at_size(5_000, seed) for which in right for seed in SEEDS
    }
    runs = {one.name: run_of(one, recorded, right[which][seed]) for (which, seed), one in experiments.items()}
    lonely = idea("smoothing", 5_000, 1)
    return runs | {lonely.name: run_of(lonely, recorded, [1, 1, 1, 1])}


def test_an_idea_is_confirmed_over_all_its_seeds(confirmed_runs):
    (_, better), (_, idle) = confirmations(confirmed_runs, 5_000, "all").iterrows()
    assert (better.idea, idle.idea) == ("cosine", "batch-8")
    assert better.gains == (50.0, 50.0, 25.0)
    assert idle.gains == (0.0, 25.0, -25.0)
    base, cosine = [50, 25, 50], [100, 75, 75]
    assert better.by_seeds == gains_over_blocks(base, {"idle": [50, 50, 25], "better": cosine}, True)["better"]
    each = {"without": [0, 0, 200 / 3, 100], "with": [100, 100 / 3, 100, 100]}  # a question each, mean of the seeds
    assert better.by_questions == pytest.approx(paired_difference(each["without"], each["with"]))
    assert confirmations(confirmed_runs, 5_000, "few").loc[0, "gains"] == (100.0, 50.0, 50.0)
    assert confirmations(confirmed_runs, 1_000).empty


def test_seeds_that_were_asked_other_questions_are_refused(confirmed_runs):
    name = at_size(5_000, 1).name
    run = confirmed_runs[name]
    turned = run.questions.model_copy(update={"id": run.questions.id[::-1]})
    confirmed_runs[name] = run.model_copy(update={"questions": turned})
    with pytest.raises(RecordError, match="'batch-8' on 5,000 questions were not asked the same questions"):
        confirmations(confirmed_runs, 5_000, "all")


def test_of_eight_recorded_ideas_only_the_two_learning_rates_are_told_to_be_worse():
    """Three runs each tell a gain to 0.80 points where eight are looked at together, not to 0.57 as for one alone."""
    confirmed = confirmations(load_records("class-*"), 5_000, "all")
    assert len(confirmed) == 8
    assert set(confirmed.loc[confirmed["verdict"] != "not told apart", "idea"]) == {"lr-half", "lr-double"}
    assert {round(by_seeds.high - by_seeds.value, 2) for by_seeds in confirmed["by_seeds"]} == {0.80}


@pytest.mark.parametrize(
    ("questions", "seeds", "words"),
    [
        ((2, 1, 3), (2, 0.1, 4), "better"),
        ((2, 1, 3), (2, -1, 5), "not told apart"),
        ((2, -1, 5), (2, 1, 3), "not told apart"),
        ((-2, -3, -1), (-2, -3, -1), "worse"),
        ((-2, -3, -1), (-2, -5, 1), "not told apart"),
    ],
)
def test_both_intervals_must_agree(questions, seeds, words):
    assert verdict(Interval(*questions), Interval(*seeds)) == words


def test_the_best_of_many_that_do_nothing_seems_to_gain():
    """The expected largest of 2, 5 and 14 standard normals: 0.564, 1.163 and 1.703 (Harter 1961)."""
    for ideas, expected in ((1, 0.0), (2, 0.564), (5, 1.163), (14, 1.703)):
        assert luck_of_the_best(2.0, ideas) == pytest.approx(2 * expected, abs=0.05)
