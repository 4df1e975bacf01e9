"""What each idea of `catalogue.IDEAS` was worth: its runs against runs of the same size and seed without it.

Two things are left to luck, the questions and the seed. A trial is one run, whose interval is over the questions
asked: whether these weights answer more of them than those. A confirmation is an idea with all of its seeds, and
has an interval over either.
"""

from collections.abc import Mapping
from itertools import product
from typing import Literal

import numpy as np

from qa_helpers.evaluation.comparisons import gains_over_blocks, paired_difference
from qa_helpers.evaluation.statistics import Interval
from qa_helpers.experiment.catalogue import COMBINES, IDEAS, SEEDS, at_size, idea
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.spec import Training
from qa_helpers.report.tables import Table, compare

Verdict = Literal["better", "worse", "not told apart"]


def verdict(*intervals: Interval) -> Verdict:
    """What all of these intervals of a gain agree on."""
    if all(interval.low > 0 for interval in intervals):
        return "better"
    return "worse" if all(interval.high < 0 for interval in intervals) else "not told apart"


def trials(records: Mapping[str, Run], size: int) -> Table:
    """Every recorded run of an idea on `size` training questions, the largest gain first.

    Args:
        records: recorded runs by name; ideas whose run, or whose base, is not among them are left out.
        size: training questions.

    Returns:
        A line a run: idea, seed; questions that both answered; gain in EM, in points, and its p, see `compare`; cost,
        the questions trained on, once an epoch, against the run without it, of all that the idea needs; verdict, of
        these two runs only.
    """
    lines = []
    for which, seed in product(IDEAS, SEEDS):
        base, run = records.get(at_size(size, seed).name), records.get(idea(which, size, seed).name)
        if base is None or run is None:
            continue
        questions, gain, p = compare(base, run, ["exact_match"]).loc[0, ["questions", "difference", "p"]]
        cost = trained_on(run, records) / trained_on(base, records)
        lines.append((which, seed, questions, gain, p, cost, verdict(gain)))
    lines.sort(key=lambda line: -line[3].value)
    return Table(lines, columns=["idea", "seed", "questions", "gain", "p", "cost", "verdict"])


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


def confirmations(records: Mapping[str, Run], size: int, evaluation: str | None = None) -> Table:
    """The ideas with a run of every seed on `size` training questions, the largest mean gain in EM first.

    The intervals over seeds take scores to scatter alike whatever the idea, for three seeds tell no idea's own
    scatter. Neither interval holds for other seeds *and* other questions at once. Those over seeds hold for all ideas
    at once, those over questions for each by itself.

    Args:
        records: recorded runs by name; ideas that lack a seed, or its run without the idea, are left out, and so are
            those that combine all seeds.
        size: training questions.
        evaluation: the evaluation set to compare on; all questions that both runs were asked if None.

    Returns:
        A line an idea: its gains, in points, by seed; their mean with its interval by questions, if these runs were
        asked other questions of the kind, and by seeds, if other seeds were asked these, see
        `statistics.gains_over_blocks`; the verdict that both agree on.

    Raises:
        RecordError: if the seeds' runs were not asked the same questions in the same order.
    """
    columns = {}  # by idea: EM in percent, (seed, without or with, question)
    for which in (name for name in IDEAS if name not in COMBINES):
        pairs = [(records.get(at_size(size, s).name), records.get(idea(which, size, s).name)) for s in SEEDS]
        complete = [(base, run) for base, run in pairs if base and run]
        if len(complete) < len(SEEDS):
            continue
        if len({tuple(base.questions.id) for base, _ in complete}) > 1:
            raise RecordError(f"the seeds of '{which}' on {size:,} questions were not asked the same questions")
        em = [paired_columns(base, run, "exact_match", evaluation) for base, run in complete]
        columns[which] = 100.0 * np.array(em)
    lines = []
    for which, over_seeds in _gains_over_seeds(columns).items():
        without, treated = columns[which].mean(axis=2).T
        over_questions = paired_difference(*columns[which].mean(axis=0))
        gains = tuple((treated - without).tolist())
        lines.append((which, gains, over_questions, over_seeds, verdict(over_questions, over_seeds)))
    lines.sort(key=lambda line: -line[3].value)
    return Table(lines, columns=["idea", "gains", "by_questions", "by_seeds", "verdict"])


def _gains_over_seeds(columns: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    if not columns:
        return {}
    means = {which: pair.mean(axis=2) for which, pair in columns.items()}  # (seed, without or with)
    without = next(iter(means.values()))[:, 0].tolist()
    return gains_over_blocks(without, {which: mean[:, 1].tolist() for which, mean in means.items()}, together=True)


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
