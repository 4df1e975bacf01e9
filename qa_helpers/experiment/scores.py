"""Scores with their intervals, and whether they are those of a run's questions."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, Interval, bootstrap_mean, exact_mean
from qa_helpers.experiment.forms import Positive, StrictModel

METRICS = ("string_equality", "exact_match", "f1", "contained")
ROUNDING = dict.fromkeys(METRICS, 0.0051) | {"f1": 0.0101}  # percent: scores have two decimals, F1 of a question four
Percent = Annotated[float, Field(ge=0, le=100)]


class Score(StrictModel):
    """A mean over questions with its 95 % interval, in percent, see `statistics.bootstrap_mean`."""

    value: Percent
    low: Percent
    high: Percent

    @classmethod
    def of(cls, interval: Interval) -> "Score":
        """From an interval, to two decimals."""
        return cls(**{end: round(number, 2) for end, number in interval._asdict().items()})

    @model_validator(mode="after")
    def _in_order(self) -> "Score":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value} is not within its interval")
        return self

    def __float__(self) -> float:
        """The value alone, as a column of scores becomes one of numbers."""
        return self.value

    def __str__(self) -> str:
        """Such as `38.8 [32.0, 45.6]`."""
        return str(Interval(self.value, self.low, self.high))


class Scores(StrictModel):
    """The metrics of `qa_helpers.evaluation.metrics` on one evaluation set."""

    questions: Positive
    string_equality: Score
    exact_match: Score
    f1: Score
    contained: Score


def scores_of(columns: Mapping[str, ArrayLike]) -> Scores:
    """Means over questions with their intervals, in percent, from each metric's values, 0 to 1."""
    values = {metric: 100.0 * np.asarray(columns[metric], dtype=float) for metric in METRICS}
    means = {metric: Score.of(bootstrap_mean(column, bounds=PERCENT_BOUNDS)) for metric, column in values.items()}
    return Scores(questions=len(values["f1"]), **means)


def check_score(score: Score, values: np.ndarray, rounding: float, where: str) -> None:
    """See that a score is what `bootstrap_mean` can have made of these values, in percent.

    The interval's ends are quantiles of resampled means, which lie near those of a normal distribution; beside them,
    since few values that differ from the rest make the means skewed, and the quantiles of `RESAMPLES` draws scatter by
    0.06 standard errors.

    Raises:
        ValueError: if it is not.
    """
    mean = float(values.mean())
    if abs(mean - score.value) > rounding:
        raise ValueError(f"{where}: is not the mean of its questions, {mean:.2f}")
    exact = exact_mean(values, bounds=PERCENT_BOUNDS)
    if exact:
        expected, slack = exact, 0.02 + 0.02 * (exact.high - exact.low)
    else:
        error = float(values.std()) / len(values) ** 0.5
        expected, slack = Interval(mean, mean - 1.96 * error, mean + 1.96 * error), 0.5 * error + 100 / len(values)
    if max(abs(score.low - expected.low), abs(score.high - expected.high)) > slack:
        raise ValueError(f"{where}: the interval is not that of its questions, about {expected}")
