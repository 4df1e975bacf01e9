"""Statistics: intervals against the normal approximation and by simulation; tests against hand-counted cases.

Simulations have fixed seeds, so that they give the same numbers each time.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional.classification import binary_calibration_error

from qa_helpers.evaluation import statistics
from qa_helpers.evaluation.comparisons import gains_over_blocks, mcnemar, paired_difference, win_rate
from qa_helpers.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    by_group,
    expected_calibration,
    questions_needed,
    questions_needed_unpaired,
)


def binary(size, share, seed=0):
    return (np.random.default_rng(seed).random(size) < share).astype(float)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.77])
def test_the_interval_of_a_share_is_that_of_the_normal_approximation(share):
    values = 100 * binary(500, share)
    interval = bootstrap_mean(values)
    half_width = 1.96 * values.std() / math.sqrt(500)
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)


def test_the_interval_of_a_skewed_score_is_scipys():
    values = np.random.default_rng(1).exponential(size=300)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=7).confidence_interval
    interval = bootstrap_mean(values)
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=0.07 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.07 * width)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)  # coverage hardly depends on it, time does


@pytest.mark.parametrize(("questions", "share"), [(200, 0.4), (500, 0.8)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(few_resamples, questions, share):
    simulations = 1_200
    intervals = [bootstrap_mean(binary(questions, share, seed), 10_000 + seed) for seed in range(simulations)]
    assert 0.93 <= np.mean([low <= share <= high for _, low, high in intervals]) <= 0.97


def test_the_paired_interval_covers_the_true_difference_in_95_of_100_cases(few_resamples):
    """Two runs that agree on 85 % of 300 questions; the second is right 5 points more often."""
    covered = []
    for seed in range(1_200):
        kind = np.random.default_rng(seed).choice(4, 300, p=[0.55, 0.30, 0.10, 0.05])
        first, second = np.isin(kind, [0, 3]), np.isin(kind, [0, 2])
        interval = paired_difference(first, second, 10_000 + seed)
        covered.append(interval.low <= 0.05 <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


@settings(max_examples=20)
@given(st.integers(20, 200), st.sampled_from([0.2, 1, 5]), st.integers(0, 2**32 - 1))
def test_the_interval_is_that_of_a_plain_resampling(questions, shape, seed):
    values = np.random.default_rng(seed + 1).beta(shape, 1, questions)  # nearly all 0, even, nearly all 1
    draws = np.random.default_rng(seed).choice(values, (10_000, len(values))).mean(axis=1)
    interval, deviation = bootstrap_mean(values, seed), np.std(values) / math.sqrt(len(values))
    assert interval.value == pytest.approx(np.mean(values))
    assert interval.low == pytest.approx(np.quantile(draws, 0.025), abs=0.35 * deviation)
    assert interval.high == pytest.approx(np.quantile(draws, 0.975), abs=0.35 * deviation)


def test_the_interval_narrows_with_the_root_of_the_questions():
    def width(size):
        interval = bootstrap_mean(binary(size, 0.5))
        return interval.high - interval.low

    assert width(100) / width(10_000) == pytest.approx(10, rel=0.15)


def test_the_interval_depends_on_the_seed_only_a_little():
    values = binary(200, 0.4)
    assert bootstrap_mean(values, 1) == bootstrap_mean(list(values), 1)
    one, other = bootstrap_mean(values, 1), bootstrap_mean(values, 2)
    assert one.low != other.low or one.high != other.high
    assert abs(one.low - other.low) < 0.15 * (one.high - one.low)


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_stays_within_the_bounds(values):
    interval = bootstrap_mean(values, bounds=(0, 1))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.value == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("values", [[], np.zeros((2, 3)), 5.0])
def test_no_values_have_no_interval(values):
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean(values)


def test_an_interval_as_text():
    assert str(Interval(38.84, 31.96, 45.61)) == "38.8 [32.0, 45.6]"


def test_all_of_squad_fits_into_memory_and_is_the_same_whatever_the_batches(monkeypatch):
    values = binary(10_570, 0.4)
    whole = bootstrap_mean(values)
    assert whole.low < whole.value < whole.high
    monkeypatch.setattr(statistics, "_BATCH_NUMBERS", 10_570 * 100)
    assert bootstrap_mean(values) == whole


# ---- where nearly all values are the same --------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "size"), [(20, 20), (19, 20), (0, 206), (3, 206), (11, 200), (490, 500), (1, 1)])
def test_where_nearly_all_are_right_or_wrong_the_interval_is_clopper_and_pearsons(right, size):
    values = [100] * right + [0] * (size - right)
    exact = stats.binomtest(right, size).proportion_ci(method="exact")
    assert bootstrap_mean(values) == pytest.approx((100 * right / size, 100 * exact.low, 100 * exact.high))
    assert bootstrap_mean(np.array(values) / 100, bounds=(0, 1)) == pytest.approx((right / size, *exact))


def test_the_usual_interval_is_the_bootstraps_to_the_digit():
    values = np.repeat([100.0, 0.0], [12, 194])
    draw = np.random.default_rng(0)
    expected = stats.bootstrap((values,), np.mean, n_resamples=2_000, method="percentile", rng=draw)
    assert bootstrap_mean(values) == (values.mean(), *expected.confidence_interval)


SHARES = (1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99)  # percent, of the table


LONG = [pytest.param(questions, marks=pytest.mark.benchmark) for questions in (200, 500)]  # a minute


@pytest.mark.parametrize("questions", [20, 33, 40, 50, 100, 206, *LONG])
def test_every_share_is_covered_in_93_of_100_cases(questions):
    """Over all that can happen, each weighted by its probability.

    `pytest -s -m "" tests/evaluation/test_statistics.py -k every_share` prints the table. The ends of a bootstrap
    interval depend a little on which of the questions are right, so each number of them stands in several orders.
    """
    percent = np.arange(1, 100)
    coverage = np.zeros(len(percent))
    for right in range(questions // 2 + 1):
        within = share_within(right, questions, percent)
        coverage += stats.binom.pmf(right, questions, percent / 100) * within
        if 2 * right < questions:  # as many wrong have the mirror image of the interval
            coverage += stats.binom.pmf(questions - right, questions, percent / 100) * within[::-1]
    print(f"\n{questions:3} questions:", *(f"{share} %: {100 * coverage[share - 1]:.1f} " for share in SHARES))
    assert coverage.min() >= 0.93, f"{percent[coverage.argmin()]} %"


def share_within(right, questions, percent):
    """In how many of some orders of right and wrong the interval holds a percentage."""
    orders = 6 if right >= statistics.FEW else 1
    within = np.zeros(len(percent))
    for order in range(orders):
        values = np.random.default_rng(order).permutation(np.repeat([100.0, 0.0], [right, questions - right]))
        _, low, high = bootstrap_mean(values, bounds=(0, 100))
        within += (low - 1e-9 <= percent) & (percent <= high + 1e-9)
    return within / orders


SIMULATED = [(20, share) for share in SHARES] + [(206, share) for share in (1, 2, 98, 99)]
EVERY_CELL = [(questions, share) for questions in (20, 40, 50, 100, 200, 206, 500) for share in SHARES]


@pytest.mark.parametrize(
    ("questions", "share"), SIMULATED + [pytest.param(*cell, marks=pytest.mark.benchmark) for cell in EVERY_CELL]
)
def test_a_simulation_finds_it_covered_as_often(questions, share):
    simulations = 1_000
    random = np.random.default_rng(questions + share)
    drawn = 100.0 * (random.random((simulations, questions)) < share / 100)
    covered = np.mean([low - 1e-9 <= share <= high + 1e-9 for _, low, high in map(bootstrap_mean, drawn)])
    print(f"\n{questions:3} questions, {share:2} % right: covered in {100 * covered:.1f} %")
    assert covered >= 0.93 - 2.6 * math.sqrt(0.93 * 0.07 / simulations)  # 0.5 % of simulations, by chance


def test_f1_that_is_all_but_equal_is_as_uncertain_as_right_and_wrong():
    assert bootstrap_mean([0.0] * 206).high == pytest.approx(100 * (1 - 0.025 ** (1 / 206)))
    half = bootstrap_mean([50.0] + [0.0] * 205)
    assert 0 < half.low < half.value == pytest.approx(50 / 206)
    assert bootstrap_mean([0.0] * 206).high < half.high < bootstrap_mean([100.0] + [0.0] * 205).high
    assert bootstrap_mean([7.0]) == pytest.approx((7, 7 * 0.025, 7 + 93 * 0.975))


def test_equal_values_without_bounds_say_nothing_about_others():
    assert bootstrap_mean([-3.0] * 20) == (-3, -math.inf, math.inf)
    assert bootstrap_mean([0.5] * 20, bounds=(0, math.inf)) == (0.5, pytest.approx(0.5 * 0.025 ** (1 / 20)), math.inf)
    assert bootstrap_mean([0.5] * 20 + [-2.0]).low > -2  # unequal ones are drawn, as ever


def test_values_out_of_bounds_are_refused():
    with pytest.raises(ValueError, match="values of 0 to 100 do not lie within the bounds 0 to 1"):
        bootstrap_mean([0, 100], bounds=(0, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    strange, plain = [1.0, value, 0.0], [1.0, 0.0, 1.0]
    tries = (
        lambda: bootstrap_mean(strange),
        lambda: bootstrap_mean(strange, clusters=["a", "b", "a"]),
        lambda: by_group(strange, ["a", "b", "a"]),
        lambda: paired_difference(strange, plain),
        lambda: paired_difference(strange, strange),
        lambda: win_rate(plain, strange),
        lambda: gains_over_blocks(plain, {"a": strange}),
    )
    for action in tries:
        with pytest.raises(ValueError, match=f"value 2 of 3 is {value}; an interval needs finite numbers"):
            action()
    with pytest.raises(ValueError, match="right and wrong, 1 and 0"):
        mcnemar(strange, plain)
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration([0.5, value], [1, 0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration([0.5, 0.5], [1, value])
    for numbers in ((value, 0.1), (0.02, value), (0.02, 0.1, value), (0.02, 0.1, 0.8, value)):
        with pytest.raises(ValueError, match="needs 0 <"):
            questions_needed(*numbers)
    for numbers in ((value, 0.1), (0.2, value), (0.2, 0.1, value), (0.2, 0.1, 0.8, value)):
        with pytest.raises(ValueError, match="needs"):
            questions_needed_unpaired(*numbers)


def test_right_in_all_clusters_counts_the_clusters():
    labels = np.repeat(np.arange(20), 10)
    assert bootstrap_mean([100] * 200, clusters=labels) == pytest.approx(bootstrap_mean([100] * 20))
    assert bootstrap_mean([100] * 200).low > 98
    nearly = np.repeat([0.0, 100.0], [8, 192])
    together, apart = bootstrap_mean(nearly, clusters=labels), bootstrap_mean(nearly, clusters=np.arange(200) % 20)
    assert apart == pytest.approx(bootstrap_mean(nearly))
    assert together.low < 80 < 92 < apart.low  # all that is wrong is of one cluster


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99])
def test_clusters_that_are_right_or_wrong_as_a_whole_are_covered(share):
    labels = np.repeat(np.arange(20), 5)
    covered = []
    for seed in range(400):
        right = np.repeat(np.random.default_rng(seed).random(20) < share, 5)
        interval = bootstrap_mean(100.0 * right, seed, labels)
        covered.append(interval.low <= 100 * share <= interval.high)
    assert np.mean(covered) >= 0.91


# ---- questions that are not independent --------------------------------------------------------------------------
def correlated(clusters, size, seed):
    """0 or 1 a question; the articles' shares of right answers, 0.4 on average, have a standard deviation of 0.2."""
    draw = np.random.default_rng(seed)
    share = draw.beta(2, 3, clusters)
    return (draw.random((clusters, size)) < share[:, None]).astype(float).ravel(), np.repeat(np.arange(clusters), size)


@pytest.mark.parametrize("sizes", [[20] * 10, [1, 5, 60, 10, 24, 40, 30, 30]])
def test_a_cluster_interval_is_that_of_a_plain_resampling(sizes):
    draw = np.random.default_rng(1)
    groups = [draw.normal(draw.normal(), 1, size) for size in sizes]
    labels = [f"article {number}" for number, size in enumerate(sizes) for _ in range(size)]
    means = [np.concatenate([groups[i] for i in draw.choice(len(sizes), len(sizes))]).mean() for _ in range(10_000)]
    interval = bootstrap_mean(np.concatenate(groups), clusters=labels)
    assert interval.value == pytest.approx(np.concatenate(groups).mean())
    assert interval.low == pytest.approx(np.quantile(means, 0.025), abs=0.2 * np.std(means))
    assert interval.high == pytest.approx(np.quantile(means, 0.975), abs=0.2 * np.std(means))


def test_clusters_matter_where_their_questions_are_alike_and_only_there():
    def width(values, clusters):
        interval = bootstrap_mean(values, clusters=clusters)
        return interval.high - interval.low

    values, labels = correlated(40, 20, 0)
    assert width(values, labels) > 1.5 * width(values, None)
    shuffled = np.random.default_rng(0).permutation(values)
    assert width(shuffled, labels) == pytest.approx(width(shuffled, None), rel=0.25)


def test_the_cluster_interval_covers_other_articles_where_the_ordinary_one_does_not(few_resamples):
    clustered, ordinary = [], []
    for seed in range(600):
        values, labels = correlated(40, 10, seed)
        for found, clusters in ((clustered, labels), (ordinary, None)):
            interval = bootstrap_mean(values, 10_000 + seed, clusters)
            found.append(interval.low <= 0.4 <= interval.high)
    assert 0.92 <= np.mean(clustered) <= 0.97
    assert np.mean(ordinary) < 0.85


def test_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got 3 values and 2 labels"):
        bootstrap_mean([0, 1, 1], clusters=["a", "b"])
    with pytest.raises(ValueError, match="all questions are of one cluster, 'Super_Bowl_50'"):
        bootstrap_mean([0, 1, 1], clusters=["Super_Bowl_50"] * 3)


def test_groups_are_sorted_by_their_means():
    means = by_group([1, 0, 0, 1, 1], ["b", "a", "c", "a", "b"])
    assert {group: interval.value for group, interval in means.items()} == {"b": 1, "a": 0.5, "c": 0}
    assert list(means) == ["b", "a", "c"]
    assert means["a"] == bootstrap_mean([0, 1])
    assert means["b"] == pytest.approx((1, 0.025**0.5, 1))
    assert means["c"] == pytest.approx((0, 0, 0.975))  # a fraction, too, though all that is seen of it is 0
    with pytest.raises(ValueError, match="longer"):
        by_group([1, 0], ["a"])


@pytest.mark.parametrize(("questions", "disagreement"), [(20, 0.05), (20, 0.1), (200, 0.005), (200, 0.01), (200, 0.02)])
@pytest.mark.parametrize("share_of_second", [0.5, 0.7, 0.9, 1.0])
def test_a_small_difference_is_covered_in_93_of_100_cases(few_resamples, questions, disagreement, share_of_second):
    """Over all that can happen with fewer than `FEW` differences, which are nearly all cases here."""
    covered = 0.0
    for differing in range(statistics.FEW):
        for gained in range(differing + 1):
            numbers = [gained, differing - gained, questions - differing]
            difference = np.repeat([1.0, -1.0, 0.0], numbers)
            low, high = bootstrap_mean(difference, bounds=(-1, 1))[1:]
            probability = stats.binom.pmf(differing, questions, disagreement)
            probability *= stats.binom.pmf(gained, differing, share_of_second)
            covered += probability * (low <= disagreement * (2 * share_of_second - 1) <= high)
    assert covered >= 0.93


# ---- how many questions -----------------------------------------------------------------------------------------
def power_of_mcnemar(questions, difference, disagreement):
    """How often `mcnemar` finds the difference, in 4,000 simulated pairs of runs."""
    right = np.array([disagreement - difference, disagreement + difference]) / 2
    only_one = np.random.default_rng(0).multinomial(questions, [*right, 1 - disagreement], 4_000)[:, :2]
    return np.mean(2 * stats.binom.cdf(only_one.min(axis=1), only_one.sum(axis=1), 0.5) <= 0.05)


@pytest.mark.parametrize(
    ("difference", "disagreement"), [(0.02, 0.1), (0.02, 0.2), (0.05, 0.15), (0.1, 0.1), (0.2, 0.3)]
)
def test_a_paired_comparison_of_that_many_questions_has_that_power(difference, disagreement):
    questions = questions_needed(difference, disagreement)
    power = power_of_mcnemar(questions, difference, disagreement)
    assert 0.74 <= power <= 0.82  # mcnemar is exact and so has a little less than 0.8
    assert power_of_mcnemar(questions // 2, difference, disagreement) < power - 0.2


@pytest.mark.parametrize(("first", "second"), [(0.80, 0.82), (0.5, 0.75), (0.77, 0.82), (0.10, 0.25)])
def test_an_unpaired_comparison_of_that_many_questions_has_that_power(first, second):
    questions = questions_needed_unpaired(first, second)
    shares = np.random.default_rng(0).binomial(questions, [first, second], (20_000, 2)) / questions
    mean = shares.mean(axis=1)
    with np.errstate(invalid="ignore"):
        z = (shares[:, 1] - shares[:, 0]) / np.sqrt(2 * mean * (1 - mean) / questions)
    assert np.mean(np.abs(z) >= 1.96) == pytest.approx(0.8, abs=0.03)


def test_questions_needed_are_the_published_numbers():
    assert questions_needed(0.40, 0.50) == 23  # powerandsamplesize.com, McNemar; R's MESS, too: 22.0 before rounding up
    assert questions_needed_unpaired(0.50, 0.75, power=0.90) == 77  # the example of R's power.prop.test: 76.7


@given(st.floats(0.005, 0.2), st.floats(0, 0.5), st.floats(0.5, 0.99))
def test_more_questions_are_needed_for_less_difference_more_disagreement_or_more_power(difference, more, power):
    disagreement = difference + more
    questions = questions_needed(difference, disagreement, power)
    assert questions >= 1
    assert questions_needed(difference / 2, disagreement, power) >= questions
    assert questions_needed(difference, min(1, disagreement * 1.1), power) >= questions
    assert questions_needed(difference, disagreement, power + 0.005) >= questions
    first = (1 - difference) / 2  # two runs whose errors have nothing to do with each other
    unpaired = questions_needed_unpaired(first, first + difference, power)
    independent = first * (1 - first - difference) + (1 - first) * (first + difference)
    assert questions_needed(difference, independent, power) == pytest.approx(unpaired, rel=0.1, abs=3)


@pytest.mark.parametrize("numbers", [(0, 0.1), (-0.02, 0.1), (0.2, 0.1), (0.2, 1.1), (math.nan, 0.1)])
def test_impossible_differences_are_refused(numbers):
    with pytest.raises(ValueError, match="0 < difference <= disagreement <= 1"):
        questions_needed(*numbers)


def test_impossible_shares_and_powers_are_refused():
    for numbers in ((0.8, 0.8), (80, 82), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="two different shares"):
            questions_needed_unpaired(*numbers)
    for numbers in ((1, 0.05), (0.8, 0), (0.05, 0.8)):
        with pytest.raises(ValueError, match="0 < level < power < 1"):
            questions_needed(0.02, 0.1, *numbers)


# ---- calibration ------------------------------------------------------------------------------------------------
def test_a_reliability_table_counted_by_hand():
    table = expected_calibration([0.0, 0.1, 0.5, 0.45, 0.95], [0, 1, 1, 0, 1], bins=2)
    assert table.edges.tolist() == [0, 0.5, 1]
    assert table.questions.tolist() == [4, 1]  # 0.5 belongs to the lower bin
    assert table.confidence == pytest.approx([1.05 / 4, 0.95])
    assert table.accuracy == pytest.approx([2 / 4, 1])
    assert table.error == pytest.approx(4 / 5 * (0.5 - 1.05 / 4) + 1 / 5 * 0.05)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_calibration_adds_up_and_equals_torchmetrics(answers, bins):
    confidence, correct = np.array(answers, dtype=float).T
    table = expected_calibration(confidence, correct, bins)
    full = table.questions > 0
    assert table.questions.sum() == len(answers)
    assert np.isnan(table.accuracy[~full]).all()
    assert (table.questions * table.accuracy)[full].sum() == pytest.approx(correct.sum())
    assert (table.questions * table.confidence)[full].sum() == pytest.approx(confidence.sum())
    assert np.all(
        (table.confidence >= table.edges[:-1] - 1e-9)[full] & (table.confidence <= table.edges[1:] + 1e-9)[full]
    )
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= table.error <= 1
    assert expected_calibration(confidence, correct, 1).error == pytest.approx(abs(confidence.mean() - correct.mean()))
    if not np.isin(
        np.float32(confidence), np.float32(table.edges)
    ).any():  # torchmetrics puts an edge into the bin above
        preds, target = torch.tensor(confidence), torch.tensor(correct, dtype=torch.int)
        assert table.error == pytest.approx(binary_calibration_error(preds, target, bins).item(), abs=1e-5)


def test_answers_that_are_right_as_often_as_said_have_nearly_no_error():
    confidence = np.random.default_rng(0).random(100_000)
    correct = np.random.default_rng(1).random(100_000) < confidence
    assert expected_calibration(confidence, correct).error < 0.01
    assert expected_calibration(np.sqrt(confidence), correct).error == pytest.approx(1 / 6, abs=0.01)  # 2/3 - 1/2


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "problem"),
    [
        ([], [], 10, "a confidence and a result"),
        ([0.5], [1, 0], 10, "a confidence and a result"),
        ([0.5], [1], 0, "0 bins"),
        ([50.0], [1], 10, "between 0 and 1"),
        ([0.5], [100], 10, "between 0 and 1"),
        ([math.nan], [1], 10, "between 0 and 1"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence, correct, bins, problem):
    with pytest.raises(ValueError, match=problem):
        expected_calibration(confidence, correct, bins)
