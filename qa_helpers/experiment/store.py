"""Runs, each once: claim a folder, lock it, train and evaluate in it, read a finished run back.

Files under the runs folder (`$QA_RUNS_DIR`, else `runs/` of the course)::

    NAME/experiment.json   what is being run, so that a half-done run is only ever resumed as what it was
    NAME/checkpoints/      only while the run is under way
    NAME/model/            the fine-tuned weights and the tokenizer
    NAME/answers.parquet   the record, question by question
    NAME/run.json          the rest of the record; its presence says that the run is finished
    .locks/NAME.lock       held by the process that is running it
"""

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qa_helpers.common.io import project_folder, user_path
from qa_helpers.common.quiet import quiet
from qa_helpers.data.squad import load_qa
from qa_helpers.experiment.answering import Loaded
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.lineage import changed_ancestors, load_run
from qa_helpers.experiment.once import run_once
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record, write_record
from qa_helpers.experiment.run import load_rows, train_and_evaluate
from qa_helpers.experiment.spec import Experiment, Training, read_experiment


# ---- folders ---------------------------------------------------------------------------------------------------
def runs_folder(folder: Path | str | None = None) -> Path:
    """Where runs are kept: the folder that is given, else `$QA_RUNS_DIR`, else `runs/` of the course."""
    return user_path(folder or os.environ.get("QA_RUNS_DIR") or project_folder() / "runs")


def load_trained(name: str, folder: Path | str | None = None) -> Loaded:
    """The fine-tuned model of a finished run (an ensemble's as one), on the default device, and its tokenizer.

    Raises:
        RecordError: if there is no such run in the runs folder.
    """
    return load_run(name, runs_folder(folder))


# ---- running ---------------------------------------------------------------------------------------------------
def run_experiment(experiment: Experiment, folder: Path | str | None = None, again: bool = False) -> Run:
    """Train and evaluate, or read the result back if this experiment has been run in this folder.

    A run that was killed goes on from its last whole epoch, and on the same machine ends with the same numbers.

    Args:
        experiment: what to run.
        folder: the runs folder; `runs_folder()` if None.
        again: train again even if there is a result.

    Raises:
        CourseError: if the data or the model cannot be had, it would train for too long (see `check_work`), the folder
            holds another experiment of this name or cannot be written to, or another process is running it.
    """
    home = runs_folder(folder) / experiment.name
    record = home / "run.json"
    if again or not record.exists():
        check_work([experiment])  # before anything is replaced

    def result() -> Run:
        if record.exists():
            return _read_back(home)
        with quiet():
            run = train_and_evaluate(experiment, home)
        write_record(run, home)
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
        return run

    other = (
        f"holds another experiment of the name '{experiment.name}'; give this one another name, or run it with "
        "again=True (--again on the command line), which replaces the other"
    )
    before = partial(_clear, home) if again else None
    return run_once(experiment, home / "experiment.json", record, result, other, before, read_experiment)


# Questions that a span model and a language model may be trained on, each counted once an epoch: hours on a CPU.
MOST_WORK = {"span": 300_000, "generate": 30_000}


def check_work(experiments: Sequence[Experiment]) -> None:
    """Refuse to train for absurdly long, such as by somebody else's record; `$QA_LONG_RUNS` set to 1 allows it.

    Raises:
        CourseError: if experiments that belong together train on more than `MOST_WORK` questions, those that are scored
            after every epoch counted, too.
    """
    if os.environ.get("QA_LONG_RUNS") == "1":
        return
    share = 0.0
    for experiment in experiments:
        if isinstance(experiment, Training):
            asked = training_questions(experiment) + experiment.probe_size
            share += experiment.epochs * asked / MOST_WORK[experiment.task]
            if share > 1:
                raise RecordError(
                    f"'{experiment.name}' trains on {experiment.epochs:,} × {asked:,} questions (epochs × questions, "
                    "those scored after each among them), with what it starts from more than is trained unasked; take "
                    "fewer, or set QA_LONG_RUNS=1 if you mean it"
                )


def training_questions(experiment: Training) -> int:
    """How many questions it trains on in an epoch; where that is all of those made of passages, as many as are asked.

    Raises:
        CourseError: if it trains on all, and the data cannot be had.
    """
    size = experiment.train_size
    return len(load_qa(experiment.data, "train")) if size is None else size


def _clear(home: Path) -> None:
    if home.exists():
        if not (home / "experiment.json").is_file():
            raise RecordError(f"{home}: is no run's folder, so nothing in it is replaced; give another folder or name")
        shutil.rmtree(home)


def _read_back(home: Path) -> Run:
    run = read_record(home)
    if load_rows(run.experiment).fingerprints != run.fingerprints:
        raise RecordError(
            f"{home}: the data have changed since this run; give the experiment another name, or run it with "
            "again=True (--again on the command line)"
        )
    if changed := changed_ancestors(run, home.parent):
        raise RecordError(
            f"{home}: the run '{changed[0]}', which this one rests on, has been replaced since; run this one with "
            "again=True (--again on the command line)"
        )
    return run
