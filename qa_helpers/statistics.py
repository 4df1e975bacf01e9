"""How far a score can be trusted: intervals, and tests that compare two runs on the same questions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2_000  # the interval's ends then move by about 2 % of its width (one standard deviation) between seeds
_BATCH_NUMBERS = 20_000_000  # numbers drawn at once: at most 160 MB, however many questions there are


class Interval(NamedTuple):
    """An estimate with its 95 % interval, in the unit of the values it came from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as `38.8 [32.0, 45.6]`."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """The mean and its 95 % percentile bootstrap interval over questions (Efron 1979).

    Raises:
        ValueError: if there are no values.
    """
    data = np.asarray(values, dtype=float)
    if data.ndim != 1 or not len(data):
        raise ValueError("an interval needs a list of at least one value")
    if np.all(data == data[0]):  # every resample is the same
        return Interval(*(float(data[0]),) * 3)
    result = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(data)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of `second - first` over the same questions, with its paired bootstrap interval.

    Raises:
        ValueError: if the two are not of the same length.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same questions; got {len(a)} and {len(b)}")
    return bootstrap_mean(b - a, seed)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two runs are right equally often on the same questions (McNemar 1947).

    Only the questions that one run got right and the other wrong count. 1.0 if there are none.

    Raises:
        ValueError: if the two are not of the same length.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same questions; got {len(a)} and {len(b)}")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
