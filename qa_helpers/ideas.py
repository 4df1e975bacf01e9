"""What each idea of `scales.IDEAS` was worth: its runs against runs of the same size and seed without it.

Two things are left to luck, the questions and the seed. A `Trial` is one run, whose interval is over the questions
asked: whether these weights answer more of them than those. A `Confirmation` is an idea with all of its seeds, and
has an interval over either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qa_helpers.records import Run, paired_columns
from qa_helpers.scales import COMBINES, IDEAS, SEEDS, at_size, idea
from qa_helpers.statistics import Interval, mcnemar, paired_difference, pooled_means

Verdict = Literal["better", "worse", "not told apart"]


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
    def verdict(self) -> Verdict:
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


@dataclass(frozen=True)
class Confirmation:
    """An idea tried with every seed, each paired with the run of that seed without it."""

    idea: str
    gains: tuple[float, ...]  # in points, by seed
    by_questions: Interval  # their mean, if these runs were asked other questions of the kind
    by_seeds: Interval  # their mean, if other seeds were asked these questions; see `confirmations`

    @property
    def verdict(self) -> Verdict:
        """What both intervals agree on."""
        both = (self.by_questions, self.by_seeds)
        if all(interval.low > 0 for interval in both):
            return "better"
        return "worse" if all(interval.high < 0 for interval in both) else "not told apart"


def confirmations(
    records: Mapping[str, Run], size: int, evaluation: str | None = None, metric: str = "exact_match"
) -> list[Confirmation]:
    """The ideas with a run of every seed on `size` training questions, the largest mean gain first.

    The intervals over seeds take gains to scatter alike whatever the idea, for three seeds tell no idea's own
    scatter; see `statistics.pooled_means`. They take the ideas' gains as independent, which they are not quite: all
    are over the same runs without an idea.

    Args:
        records: recorded runs by name; ideas that lack a seed, or its run without the idea, are left out, and so are
            those that combine all seeds.
        size: training questions.
        evaluation: as `trials` takes it.
        metric: as `trials` takes it.
    """
    columns = {}
    for which in (name for name in IDEAS if name not in COMBINES):
        pairs = [(records.get(at_size(size, s).name), records.get(idea(which, size, s).name)) for s in SEEDS]
        whole = [(base, run) for base, run in pairs if base and run]
        if len(whole) == len(SEEDS):
            columns[which] = 100.0 * np.array([_columns(base, run, metric, evaluation) for base, run in whole])
    gains = {which: (pair[:, 1] - pair[:, 0]).mean(axis=1) for which, pair in columns.items()}
    over_seeds = pooled_means({which: gain.tolist() for which, gain in gains.items()}) if gains else {}
    found = [
        Confirmation(which, tuple(gains[which].tolist()), paired_difference(*pair.mean(axis=0)), over_seeds[which])
        for which, pair in columns.items()
    ]
    return sorted(found, key=lambda one: -one.by_seeds.value)


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
