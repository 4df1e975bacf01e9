"""A list of experiments, one after another or several at a time: `python -m qa_helpers sweep`.

Each experiment runs in a process of its own, `python -m qa_helpers run`. That costs some seconds of imports each and
buys what a worker that goes on to the next experiment cannot have: GPU and threads set before torch loads, a memory
figure free of the run before, and a crash or want of memory that ends one experiment and not the sweep.

What it simplifies: nothing is spread over several machines.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from tqdm.auto import tqdm

from qa_helpers.common.device import progress_bar
from qa_helpers.common.io import CourseError, check_writable, user_path, write_atomically
from qa_helpers.experiment.lists import check_starts, is_finished
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record, write_record
from qa_helpers.experiment.spec import Experiment, Training
from qa_helpers.experiment.store import run_experiment, runs_folder, training_questions
from qa_helpers.training.trainer import read_progress

POLL_SECONDS = 0.2  # how often the processes and their progress are looked at
START_COST = 100  # what loading and the last evaluation cost, in questions trained on: a rough mean


# ---- the sweep -------------------------------------------------------------------------------------------------
def run_sweep(
    experiments: Sequence[Experiment],
    folder: Path | str | None = None,
    records: Path | str | None = None,
    processes: int | None = None,
) -> tuple[dict[str, Run], dict[str, str]]:
    """Run a list of experiments: finished ones are read back, half-done ones go on.

    One that fails stops only those that start from it. Whatever ends the sweep early, such as Ctrl-C, ends its
    processes, too; what they did stays, and the next sweep goes on from there.

    Args:
        experiments: what to run, each name once.
        folder: the runs folder; `runs_folder()` if None.
        records: also write each run's record into this folder.
        processes: how many experiments to run at a time; as many as there are GPUs, at least one, if None. They take
            the GPUs in turn and share the cores.

    Returns:
        The runs, and for each experiment that failed a sentence that says why; by name, in the list's order.

    Raises:
        CourseError: if an experiment starts from a run that is neither earlier in the list nor finished, or a folder
            cannot be written to.
    """
    folder = runs_folder(folder)
    check_starts(experiments, folder)
    records_folder = user_path(records) if records else None
    if records_folder:
        check_writable(records_folder / "run.json")
    sweep = _Sweep(folder, records_folder)
    waiting = sweep.read_back(experiments)
    if waiting:
        check_writable(folder / "run.json")
        sweep.run(waiting, environments(min(processes or max(1, len(gpus())), len(waiting))))
    names = [experiment.name for experiment in experiments]
    return (
        {name: sweep.runs[name] for name in names if name in sweep.runs},
        {name: sweep.failures[name] for name in names if name in sweep.failures},
    )


@dataclass(frozen=True)
class _Worker:
    """A process that runs one experiment."""

    experiment: Experiment
    process: "subprocess.Popen[bytes]"
    errors: Path  # what it writes to standard error
    environment: dict[str, str]


@dataclass(frozen=True)
class _Sweep:
    """What has come of the experiments so far."""

    folder: Path
    records: Path | None
    runs: dict[str, Run] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def read_back(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Read the finished ones; returns the others."""
        waiting = []
        for experiment in experiments:
            if not is_finished(experiment.name, self.folder):
                waiting.append(experiment)
                continue
            try:
                self._keep(run_experiment(experiment, self.folder), " (read back)")
            except CourseError as problem:
                self._fail(experiment, str(problem))
        return waiting

    def run(self, waiting: list[Experiment], free: list[dict[str, str]]) -> None:
        """Run experiments, one at a time in each of the environments; both lists are used up."""
        progress = _Progress(waiting, self.folder)
        workers: list[_Worker] = []
        with tempfile.TemporaryDirectory() as scratch:
            try:
                while waiting or workers:
                    for experiment in self._ready(waiting, workers):
                        if failed := [name for name in experiment.parents if name in self.failures]:
                            waiting.remove(experiment)
                            self._fail(experiment, f"not run, since '{failed[0]}' failed")
                        elif free:
                            waiting.remove(experiment)
                            workers.append(_start(experiment, self.folder, Path(scratch), free.pop(0)))
                    time.sleep(POLL_SECONDS)
                    for worker in [worker for worker in workers if worker.process.poll() is not None]:
                        workers.remove(worker)
                        free.append(worker.environment)
                        self._finish(worker)
                    progress.update([*self.runs, *self.failures])
            finally:
                progress.bar.close()
                for worker in workers:
                    worker.process.kill()  # no harm: a killed run goes on from its last whole epoch
                    worker.process.wait()

    @staticmethod
    def _ready(waiting: Sequence[Experiment], workers: Sequence[_Worker]) -> list[Experiment]:
        """Those that wait for no other."""
        pending = {experiment.name for experiment in waiting} | {worker.experiment.name for worker in workers}
        return [experiment for experiment in waiting if pending.isdisjoint(experiment.parents)]

    def _finish(self, worker: _Worker) -> None:
        code = worker.process.returncode
        said = worker.errors.read_text(encoding="utf-8", errors="replace").strip()
        try:
            if code == 0:
                self._keep(read_record(self.folder / worker.experiment.name))
            else:
                self._fail(worker.experiment, _reason(code, said))
        except CourseError as problem:
            self._fail(worker.experiment, str(problem))
        if said and code != 2:  # a warning, or where it crashed; with code 2 it is the reason
            _say(said, sys.stderr)

    def _keep(self, run: Run, remark: str = "") -> None:
        name = run.experiment.name
        if self.records:
            write_record(run, self.records / name)
        self.runs[name] = run
        scores = ", ".join(f"{scores.exact_match.value:.1f} ({part})" for part, scores in run.scores.items())
        _say(f"{name}: EM {scores}, {run.timing.train_seconds + run.timing.eval_seconds:.0f} s{remark}")

    def _fail(self, experiment: Experiment, reason: str) -> None:
        self.failures[experiment.name] = reason
        _say(f"{experiment.name}: failed")


def _say(line: str, file: TextIO | None = None) -> None:
    """Print a line without breaking a progress bar."""
    file = file or sys.stdout
    tqdm.write(line, file=file)
    file.flush()  # for who follows a log file


# ---- processes -------------------------------------------------------------------------------------------------
def gpus() -> list[str]:
    """The CUDA GPUs that may be used, as `CUDA_VISIBLE_DEVICES` takes them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def environments(processes: int) -> list[dict[str, str]]:
    """Variables for as many processes at a time: one GPU each, in turn, and a share of the cores.

    A number of threads that is set already is left as it is.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    common = {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ, "TQDM_DISABLE": "1"}
    cards = gpus()
    return [
        common | ({"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}) for number in range(processes)
    ]


def _command(experiment: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "qa_helpers", "run", str(experiment), "--folder", str(folder)]


def _start(experiment: Experiment, folder: Path, scratch: Path, environment: dict[str, str]) -> _Worker:
    description, errors = scratch / f"{experiment.name}.json", scratch / f"{experiment.name}.err"
    write_atomically(description, experiment.model_dump_json())
    with errors.open("wb") as file:
        process = subprocess.Popen(
            _command(description, folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    return _Worker(experiment, process, errors, environment)


def _reason(code: int, said: str) -> str:
    """Why a process failed, from its exit code and what it wrote to standard error."""
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")
    return said.splitlines()[-1].removeprefix("qa_helpers: ") if said else f"ended with exit code {code}"


# ---- progress --------------------------------------------------------------------------------------------------
class _Progress:
    """A bar over the questions that experiments train on, each counted once an epoch."""

    def __init__(self, experiments: Sequence[Experiment], folder: Path) -> None:
        self.folder = folder
        self.totals = {plan.name: START_COST + _training_questions(plan) for plan in experiments}
        self.bar = progress_bar(
            total=sum(self.totals.values()),
            initial=self.done(()),
            smoothing=0,  # what remains, by the speed on average: steps are few and large
            bar_format="sweep: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}",
        )

    def update(self, ended: Collection[str]) -> None:
        self.bar.update(self.done(ended) - self.bar.n)

    def done(self, ended: Collection[str]) -> int:
        return sum(
            total if name in ended else int((total - START_COST) * _share_trained(self.folder / name))
            for name, total in self.totals.items()
        )


def _training_questions(experiment: Experiment) -> int:
    """How many it trains on, each counted once an epoch."""
    with contextlib.suppress(CourseError):  # its own run will say what is wrong with its data
        return experiment.epochs * training_questions(experiment) if isinstance(experiment, Training) else 0
    return 0


def _share_trained(home: Path) -> float:
    """How much of its training a run has done."""
    progress = read_progress(home / "checkpoints")
    if progress is None:
        return float((home / "run.json").exists())
    return progress.step / progress.steps
