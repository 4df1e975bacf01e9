"""A recorded experiment run again, and the two runs compared: score by score, and question by question."""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qa_helpers.common.io import project_folder
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.record_files import RUN, check_answers, load_records, read_record
from qa_helpers.experiment.run import load_rows
from qa_helpers.experiment.scores import METRICS, Scores, scores_of
from qa_helpers.experiment.spec import AsItComes, Combination
from qa_helpers.experiment.store import check_work, run_experiment, runs_folder
from qa_helpers.model import load

RERUN_SPREAD = 3.0  # points that a score may move beyond sampling: see docs/results.md, "Do the numbers hold?"
RERUN_CHANGED = 0.17  # share of answers that another machine's run turns right or wrong: the most in nine pairs of runs
Verdict = Literal["same", "within tolerance", "off"]


@dataclass(frozen=True)
class Comparison:
    """One recorded figure against the same figure of a new run, both in percent."""

    figure: str  # such as "all: exact_match"
    recorded: float
    now: float
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """Same to two decimals, within tolerance, or off."""
        if round(self.recorded, 2) == round(self.now, 2):
            return "same"
        return "within tolerance" if abs(self.recorded - self.now) <= self.tolerance else "off"


def compare_with_record(recorded: Run, now: Run) -> list[Comparison]:
    """Every figure of two runs of one experiment, side by side, without questions that only one of them read whole."""
    uneven = recorded.unread ^ now.unread
    figures, figures_now = (_figures(run, uneven) for run in (recorded, now))
    return [Comparison(name, value, figures_now[name][0], room) for name, (value, room) in figures.items()]


def _figures(run: Run, without: Collection[str]) -> dict[str, tuple[float, float]]:
    """Every score of a run without some questions, and recall where it was measured: its value and its tolerance."""
    scores = scores_without(run, without) if without else run.scores
    figures = {
        f"{name}: {metric}": (getattr(means, metric).value, rerun_tolerance(means.questions))
        for name, means in scores.items()
        for metric in METRICS
    }
    if retrieval := run.retrieval:
        times: tuple[Literal["before", "after"], ...] = ("before", "after")
        for when, most in itertools.product(times, (1, 5)):
            figures[f"recall@{most} {when} training"] = (retrieval.recall(when, most).value, RERUN_SPREAD)
    return figures


@dataclass(frozen=True)
class ChangedAnswers:
    """How many answers of two runs of one experiment differ, on the questions that both were asked and could read."""

    questions: int
    texts: int  # that differ
    right: int  # of exact match: that only one of the two has right

    @property
    def percent(self) -> float:
        """Texts that differ, in percent."""
        return 100 * self.texts / self.questions


def changed_answers(first: Run, second: Run) -> ChangedAnswers:
    """Compare two runs answer by answer.

    Raises:
        RecordError: as `paired_columns` does.
    """
    texts, right = (np.not_equal(*paired_columns(first, second, column)) for column in ("prediction", "exact_match"))
    return ChangedAnswers(len(texts), int(texts.sum()), int(right.sum()))


def honest_pairs() -> dict[str, ChangedAnswers]:
    """What is known of honest runs: the course's experiments that ran on both kinds of machine, by name.

    Those that were asked all of SQuAD's validation questions; none where the course's records are not at hand.
    """
    elsewhere = load_records("cpu/*") | load_records("gpu/*")
    records = {name: load_records(name)[name] for name, run in elsewhere.items() if "all" in run.scores}
    return {name: changed_answers(run, elsewhere[name]) for name, run in records.items()}


def changed_in_words(changed: ChangedAnswers) -> str:
    """How many answers differ, and how many do between honest runs on two kinds of machine."""
    words = (
        f"answers: {changed.texts:,} of {changed.questions:,} differ ({changed.percent:.1f} %); "
        f"of {changed.right:,} only one of the two is right (EM)"
    )
    honest = [pair.percent for pair in honest_pairs().values()]
    if not honest:
        return words
    return f"{words}; of {len(honest)} recorded pairs of CPU and GPU, {min(honest):.1f} to {max(honest):.1f} % differ"


def scores_without(run: Run, ids: Collection[str]) -> dict[str, Scores]:
    """A run's scores on each evaluation set without some of its questions."""
    columns = {metric: np.asarray(getattr(run.questions, metric)) for metric in METRICS}
    kept = {name: [i for i in chosen if run.questions.id[i] not in ids] for name, chosen in run.indices.items()}
    return {name: scores_of({metric: columns[metric][chosen] for metric in METRICS}) for name, chosen in kept.items()}


def rerun_tolerance(questions: int) -> float:
    """How far, in points, a score on so many questions may move when an experiment runs again on another machine.

    Two independent causes: the weights, which end a little better or worse (`RERUN_SPREAD`), and the luck of few
    questions when some answers change (1.96 standard errors, with the share `RERUN_CHANGED`).
    """
    return math.hypot(RERUN_SPREAD, 1.96 * 100 * math.sqrt(RERUN_CHANGED / questions))


def rerun(
    record: Run, folder: Path | str | None = None, beside: Path | str | None = None
) -> tuple[Run, list[Comparison]]:
    """Train a recorded experiment again, in a folder of its own, and compare every score with the recorded one.

    If it starts from another run or combines several, these are run again before it, in the same folder, each from its
    own record.

    A record may come from anybody: only the packaged models or models of the Hub, and the course's named data sets
    are loaded, and nothing is written outside of `folder` but what the Hub's client keeps in its cache.

    Args:
        record: what to run again.
        folder: where to write; `rerun/` in the runs folder if None.
        beside: the folder of the record's file, where the records of the runs it starts from are looked for before
            the course's `records/`.

    Raises:
        CourseError: if a record names a path as model or data, its data are not the ones at hand, or the record of
            a run that it starts from is not found.
    """
    chain = _with_starts(record, [Path(beside)] if beside else [])
    for ancestor in chain:  # all, before anything is trained
        _check_rerun(ancestor)
    check_work([ancestor.experiment for ancestor in chain])
    for ancestor in chain:
        run = run_experiment(ancestor.experiment, folder or runs_folder() / "rerun", again=True)
    return run, compare_with_record(record, run)


def _with_starts(record: Run, folders: list[Path]) -> list[Run]:
    """The record, and before it those of the runs that it starts from or combines, in the order to run them in."""
    chain: dict[str, Run] = {}

    def add(run: Run, line: tuple[str, ...]) -> None:
        line = (*line, run.experiment.name)
        for name in run.experiment.parents:
            words = f"'{run.experiment.name}' starts from '{name}'"
            if name in line:
                raise RecordError(f"{words}, which starts from it in turn: such runs cannot have been made")
            if name not in chain:
                add(_record_of_start(name, words, folders), line)
        chain[run.experiment.name] = run

    add(record, ())
    return list(chain.values())


def _record_of_start(name: str, words: str, folders: list[Path]) -> Run:
    paths = [folder / name for folder in (*folders, project_folder() / "records")]
    path = next((path for path in paths if (path / RUN).is_file()), None)
    if path is None:
        raise RecordError(f"{words}, whose record {name} lies neither beside its own nor in the course's")
    start = read_record(path)
    if start.experiment.name != name:
        raise RecordError(f"{path}: is the record of '{start.experiment.name}', not of '{name}'")
    if isinstance(start.experiment, AsItComes):
        raise RecordError(f"{words}, which trained nothing to start from")
    return start


def _check_rerun(record: Run) -> None:
    """Refuse a record whose re-run would load a path, or other data than it states."""
    experiment = record.experiment
    if experiment.data not in ("courseqa", "squad"):
        raise RecordError(f"the record's data '{experiment.data}' is no named data set; only those are re-run")
    model = "minilm" if isinstance(experiment, Combination) else experiment.model
    if model not in load.PACKAGED and not load.is_hub_name(model):
        raise RecordError(f"the record's model '{model}' is no model's name; only named models are re-run")
    rows = load_rows(experiment)
    if rows.fingerprints != record.fingerprints:
        raise RecordError(
            f"the data at hand are not those of the record '{experiment.name}'; their fingerprints differ"
        )
    check_answers(record, {row["id"]: row["answers"]["text"] for row in rows.asked}, f"the record '{experiment.name}'")
