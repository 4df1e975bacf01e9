"""What the chains of several seeds say together: a policy against the reference, on the same held-out questions.

All seeds ask the same questions. For an interval over questions or articles a question's values are averaged over the
seeds first: it says what other questions would give, with these seeds. One over seeds says what other seeds would give,
with these questions.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from qa_helpers.evaluation.statistics import (
    PERCENT_BOUNDS,
    UNBOUNDED,
    Interval,
    WinRate,
    gains_over_blocks,
    paired_difference,
    win_rate,
)
from qa_helpers.experiment.spec import RecordError
from qa_helpers.rlhf.record import ChainRun, Columns

PERCENT = ("exact_match", "f1", "agreement")  # columns whose means are given in percent


def held_out(runs: Iterable[ChainRun]) -> list[str]:
    """The ids of the held-out questions, which all runs must share.

    Raises:
        RecordError: if there is no run, or two asked other questions.
    """
    asked = {run.chain.name: run.ids for run in runs}
    if not asked:
        raise RecordError("there is no record of a chain; `python -m qa_helpers chain class-rlhf-seed0` makes one")
    (first, ids), *others = asked.items()
    for name, found in others:
        if found != ids:
            raise RecordError(f"the chains '{first}' and '{name}' were measured on other questions; compare them apart")
    return ids


def having(runs: Iterable[ChainRun], *names: str) -> list[ChainRun]:
    """Those of the runs that have all of these policies, so that what is compared rests on the same seeds.

    Raises:
        RecordError: if none has.
    """
    found = [run for run in runs if run.everything.keys() >= set(names)]
    if not found:
        raise RecordError(f"no chain has all of {', '.join(names)}; run one whose plan names them")
    return found


def gain(
    runs: Sequence[ChainRun], policy: str, column: str, against: str = "reference", over_articles: bool = False
) -> Interval:
    """By how much a policy is better than another, paired by question and averaged over the seeds.

    Args:
        runs: of the same questions, one a seed.
        policy, against: keys of `ChainRun.everything`.
        column: a field of `Columns`; EM, F1 and agreement in percent.
        over_articles: draw whole articles for the interval instead of questions.

    Raises:
        RecordError: if the runs do not share their questions, or one lacks the policy.
    """
    held_out(runs)
    scale, bounds = (100.0, PERCENT_BOUNDS) if column in PERCENT else (1.0, UNBOUNDED)
    before, after = (scale * _mean(runs, name, column) for name in (against, policy))
    return paired_difference(before, after, clusters=runs[0].titles if over_articles else None, bounds=bounds)


def gains_over_seeds(runs: Sequence[ChainRun], column: str, against: str = "reference") -> dict[str, Interval]:
    """By how much each policy that all runs have is better than another, with its interval over seeds.

    The seeds are the blocks of `statistics.gains_over_blocks`. All policies that the runs share are its treatments, so
    that an interval does not depend on which of them are shown.

    Raises:
        RecordError: if the runs do not share their questions, are fewer than two, or lack `against`.
    """
    held_out(runs)
    if len(runs) < 2:
        raise RecordError("an interval over seeds takes two chains or more; `gain` gives one over questions")
    shared = set.intersection(*(set(run.policies) for run in runs)) | {"reference", against}
    scale = 100.0 if column in PERCENT else 1.0
    scores = {name: [scale * _columns(run, name).array(column).mean() for run in runs] for name in sorted(shared)}
    return gains_over_blocks(scores.pop(against), scores)


def wins(run: ChainRun, policy: str, against: str = "reference", over_articles: bool = False) -> WinRate:
    """How often people agree more with a policy's answer than with another's."""
    before, after = (_columns(run, name).array("agreement") for name in (against, policy))
    return win_rate(before, after, clusters=run.titles if over_articles else None)


def share_of_optimum(run: ChainRun, policy: str, beta: float) -> float:
    """How much of what reward - beta * KL can gain over the reference a policy has gained, at most 1; by means."""
    found, best, first = (
        float(_columns(run, name).objective(beta).mean()) for name in (policy, f"optimum, beta {beta:g}", "reference")
    )
    return (found - first) / (best - first)


def _mean(runs: Sequence[ChainRun], name: str, column: str) -> np.ndarray:
    found: np.ndarray = np.mean([_columns(run, name).array(column) for run in runs], axis=0)
    return found


def _columns(run: ChainRun, name: str) -> Columns:
    everything = run.everything
    if name not in everything:
        raise RecordError(f"the chain '{run.chain.name}' has no '{name}'; it has {', '.join(everything)}")
    return everything[name]
