"""The power law: known laws recovered, against SciPy's curve_fit, and its intervals by simulation (fixed seeds)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from qa_helpers.report import learning_curve
from qa_helpers.report.learning_curve import power_law

SIZES = np.array([250.0, 500, 1_000, 2_000, 4_000])


def law(size, floor, scale, exponent):
    """The score of a law whose scale is the error above the floor at 1,000 questions, in percent."""
    return 100 - floor - scale * (np.asarray(size, dtype=float) / 1_000) ** -exponent


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(learning_curve, "DRAWS", 200)  # coverage hardly depends on it, time does


@pytest.mark.parametrize("given_ceiling", [True, False])
@pytest.mark.parametrize(("floor", "scale", "exponent"), [(10, 35, 0.3), (0, 60, 0.1), (25, 20, 0.75), (5, 5, 1.5)])
def test_an_exact_law_is_recovered(floor, scale, exponent, given_ceiling):
    fitted = power_law(SIZES, law(SIZES, floor, scale, exponent), 100 - floor if given_ceiling else None)
    assert fitted.ceiling == pytest.approx((100 - floor,) * 3)
    assert fitted.exponent == pytest.approx((exponent,) * 3)
    for size in (100, 1_000, 50_000):
        expected = pytest.approx((max(0, law(size, floor, scale, exponent)),) * 3)
        assert fitted.predict(size) == expected
        assert fitted.predict_run(size) == expected


@pytest.mark.parametrize("ceiling", [None, 95.0])
def test_the_fit_is_scipys(ceiling):
    """On noisy runs whose best exponent lies between two steps, with the bounds in use in some of them."""
    at_a_bound = 0
    for seed in range(12):
        sizes = np.repeat(SIZES, 2)
        errors = 100 - law(sizes, 5, 40, 0.333) + np.random.default_rng(seed).normal(0, 2, len(sizes))

        def free(size, scale, exponent, floor=5.0):
            return 100 - law(size, floor, scale, exponent)

        start, most = ([30.0, 0.5], [np.inf, 2.0]) if ceiling else ([30.0, 0.5, 5.0], [np.inf, 2.0, 100.0])
        expected, _ = curve_fit(free, sizes, errors, start, bounds=([0.0, 0.01, 0.0][: len(start)], most))
        fitted = power_law(sizes, 100 - errors, ceiling)
        for size in SIZES:
            assert fitted.predict(size).value == pytest.approx(100 - free(size, *expected), abs=0.1)
        assert fitted.predict(20_000).value == pytest.approx(100 - free(20_000, *expected), abs=0.3), seed
        at_a_bound += fitted.ceiling.value == 100
    assert 0 < at_a_bound < 12 or ceiling


@pytest.mark.parametrize("ceiling", [90.0, None])
def test_the_intervals_cover_the_truth_in_95_of_100_cases(few_draws, ceiling):
    """Four sizes, two seeds each: the law's mean, one more run, and a size that was asked for."""
    sizes, covered = np.repeat(SIZES[:4], 2), []
    for seed in range(500):
        draw = np.random.default_rng(50_000 + seed)
        fitted = power_law(sizes, law(sizes, 10, 40, 0.3) + draw.normal(0, 1, len(sizes)), ceiling, 10_000 + seed)
        asked = [
            (fitted.predict(1_000), law(1_000, 10, 40, 0.3)),
            (fitted.predict(16_000), law(16_000, 10, 40, 0.3)),
            (fitted.predict_run(4_000), law(4_000, 10, 40, 0.3) + draw.normal(0, 1)),
            (fitted.size_needed(law(8_000, 10, 40, 0.3)), 8_000),
        ]
        covered.append([interval.low <= truth <= interval.high for interval, truth in asked])
    shares = np.mean(covered, axis=0)
    # A fitted ceiling is bounded, which makes its intervals a little too wide, never too narrow.
    assert np.all((shares >= 0.93) & (shares <= (0.97 if ceiling else 0.985))), shares


def test_a_fitted_ceiling_is_known_much_less_than_a_given_one():
    sizes = np.repeat(SIZES[:3], 3)
    scores = law(sizes, 10, 40, 0.3) + np.random.default_rng(0).normal(0, 1, len(sizes))
    free, fixed = power_law(sizes, scores), power_law(sizes, scores, 90)
    assert free.ceiling.high - free.ceiling.low > 10
    assert fixed.ceiling == (90, 90, 90)
    for size, factor in ((500, 1), (16_000, 2.5)):
        widths = [fitted.predict(size).high - fitted.predict(size).low for fitted in (free, fixed)]
        assert widths[0] > factor * widths[1]
    assert free.predict_run(500).low < free.predict(500).low < free.predict(500).high < free.predict_run(500).high


def test_a_size_is_needed_for_a_score_and_none_suffices_above_the_ceiling():
    fitted = power_law(SIZES, law(SIZES, 10, 40, 0.3))
    assert fitted.size_needed(law(9_000, 10, 40, 0.3)) == pytest.approx((9_000,) * 3)
    assert fitted.size_needed(90.1) == (np.inf,) * 3
    noisy = power_law(np.repeat(SIZES, 2), law(np.repeat(SIZES, 2), 10, 40, 0.3) + np.tile([1, -1], 5))
    assert 16_000 < noisy.size_needed(85).low < 1e6
    assert noisy.size_needed(85).high == np.inf  # some draws have their ceiling below


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0, 100)), min_size=3, max_size=12),
    st.none() | st.just(100.0),
    st.integers(0, 2**32 - 1),
)
def test_whatever_the_scores_the_law_rises_within_0_and_100(runs, ceiling, seed):
    sizes, scores = zip(*[*[(size, 50.0) for size in SIZES[:3]], *runs], strict=True)
    fitted = power_law(sizes, scores, ceiling, seed)
    predicted = np.array([fitted.predict(size) for size in (10, 300, 1_000, 1e5, 1e9)])
    assert np.all((predicted >= 0) & (predicted <= 100))
    assert np.all(np.diff(predicted, axis=0) >= -1e-9)
    assert np.all(predicted[:, 1] <= predicted[:, 2])
    assert predicted[-1, 0] <= fitted.ceiling.value + 1e-9
    needed = np.array([fitted.size_needed(score) for score in (20, 50, 80)])
    assert np.all(needed >= 0)
    assert np.all(needed[:-1] <= needed[1:])
    again = power_law(sizes, scores, ceiling, seed)
    assert again.predict_run(1e5) == fitted.predict_run(1e5)


@pytest.mark.parametrize(
    ("sizes", "scores", "ceiling", "problem"),
    [
        ([100, 200], [30, 40, 50], None, "a size and a score a run"),
        ([], [], None, "needs 3 different sizes"),
        ([100, 200, 500], [30, 40, 50], None, "more than 3 runs; got 3 sizes and 3 runs"),
        ([100, 100, 200, 200], [30, 31, 40, 41], None, "needs 3 different sizes"),
        ([100, 100, 100], [30, 31, 32], 90, "needs 2 different sizes"),
        ([100, 200], [30, 40], 90, "more than 2 runs"),
        ([0, 200, 500], [30, 40, 50], 90, "sizes above 0"),
        ([100, 200, np.inf], [30, 40, 50], 90, "sizes above 0"),
        ([100, 200, 500], [30, 40, 101], 90, "between 0 and 100"),
        ([100, 200, 500], [30, 40, np.nan], 90, "between 0 and 100"),
        ([100, 200, 500], [30, 40, 50], 49, "between the highest score, 50.0, and 100"),
        ([100, 200, 500], [30, 40, 50], 101, "between the highest score, 50.0, and 100"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(sizes, scores, ceiling, problem):
    with pytest.raises(ValueError, match=problem):
        power_law(sizes, scores, ceiling)


def test_no_questions_are_no_size():
    with pytest.raises(ValueError, match="0 questions"):
        power_law(SIZES, law(SIZES, 10, 40, 0.3)).predict(0)
