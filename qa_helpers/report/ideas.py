"""What each idea of `catalogue.IDEAS` was worth: its runs against runs of the same size and seed without it.

Two things are left to luck, the questions and the seed. A `Trial` is one run, whose interval is over the questions
asked: whether these weights answer more of them than those. A `Confirmation` is an idea with all of its seeds, and
has an interval over either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qa_helpers.evaluation.comparisons import gains_over_blocks, mcnemar, paired_difference
from qa_helpers.evaluation.statistics import Interval
from qa_helpers.experiment.catalogue import COMBINES, IDEAS, SEEDS, at_size, idea
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.spec import Training

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
        return _verdict(self.gain)


def _verdict(*intervals: Interval) -> Verdict:
    if all(interval.low > 0 for interval in intervals):
        return "better"
    return "worse" if all(interval.high < 0 for interval in intervals) else "not told apart"


def trials(
    records: Mapping[str, Run], size: int, evaluation: str | None = None, metric: str = "exact_match"
) -> list[Trial]:
    """Every recorded run of an idea on `size` training questions, the largest gain first.

    Args:
        records: recorded runs by name; ideas whose run, or whose base, is not among them are left out.
        size: training questions.
        evaluation: the evaluation set to compare on; all questions that both runs were asked if None.
        metric: what to compare, a column of `record.Questions`.
    """
    found = []
    for which in IDEAS:
        for seed in SEEDS:
            base, run = records.get(at_size(size, seed).name), records.get(idea(which, size, seed).name)
            if base is None or run is None:
                continue
            first, second = paired_columns(base, run, metric, evaluation)
            right = [column.astype(bool).tolist() for column in paired_columns(base, run, "exact_match", evaluation)]
            gain = paired_difference((100.0 * first).tolist(), (100.0 * second).tolist())
            cost = trained_on(run, records) / trained_on(base, records)
            found.append(Trial(which, size, seed, len(first), gain, mcnemar(*right), cost))
    return sorted(found, key=lambda trial: -trial.gain.value)


def trained_on(run: Run, records: Mapping[str, Run]) -> float:
    """Questions that a run's weights were trained on, once an epoch, with those of the runs that it rests on.

    The number of optimizer steps says how many questions there were where the experiment does not (all of them).

    Raises:
        KeyError: if a run that it rests on is not among the records.
    """
    experiment, own = run.experiment, 0
    if isinstance(experiment, Training):
        steps, size = run.losses[-1][0], experiment.train_size
        own = steps * experiment.batch_size if size is None else size * experiment.epochs
    return float(own + sum(trained_on(records[name], records) for name in experiment.parents))


@dataclass(frozen=True)
class Confirmation:
    """An idea tried with every seed, each paired with the run of that seed without it.

    Neither interval holds for other seeds *and* other questions at once. Those over seeds hold for all ideas at once,
    those over questions for each by itself.
    """

    idea: str
    gains: tuple[float, ...]  # in points, by seed
    by_questions: Interval  # their mean, if these runs were asked other questions of the kind
    by_seeds: Interval  # their mean, if other seeds were asked these questions; see `statistics.gains_over_blocks`

    @property
    def verdict(self) -> Verdict:
        """What both intervals agree on."""
        return _verdict(self.by_questions, self.by_seeds)


def confirmations(
    records: Mapping[str, Run], size: int, evaluation: str | None = None, metric: str = "exact_match"
) -> list[Confirmation]:
    """The ideas with a run of every seed on `size` training questions, the largest mean gain first.

    The intervals over seeds take scores to scatter alike whatever the idea, for three seeds tell no idea's own
    scatter.

    Args:
        records: recorded runs by name; ideas that lack a seed, or its run without the idea, are left out, and so are
            those that combine all seeds.
        size: training questions.
        evaluation: as `trials` takes it.
        metric: as `trials` takes it.

    Raises:
        RecordError: if the seeds' runs were not asked the same questions in the same order.
    """
    bases = [records.get(at_size(size, seed).name) for seed in SEEDS]
    columns = {}  # by idea: a pair of columns a seed
    for which in (name for name in IDEAS if name not in COMBINES):
        runs = [records.get(idea(which, size, seed).name) for seed in SEEDS]
        pairs = [(base, run) for base, run in zip(bases, runs, strict=True) if base and run]
        if len(pairs) == len(SEEDS):
            if len({tuple(base.questions.id) for base, _ in pairs}) > 1:
                raise RecordError(f"the seeds of '{which}' on {size:,} questions were not asked the same questions")
            columns[which] = 100.0 * np.array([paired_columns(base, run, metric, evaluation) for base, run in pairs])
    if not columns:
        return []
    scores = {which: pair.mean(axis=2) for which, pair in columns.items()}  # (seed, without or with)
    without = next(iter(scores.values()))[:, 0]
    treated = {which: pair[:, 1].tolist() for which, pair in scores.items()}
    over_seeds = gains_over_blocks(without.tolist(), treated, together=True)
    found = [
        Confirmation(
            which,
            tuple((scores[which][:, 1] - scores[which][:, 0]).tolist()),
            paired_difference(*pair.mean(axis=0)),
            over_seeds[which],
        )
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
