"""How far would more data get us? A power law through the scores of runs on training sets of several sizes.

What it simplifies: the runs' scatter is taken to be normal and the same at all sizes, and the law to hold from the
smallest size on. Very small training sets teach next to nothing ("small data region", Hestness et al. 2017): leave them
out. All runs must answer the same questions; that other questions would have moved them all is not in here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qa_helpers.evaluation.statistics import Interval

DRAWS = 1_000
# Learning curves were found between 0.07 and 0.35 (Hestness et al. 2017). A step this small moves a score within the
# sizes tried by less than 0.1 points.
EXPONENTS = np.linspace(0.002, 2, 1_000)


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error(n) = floor + scale * (n / reference)**-exponent, in percent, where score = 100 - error.

    Intervals are 95 % ones: from the same law fitted to `DRAWS` sets of runs as they might have come out. Predictions
    raise ValueError for a size that is not above 0.
    """

    reference: float  # a size in the middle: scale is what is missing there, which is better known than at n = 1
    curves: np.ndarray  # (1 + DRAWS, 3): floor, scale, exponent; first those of the fit, then of each draw
    scatter: np.ndarray  # (1 + DRAWS,): how far a single run may lie from the law, in points; first 0

    @property
    def ceiling(self) -> Interval:
        """The score that no amount of data would exceed, in percent."""
        return _interval(100 - self.curves[:, 0])

    @property
    def exponent(self) -> Interval:
        """How fast what is missing shrinks: ten times the data divide it by 10**exponent."""
        return _interval(self.curves[:, 2])

    def predict(self, size: float) -> Interval:
        """The mean score of runs on `size` training questions, in percent."""
        return _interval(self._scores(size))

    def predict_run(self, size: float) -> Interval:
        """Where one more run on `size` training questions will score, in percent: what a held-out run is held to."""
        return _interval(np.clip(self._scores(size) + self.scatter, 0, 100))

    def _scores(self, size: float) -> np.ndarray:
        if size <= 0:
            raise ValueError(f"a training set of {size} questions has no score on the law")
        floor, scale, exponent = self.curves.T
        scores: np.ndarray = np.clip(100 - floor - scale * (size / self.reference) ** -exponent, 0, 100)
        return scores

    def size_needed(self, score: float) -> Interval:
        """Training questions after which runs reach `score` (percent) on average; `inf` where the ceiling is lower."""
        floor, scale, exponent = self.curves.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            above = np.maximum(100 - score - floor, 0)  # what may still be missing above the floor
            return _interval(np.where(above > 0, self.reference * (scale / above) ** (1 / exponent), np.inf))


def _interval(values: np.ndarray) -> Interval:
    # The quantiles are values that occur, since nothing lies between a number and infinity.
    low, high = np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf")
    return Interval(float(values[0]), float(low), float(high))


def power_law(sizes: Sequence[float], scores: Sequence[float], ceiling: float | None = None, seed: int = 0) -> PowerLaw:
    """Fit error(n) = floor + a * n**-b to runs by least squares (Hestness et al. 2017, arXiv:1712.00409).

    A few sizes can hardly tell a high ceiling that is approached slowly from a low one that is near. So look at two
    fits: one whose ceiling is given, such as people's agreement or 100, which is an assumption; and one whose ceiling
    is fitted, whose interval shows how little the runs know of it.

    The intervals are a parametric bootstrap (Efron and Tibshirani 1993, section 6.5): runs are drawn around the fit and
    fitted again. Their standard deviation is drawn, too (residual sum of squares / chi-squared), since few runs tell it
    badly; for a straight line this gives Student's interval. A single run a size is enough.

    Args:
        sizes: training questions of each run; several seeds at a size repeat it.
        scores: of each run, in percent.
        ceiling: the score that endless data would give, in percent; None to fit it.
        seed: of the draws.

    Raises:
        ValueError: if there are too few runs or sizes, sizes or scores out of range, or a score above the ceiling.
    """
    size, score = np.asarray(sizes, dtype=float), np.asarray(scores, dtype=float)
    unknown = 3 if ceiling is None else 2
    _check(size, score, unknown, 100 if ceiling is None else ceiling)
    reference = float(np.exp(np.log(size).mean()))
    powers = (size / reference) ** -EXPONENTS[:, None]
    floor = None if ceiling is None else 100 - ceiling
    fit = _least_squares(powers, 100 - score[None], floor)
    fitted = fit[:, :1] + fit[:, 1:2] * (size / reference) ** -fit[:, 2:]

    random = np.random.default_rng(seed)
    residual = ((100 - score - fitted) ** 2).sum()
    deviation = np.sqrt(residual / random.chisquare(len(size) - unknown, (DRAWS, 1)))
    draws = fitted + deviation * random.standard_normal((DRAWS, len(size)))
    scatter = deviation[:, 0] * random.standard_normal(DRAWS)
    curves = np.concatenate([fit, _least_squares(powers, draws, floor)])
    return PowerLaw(reference, curves, np.concatenate([[0.0], scatter]))


def _check(size: np.ndarray, score: np.ndarray, unknown: int, ceiling: float) -> None:
    if size.ndim != 1 or size.shape != score.shape:
        raise ValueError(f"a power law needs a size and a score a run; got {size.shape} and {score.shape}")
    if not (np.all(np.isfinite(size) & (size > 0)) and np.all((score >= 0) & (score <= 100))):
        raise ValueError("a power law needs sizes above 0 and scores between 0 and 100 percent")
    if len(np.unique(size)) < unknown or len(size) <= unknown:
        raise ValueError(
            f"a law of {unknown} unknown numbers needs {unknown} different sizes and more than {unknown} runs; "
            f"got {len(np.unique(size))} sizes and {len(size)} runs"
        )
    if not score.max() <= ceiling <= 100:
        raise ValueError(f"the ceiling, {ceiling}, must lie between the highest score, {score.max()}, and 100")


def _least_squares(powers: np.ndarray, errors: np.ndarray, floor: float | None) -> np.ndarray:
    """The best floor, scale (both at least 0) and exponent for each row of errors.

    At a given exponent the law is a straight line, so its best one is known; trying all exponents then is as exact as
    their steps, needs no start values, has no local minima, and takes all draws at once.

    Args:
        powers: (exponents, runs): (size / reference)**-exponent.
        errors: (rows, runs), in percent.
        floor: in percent; None to fit it.

    Returns:
        (rows, 3).
    """
    runs, sums, squares = powers.shape[1], powers.sum(1), (powers**2).sum(1)
    total, products = errors.sum(1, keepdims=True), errors @ powers.T  # (rows, 1), (rows, exponents)
    from_zero = np.maximum((products - (floor or 0) * sums) / squares, 0)
    if floor is not None:
        scales, floors = from_zero, np.full_like(from_zero, floor)
    else:
        scales = np.maximum((products - total * sums / runs) / (squares - sums**2 / runs), 0)
        floors = (total - scales * sums) / runs
        scales, floors = np.where(floors < 0, from_zero, scales), np.maximum(floors, 0)
    # The sum of (errors - floors - scales * powers)**2, less that of errors**2, which all exponents share.
    missed = floors * (runs * floors + 2 * scales * sums - 2 * total) + scales * (scales * squares - 2 * products)
    best = np.arange(len(errors)), missed.argmin(1)
    return np.stack([floors[best], scales[best], EXPONENTS[best[1]]], axis=1)
