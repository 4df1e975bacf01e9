"""How far a score can be trusted: intervals, how many questions it takes, calibration. Of two runs: `comparisons`."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used: seconds

RESAMPLES = 2_000  # the interval's ends then move by about 2 % of its width (one standard deviation) between seeds
FEW = 12  # the smallest number with which 93 % are covered for every share, see `tests/evaluation/test_statistics.py`
PERCENT_BOUNDS = (0.0, 100.0)
UNBOUNDED = (-math.inf, math.inf)
_BATCH_NUMBERS = 20_000_000  # numbers drawn at once: at most 160 MB, however many questions there are

Values = Sequence[float] | np.ndarray
Bounds = tuple[float, float]


class Interval(NamedTuple):
    """An estimate with its 95 % interval, in the unit of the values it came from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as `38.8 [32.0, 45.6]`."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def bootstrap_mean(
    values: Values, seed: int = 0, clusters: Sequence[Hashable] | None = None, bounds: Bounds | None = None
) -> Interval:
    """The mean and its 95 % interval over questions: percentile bootstrap (Efron 1979), exact where it would fail.

    Where fewer than `FEW` values differ from the most frequent one, such as 19 of 20 right or two runs that hardly
    disagree, resampling says next to nothing about what was not seen; there the interval is `exact_mean`'s.

    Questions on one article are hard or easy together. Where a score is to hold for other articles, too, give each
    question's article as `clusters`: then whole articles are drawn (Davison and Hinkley 1997, section 3.8; for
    language models Miller 2024, arXiv:2411.00640). With fewer than about 30 clusters this interval, too, is narrower
    than it should be (Cameron, Gelbach and Miller 2008), but less so than one over questions.

    Args:
        values: a value a question.
        seed: of the resampling.
        clusters: a label a question, such as its article's title; None takes the questions as independent.
        bounds: the least and the greatest value that a question can have. None takes 0 and 1 where all values lie
            between them, unless all are 0; else 0 and 100; none where a value lies outside.

    Raises:
        ValueError: if there are no values, one is no finite number or out of bounds, there are not as many labels as
            values, or only one cluster.
    """
    data = finite_numbers(values)
    exact = exact_mean(data, seed, clusters, bounds)
    if exact is not None:
        return exact
    samples: tuple[np.ndarray, ...] = (data,) if clusters is None else _cluster_sums(data, clusters)
    result = scipy.stats.bootstrap(
        samples,
        np.mean if clusters is None else _ratio,
        paired=clusters is not None,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(data)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high))


def exact_mean(
    values: Values, seed: int = 0, clusters: Sequence[Hashable] | None = None, bounds: Bounds | None = None
) -> Interval | None:
    """The mean and its 95 % interval where nearly all values are the same; None elsewhere. See `bootstrap_mean`.

    The interval of Learned-Miller and Thomas (2019, arXiv:1905.06208) for values within bounds: one more value, as low
    or as high as can be, joins those seen, and all are weighted at random, as in a Bayesian bootstrap. For right or
    wrong it is Clopper and Pearson's (1934); that of a difference of two runs holds 0 where `mcnemar` gives 5 % or
    more. Without bounds, equal values say nothing about others. Clustered values count as the number of independent
    ones that would tell as much (Korn and Graubard 1998); where all are equal, as the number of clusters.

    Raises:
        ValueError: as `bootstrap_mean`.
    """
    data = finite_numbers(values)
    low, high = inferred_bounds(data) if bounds is None else bounds
    if not (low <= data.min() and data.max() <= high):
        raise ValueError(f"values of {data.min():g} to {data.max():g} do not lie within the bounds {low:g} to {high:g}")
    size = float(len(data)) if clusters is None else _independent(data, clusters)
    kinds, counts = np.unique(data, return_counts=True)
    differing = len(data) - int(counts.max())
    if differing >= FEW or (differing and not np.isfinite([low, high]).all()):
        return None
    mean = float(data.mean())
    weights = counts * size / len(data)
    lower, upper = (_with_one_more(kinds, weights, end, share, seed) for end, share in ((low, 0.025), (high, 0.975)))
    return Interval(mean, min(lower, mean), max(upper, mean))


def _independent(data: np.ndarray, clusters: Sequence[Hashable]) -> float:
    """How many independent values would tell as much about the mean as these clusters of them."""
    sums, sizes = _cluster_sums(data, clusters)
    scatter = float(((sums - data.mean() * sizes) ** 2).sum()) * len(sums) / (len(sums) - 1)
    if np.ptp(data) == 0 or scatter == 0:
        return float(len(sums) if np.ptp(data) == 0 else len(data))
    of_values, of_sums = scipy.stats.t.ppf(0.975, [len(data) - 1, len(sums) - 1])
    few = of_values / of_sums  # the scatter is of few clusters
    return float(min(len(data), data.var() * len(data) ** 2 / scatter * few**2))


def _with_one_more(kinds: np.ndarray, counts: np.ndarray, end: float, share: float, seed: int) -> float:
    """A quantile of the mean of values and of one more, `end`, weighted at random."""
    if not math.isfinite(end):
        return end
    kinds, kind_of_each = np.unique(np.append(kinds, end), return_inverse=True)
    counts = np.bincount(kind_of_each, np.append(counts, 1))
    if len(kinds) == 1:
        return end
    if len(kinds) == 2:  # such as right and wrong: known without drawing
        return float(kinds[0] + np.ptp(kinds) * scipy.special.betaincinv(counts[1], counts[0], share))
    weights = np.random.default_rng(seed).gamma(counts, size=(10 * RESAMPLES, len(kinds)))
    return float(np.quantile(weights @ kinds / weights.sum(axis=1), share))


def finite_numbers(values: Values) -> np.ndarray:
    """Values as an array.

    Raises:
        ValueError: if there are none, or one is no finite number.
    """
    data = np.asarray(values, dtype=float)
    if data.ndim != 1 or not len(data):
        raise ValueError("an interval needs a list of at least one value")
    strange = np.flatnonzero(~np.isfinite(data))
    if len(strange):
        raise ValueError(
            f"value {strange[0] + 1} of {len(data)} is {data[strange[0]]}; an interval needs finite numbers"
        )
    return data


def inferred_bounds(data: np.ndarray) -> Bounds:
    """The least and the greatest value that a question can have, by the values seen: see `bootstrap_mean`."""
    if data.min() < 0 or data.max() > 100:
        return UNBOUNDED
    return (0.0, 1.0) if 0 < data.max() <= 1 else PERCENT_BOUNDS


def _cluster_sums(data: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of each cluster's values: all that a mean over resampled clusters needs."""
    if len(clusters) != len(data):
        raise ValueError(f"each value needs its cluster's label; got {len(data)} values and {len(clusters)} labels")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    if len(numbers) == 1:
        raise ValueError(f"all questions are of one cluster, {clusters[0]!r}: they say nothing about others")
    index = [numbers[label] for label in clusters]
    return np.bincount(index, data), np.bincount(index)


def _ratio(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    mean: np.ndarray = sums.sum(axis=axis) / sizes.sum(axis=axis)
    return mean


def by_group(
    values: Values, groups: Sequence[Hashable], seed: int = 0, bounds: Bounds | None = None
) -> dict[Hashable, Interval]:
    """Each group's mean with its interval over questions, the highest first: such as EM by article.

    The best and the worst of many groups differ even where only chance is at work. `bounds` as `bootstrap_mean` takes
    them, of all groups together.

    Raises:
        ValueError: if there are not as many labels as values, or as `bootstrap_mean` does.
    """
    bounds = bounds or inferred_bounds(finite_numbers(values))
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    means = {group: bootstrap_mean(of_group, seed, bounds=bounds) for group, of_group in members.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1].value))


# ---- how many questions two runs take ---------------------------------------------------------------------------
def questions_needed(difference: float, disagreement: float, power: float = 0.8, level: float = 0.05) -> int:
    """Questions that two runs must both answer for McNemar's test to tell them apart (Connor 1987, Biometrics 43:207).

    The test looks only at questions that one run gets right and the other wrong: the fewer of them, the fewer questions
    are needed for the same difference. The formula is for the test's normal approximation; the exact test of `mcnemar`
    has one to four points less power.

    Args:
        difference: of the two runs' scores, as a fraction: 0.02 for 80 % against 82 %.
        disagreement: share of the questions that one run gets right and the other wrong, as a fraction.
        power: probability that the test then finds the difference.
        level: p-value below which it counts as found, two-sided.

    Raises:
        ValueError: if `difference` is not above 0 or is greater than `disagreement`, or another is not a share.
    """
    if not 0 < difference <= disagreement <= 1:
        raise ValueError(f"needs 0 < difference <= disagreement <= 1; got {difference} and {disagreement}")
    by_chance, by_power = _quantiles(power, level)
    root = by_chance * math.sqrt(disagreement) + by_power * math.sqrt(disagreement - difference**2)
    return math.ceil((root / difference) ** 2)


def questions_needed_unpaired(first: float, second: float, power: float = 0.8, level: float = 0.05) -> int:
    """Questions that each of two runs must answer, other ones each, for a z-test of two shares to tell them apart.

    Fleiss 1981, "Statistical Methods for Rates and Proportions", chapter 3: without continuity correction.

    Args:
        first, second: the share of right answers of each run, as fractions.
        power: probability that the test then finds the difference.
        level: p-value below which it counts as found, two-sided.

    Raises:
        ValueError: if the shares are equal, or one is not between 0 and 1.
    """
    if not (0 <= first <= 1 and 0 <= second <= 1 and first != second):
        raise ValueError(f"needs two different shares between 0 and 1; got {first} and {second}")
    by_chance, by_power = _quantiles(power, level)
    mean = (first + second) / 2
    alike, apart = 2 * mean * (1 - mean), first * (1 - first) + second * (1 - second)
    return math.ceil(((by_chance * math.sqrt(alike) + by_power * math.sqrt(apart)) / (first - second)) ** 2)


def _quantiles(power: float, level: float) -> tuple[float, float]:
    """The normal distribution's quantiles of a two-sided test at `level` and of `power`."""
    if not 0 < level < power < 1:
        raise ValueError(f"needs 0 < level < power < 1; got a level of {level} and a power of {power}")
    return float(scipy.stats.norm.isf(level / 2)), float(scipy.stats.norm.ppf(power))


# ---- calibration -----------------------------------------------------------------------------------------------
class Calibration(NamedTuple):
    """A reliability table: per bin of confidence how often the answers are right. All shares are fractions."""

    edges: np.ndarray  # (bins + 1,); a bin holds its upper edge, not its lower one; the first holds 0, too
    questions: np.ndarray  # (bins,) how many
    confidence: np.ndarray  # (bins,) mean; NaN where there is no question
    accuracy: np.ndarray  # (bins,) share of right answers; NaN where there is no question
    error: float  # expected calibration error: mean |accuracy - confidence|, weighted by questions


def expected_calibration(
    confidence: Sequence[float] | np.ndarray, correct: Sequence[float] | np.ndarray, bins: int = 10
) -> Calibration:
    """How well a model knows what it knows: of answers given with 70 % confidence, 70 % should be right.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3. Even a
    perfectly calibrated model has an error above 0: with few questions a bin, chance alone gives several points.

    Args:
        confidence: (questions,) probabilities.
        correct: (questions,) 1 where right, 0 where wrong.
        bins: of equal width.

    Raises:
        ValueError: if there are no questions, not as many of both, no bins, or numbers that are no probability.
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if sure.ndim != 1 or not len(sure) or sure.shape != right.shape or bins < 1:
        raise ValueError(f"needs a confidence and a result a question; got {sure.shape} and {right.shape}, {bins} bins")
    if not (np.all((sure >= 0) & (sure <= 1)) and np.all((right >= 0) & (right <= 1))):
        raise ValueError("confidence and correctness must lie between 0 and 1")
    edges = np.linspace(0, 1, bins + 1)
    index = np.maximum(np.searchsorted(edges, sure) - 1, 0)
    count = np.bincount(index, minlength=bins)
    totals = [np.bincount(index, column, minlength=bins) for column in (sure, right)]
    with np.errstate(invalid="ignore"):
        mean_sure, mean_right = (total / count for total in totals)
    return Calibration(edges, count, mean_sure, mean_right, float(np.abs(totals[1] - totals[0]).sum() / len(sure)))
