"""Runs on the same questions: how far two of them differ, and by how much each of several is better than one."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used: seconds

from qa_helpers.evaluation.statistics import (
    PERCENT_BOUNDS,
    Bounds,
    Interval,
    Values,
    bootstrap_mean,
    finite_numbers,
    inferred_bounds,
)


def paired_difference(
    first: Values,
    second: Values,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
) -> Interval:
    """Mean of `second - first` over the same questions, with its paired interval.

    `clusters` and `bounds`, which are those of the scores, as `bootstrap_mean` takes them. Two runs that agree on
    every question can still differ on others: 20 such questions leave a difference of 17 points possible.

    Raises:
        ValueError: if the two are not of the same length, or as `bootstrap_mean` does.
    """
    a, b = _paired(first, second)
    low, high = inferred_bounds(np.append(a, b)) if bounds is None else bounds
    return bootstrap_mean(b - a, seed, clusters, (low - high, high - low))


def _paired(first: Values, second: Values) -> tuple[np.ndarray, np.ndarray]:
    """Two runs' values as arrays.

    Raises:
        ValueError: if they are not of the same length, there are none, or one is no finite number.
    """
    _same_length(first, second)
    return finite_numbers(first), finite_numbers(second)


def _same_length(first: Values, second: Values) -> None:
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same questions; got {len(first)} and {len(second)}")


def mcnemar(first: Values, second: Values) -> float:
    """Exact two-sided p-value that two runs are right equally often on the same questions (McNemar 1947).

    Only the questions that one run got right and the other wrong count. 1.0 if there are none.

    Args:
        first, second: 1 where right, 0 where wrong, a value a question.

    Raises:
        ValueError: if the two are not of the same length, or a value is neither 0 nor 1.
    """
    _same_length(first, second)
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not np.isin([a, b], [0, 1]).all():
        raise ValueError("McNemar's test is of right and wrong, 1 and 0; compare other scores by paired_difference")
    only_a, only_b = int(np.sum(a > b)), int(np.sum(a < b))
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


class WinRate(NamedTuple):
    """How often the second of two answers to a question is the better one."""

    wins: int
    ties: int
    losses: int
    rate: Interval  # of the wins, a tie counting as half, in percent
    p: float  # exact, two-sided, that wins and losses are equally likely (sign test); ties do not count

    def __str__(self) -> str:
        """Such as `55.0 [51.2, 58.9], p = 0.013`."""
        return f"{self.rate}, p = {self.p:.2g}"


def win_rate(first: Values, second: Values, seed: int = 0, clusters: Sequence[Hashable] | None = None) -> WinRate:
    """How often `second` is above `first` on the same questions; `clusters` as `bootstrap_mean` takes them.

    Raises:
        ValueError: if the two are not of the same length, or as `bootstrap_mean` does.
    """
    a, b = _paired(first, second)
    wins, losses = int(np.sum(b > a)), int(np.sum(b < a))
    rate = bootstrap_mean(50 * (np.sign(b - a) + 1), seed, clusters, PERCENT_BOUNDS)
    return WinRate(wins, len(a) - wins - losses, losses, rate, mcnemar(b < a, b > a))


# ---- several runs over the same seeds ----------------------------------------------------------------------------
def gains_over_blocks(
    base: Sequence[float], others: Mapping[str, Sequence[float]], together: bool = False
) -> dict[str, Interval]:
    """Mean gain of each of several treatments over a base, with its 95 % interval over blocks.

    Such as the scores of several ideas and of the recipe without one, each with the same few seeds: the seeds are the
    blocks. They are too few to tell how far one idea's gain scatters from seed to seed; so that is taken to be alike
    for all of them, normal and independent, and estimated from all together as the residual of a randomised block
    design (Fisher 1935, *The Design of Experiments*; Student's t allows for how few they are). That all gains share
    the base's luck is accounted for. Scores that do not scatter at all, such as 0 of every run, do not tell how far
    others would: then the interval has no ends.

    Args:
        base: a score a block, without a treatment.
        others: each treatment's scores in the same blocks.
        together: whether all intervals hold at once in 95 of 100 cases (Dunnett 1955), as they must where the best or
            the worst treatment is looked for. Else each is for one treatment by itself: of many, some miss.

    Raises:
        ValueError: if there is no treatment, fewer than two blocks, not a score for each, or one that is no number.
    """
    if not others or any(len(scores) != len(base) for scores in others.values()) or len(base) < 2:
        raise ValueError("gains over blocks need a base, a treatment, and a score of each in two blocks or more")
    table = np.array([finite_numbers(scores) for scores in (base, *others.values())])
    rows, blocks = table.shape
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    freedom = (rows - 1) * (blocks - 1)
    quantile = _dunnett(len(others), freedom) if together else float(scipy.stats.t.ppf(0.975, freedom))
    half = quantile * math.sqrt(2 * float((residual**2).sum()) / freedom / blocks)
    if np.allclose(residual, 0, atol=1e-9 * max(1.0, float(np.abs(table).max()))):
        half = math.inf
    gains = table[1:].mean(axis=1) - table[0].mean()
    return {name: Interval(gain, gain - half, gain + half) for name, gain in zip(others, gains.tolist(), strict=True)}


@lru_cache
def _dunnett(treatments: int, freedom: int) -> float:
    """What the largest of several treatments' |t| exceeds in 5 of 100 cases; their common base makes them correlate."""
    base, weight = np.polynomial.hermite_e.hermegauss(80)  # the base's own luck, which all gains share
    ranks = (np.arange(500) + 0.5) / 500
    # Of the bound, as the scatter is estimated.
    width = np.sqrt(2 * scipy.stats.chi2.ppf(ranks, freedom) / freedom)[:, None]

    def excess(bound: float) -> float:
        inside = scipy.stats.norm.cdf(base + bound * width) - scipy.stats.norm.cdf(base - bound * width)
        return float((inside**treatments @ weight).mean() / weight.sum()) - 0.95

    quantile: float = scipy.optimize.brentq(excess, 1, 100, xtol=1e-4)
    return quantile
