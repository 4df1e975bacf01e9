"""What each idea of `scales.IDEAS` was worth: its runs against runs of the same size and seed without it.

What it simplifies: an interval is over the questions asked. It says whether these weights answer more questions than
those, not whether another seed of the idea would: that is what several seeds are for, see `Trial.seed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qa_helpers.records import Run, paired_columns
from qa_helpers.scales import IDEAS, SEEDS, at_size, idea
from qa_helpers.statistics import Interval, mcnemar, paired_difference


@dataclass(frozen=True)
class Trial:
    """One run of an idea beside the run without it."""

    idea: str
    size: int  # training questions
    seed: int
    questions: int  # that both answered
    gain: Interval  # of the metric, in points
    p: float  # that both are right equally often, by McNemar's exact test on exact match
    cost: float  # questions trained on, once an epoch, against the run without it; of all that the idea needs

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Which of the two runs the interval calls the better one; of these two runs only, see the top."""
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "not told apart"


def trials(
    records: Mapping[str, Run], size: int, evaluation: str | None = None, metric: str = "exact_match"
) -> list[Trial]:
    """Every recorded run of an idea on `size` training questions, the largest gain first.

    Args:
        records: recorded runs by name; ideas whose run, or whose base, is not among them are left out.
        size: training questions.
        evaluation: the evaluation set to compare on; all questions that both runs were asked if None.
        metric: what to compare, a column of `records.Questions`.
    """
    found = []
    for which in IDEAS:
        for seed in SEEDS:
            base, run = records.get(at_size(size, seed).name), records.get(idea(which, size, seed).name)
            if base is None or run is None:
                continue
            first, second = _columns(base, run, metric, evaluation)
            right = [column.astype(bool).tolist() for column in _columns(base, run, "exact_match", evaluation)]
            gain = paired_difference((100.0 * first).tolist(), (100.0 * second).tolist())
            cost = trained_on(run, records) / trained_on(base, records)
            found.append(Trial(which, size, seed, len(first), gain, mcnemar(*right), cost))
    return sorted(found, key=lambda trial: -trial.gain.value)


def _columns(base: Run, run: Run, metric: str, evaluation: str | None) -> tuple[np.ndarray, np.ndarray]:
    if evaluation is None:
        return paired_columns(base, run, metric)
    return base.column(metric, evaluation), run.column(metric, evaluation)


def trained_on(run: Run, records: Mapping[str, Run]) -> float:
    """Questions that a run's weights were trained on, once an epoch, with those of the runs that it rests on.

    The number of optimizer steps says how many questions there were where the experiment does not (all of them).
    Only the runs that it names are followed: none of the course's rests on one that rests on a third.
    """
    experiment = run.experiment
    size = experiment.train_size
    steps = run.losses[-1][0] if run.losses else 0
    own = steps * experiment.batch_size if size is None else size * experiment.epochs
    return float(own + sum(trained_on(records[name], records) for name in experiment.parents))


def luck_of_the_best(spread: float, ideas: int, draws: int = 20_000, seed: int = 0) -> float:
    """The gain, in points, that the best of several ideas seems to have on average if none does anything.

    Args:
        spread: how far one such idea's run scatters, in points, independently of the others'. By the luck of the
            seeds, it is the standard deviation of runs that differ in nothing else: not that of a gain of one over
            another, since all ideas are held against the same run, whose luck moves them all alike. By the luck of
            the questions, it is at most a gain's standard error, a quarter of its 95 % interval's width or so.
        ideas: how many were tried.
        draws: of the simulation.
        seed: of the draws.
    """
    return float(np.random.default_rng(seed).normal(0, spread, (draws, ideas)).max(axis=1).mean())
