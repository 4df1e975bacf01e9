"""Statistics: intervals against the normal approximation and by simulation; tests against hand-counted cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qa_helpers import statistics
from qa_helpers.statistics import Interval, bootstrap_mean, mcnemar, paired_difference


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


@pytest.mark.slow
def test_the_interval_covers_the_truth_in_95_of_100_cases(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)  # coverage hardly depends on it, time does
    simulations, covered = 1_500, 0
    for seed in range(simulations):
        interval = bootstrap_mean(binary(200, 0.4, seed), seed)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.93 <= covered / simulations <= 0.97


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
def test_the_interval_holds_the_mean_and_stays_within_the_values(values):
    interval = bootstrap_mean(values)
    assert min(values) <= interval.low <= interval.value <= interval.high <= max(values)
    assert interval.value == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("values", [[7.0], [0.0] * 50, [100.0] * 3])
def test_equal_values_have_an_interval_of_no_width(values):
    assert bootstrap_mean(values) == (values[0],) * 3


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


# ---- two runs on the same questions -----------------------------------------------------------------------------
def runs(size=400):
    """Two runs that are right on mostly the same questions, the second on a few more."""
    draw = np.random.default_rng(3)
    hard = draw.random(size)
    return (hard < 0.5).astype(float), (hard + draw.normal(0, 0.03, size) < 0.55).astype(float)


def test_pairing_narrows_the_interval_of_a_difference():
    first, second = runs()
    paired = paired_difference(first, second)
    unpaired_width = 2 * 1.96 * math.sqrt(first.var() / len(first) + second.var() / len(second))
    assert paired.value == pytest.approx(second.mean() - first.mean())
    assert paired.high - paired.low < 0.5 * unpaired_width
    assert paired.low > 0  # sees the gain, which the unpaired interval does not:
    assert paired.value < unpaired_width / 2


def test_the_difference_changes_its_sign_with_the_order():
    first, second = runs()
    assert paired_difference(second, first).value == -paired_difference(first, second).value
    assert paired_difference(first, first) == (0, 0, 0)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (7, 7, 1.0),
    ],
)
def test_mcnemars_p_counted_by_hand(only_first, only_second, p):
    first = [True] * only_first + [False] * only_second + [True] * 9 + [False] * 4  # the rest agree and do not count
    second = [False] * only_first + [True] * only_second + [True] * 9 + [False] * 4
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == pytest.approx(p)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_test_on_the_questions_that_differ(pairs):
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    n, extreme = only_first + only_second, max(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(extreme, n + 1)) / 2**n
    p = mcnemar(first, second)
    assert p == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(np.array(first, dtype=int), np.array(second, dtype=int)) == p


@pytest.mark.parametrize("compare", [paired_difference, mcnemar])
def test_runs_on_other_questions_are_refused(compare):
    with pytest.raises(ValueError, match="same questions; got 3 and 2"):
        compare([1, 0, 1], [1, 0])
