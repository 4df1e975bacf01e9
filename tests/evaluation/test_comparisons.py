"""Comparisons of runs: intervals by simulation and against published tables, tests against hand-counted cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qa_helpers.evaluation import statistics
from qa_helpers.evaluation.comparisons import gains_over_blocks, mcnemar, paired_difference, win_rate
from qa_helpers.evaluation.statistics import bootstrap_mean


def runs(size=400):
    """Two runs that are right on mostly the same questions, the second on a few more."""
    draw = np.random.default_rng(3)
    hard = draw.random(size)
    return (hard < 0.5).astype(float), (hard + draw.normal(0, 0.03, size) < 0.55).astype(float)


def binary(size, share, seed=0):
    return (np.random.default_rng(seed).random(size) < share).astype(float)


def test_each_question_its_own_cluster_is_the_ordinary_interval():
    values = binary(300, 0.4)
    assert bootstrap_mean(values, clusters=range(300)) == pytest.approx(bootstrap_mean(values))
    first, second = runs()
    assert paired_difference(first, second, clusters=range(400)) == pytest.approx(paired_difference(first, second))


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


@pytest.mark.parametrize("runs_alike", [[0.0] * 200, [100.0] * 200, [100.0] * 120 + [0.0] * 80])
def test_runs_that_agree_everywhere_may_differ_on_other_questions(runs_alike):
    unseen = 100 * (1 - 0.025 ** (1 / 200))  # of so many questions, 200 hold none in one case of 40
    assert paired_difference(runs_alike, runs_alike) == pytest.approx((0, -unseen, unseen))


@given(st.integers(0, 11), st.integers(0, 11), st.integers(0, 300))
def test_the_interval_of_a_few_differences_holds_0_where_mcnemar_says_so(only_first, only_second, others):
    if only_first + only_second >= statistics.FEW:
        only_second = statistics.FEW - 1 - only_first
    others = max(others, only_first + only_second, 1)  # so that to agree is the most frequent
    first = np.repeat([1.0, 0.0, 1.0], [only_first, only_second, others])
    second = np.repeat([0.0, 1.0, 1.0], [only_first, only_second, others])
    difference = paired_difference(first, second)
    assert (difference.low <= 0 <= difference.high) == (mcnemar(first, second) > 0.05)
    assert difference.low <= difference.value <= difference.high


def test_mcnemar_is_of_right_and_wrong_only():
    with pytest.raises(ValueError, match="compare other scores by paired_difference"):
        mcnemar([0.4] * 20, [0.9] * 20)
    with pytest.raises(ValueError, match="1 and 0"):
        mcnemar([100, 0], [0, 0])


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


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_two_sides_of_a_comparison_add_up_to_all(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    one, other = win_rate(first, second), win_rate(second, first)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.rate.value + other.rate.value == pytest.approx(100)
    assert one.p == pytest.approx(other.p)


# ---- win rates -------------------------------------------------------------------------------------------------
def test_a_win_rate_counts_ties_as_half_and_tests_wins_against_losses() -> None:
    before, after = [0.0, 0.5, 1.0, 0.2, 0.2, 0.0], [1.0, 0.5, 0.0, 0.3, 0.9, 0.0]
    found = win_rate(before, after)
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.rate.value == pytest.approx(100 * 4 / 6)
    assert found.p == pytest.approx(stats.binomtest(1, 4).pvalue)


def test_a_win_rate_needs_the_same_questions() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        win_rate([1, 2], [1, 2, 3])


def test_the_win_rate_of_answers_that_all_win_or_all_tie_has_an_interval() -> None:
    assert win_rate([0] * 20, [1] * 20).rate == pytest.approx(bootstrap_mean([100] * 20))
    half = 50 * (1 - 0.025 ** (1 / 20))
    assert win_rate([1] * 20, [1] * 20).rate == pytest.approx((50, 50 - half, 50 + half))
    assert win_rate([0] * 20, [1] * 19 + [0]).rate.low < 82  # a tie more is no better


# ---- gains over blocks ------------------------------------------------------------------------------------------
def test_the_gain_of_one_treatment_is_that_of_scipys_paired_t_test():
    base, other = [54.5, 54.2, 54.6, 53.0], [54.9, 54.0, 55.3, 53.3]
    expected = stats.ttest_rel(other, base).confidence_interval(0.95)
    gain = float(np.mean(other) - np.mean(base))
    assert gains_over_blocks(base, {"one": other})["one"] == pytest.approx((gain, expected.low, expected.high))


def test_the_residual_of_a_block_design_counted_by_hand():
    found = gains_over_blocks([1, 2, 6], {"a": [2, 4, 3], "b": [3.0, 4.5, 6.0]})
    # Column means 2, 3.5, 5; residuals -0.5, -1, 1.5 of the base, 0.5, 1, -1.5 of a and none of b.
    half = stats.t.ppf(0.975, 4) * math.sqrt(2 * (2 * (0.25 + 1 + 2.25)) / 4 / 3)
    assert found["a"] == pytest.approx((0.0, -half, half))
    assert found["b"] == pytest.approx((1.5, 1.5 - half, 1.5 + half))


def test_scores_that_never_scatter_do_not_tell_how_others_would():
    assert gains_over_blocks([0.0] * 3, {"a": [0.0] * 3, "b": [2.0] * 3}) == {
        "a": (0, -math.inf, math.inf),
        "b": (2, -math.inf, math.inf),
    }


@pytest.mark.parametrize(("blocks", "rows"), [(3, 8), (5, 2), (2, 1)])
def test_gains_of_many_treatments_hold_at_once_in_95_of_100_cases(blocks, rows):
    random = np.random.default_rng(0)
    cases = 2_000
    covered = 0
    for _ in range(cases):
        base, *others = random.normal(0, 1, (rows + 1, blocks)).tolist()
        found = gains_over_blocks(base, {str(place): one for place, one in enumerate(others)}, together=True)
        covered += all(interval.low <= 0 <= interval.high for interval in found.values())
    assert 0.935 < covered / cases < 0.965


def test_gains_that_hold_at_once_are_as_far_as_dunnetts_table_says():
    """Dunnett 1964, two-sided, 5 %; for a single treatment it is Student's t."""
    random = np.random.default_rng(0)
    for treatments, blocks, quantile in ((1, 5, stats.t.ppf(0.975, 4)), (2, 6, 2.57), (4, 6, 2.65)):
        base, *others = random.normal(0, 1, (treatments + 1, blocks)).tolist()
        named = {str(place): one for place, one in enumerate(others)}
        alone, together = (gains_over_blocks(base, named, both)["0"] for both in (False, True))
        freedom = treatments * (blocks - 1)
        wider = (together.high - together.low) / (alone.high - alone.low)
        assert wider * stats.t.ppf(0.975, freedom) == pytest.approx(quantile, abs=0.006)


def test_gains_cover_the_truth_in_95_of_100_cases_though_they_share_a_base():
    random = np.random.default_rng(0)
    truth = {name: float(place) for place, name in enumerate("abcdefgh")}
    cases = 2_000
    covered = 0
    for _ in range(cases):
        seeds, base = random.normal(0, 2.0, 3), random.normal(0, 0.4, 3)
        others = {name: (seeds + gain + random.normal(0, 0.4, 3)).tolist() for name, gain in truth.items()}
        found = gains_over_blocks((seeds + base).tolist(), others)
        covered += sum(found[name].low <= gain <= found[name].high for name, gain in truth.items())
    assert 0.94 < covered / (cases * len(truth)) < 0.96


@pytest.mark.parametrize(
    ("base", "others"), [([1.0, 2.0], {}), ([1.0], {"a": [2.0]}), ([1.0, 2.0], {"a": [1.0, 2.0, 3.0]})]
)
def test_blocks_that_tell_no_scatter_are_refused(base, others):
    with pytest.raises(ValueError, match="two blocks or more"):
        gains_over_blocks(base, others)
