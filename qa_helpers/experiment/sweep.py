"""A list of experiments, one after another or several at a time: `python -m qa_helpers sweep`.

Each experiment runs in a process of its own, `python -m qa_helpers run`. That costs some seconds of imports each and
buys what a worker that goes on to the next experiment cannot have: GPU and threads set before torch loads, a memory
figure free of the run before, and a crash or want of memory that ends one experiment and not the sweep.

What it simplifies: progress is known to the epoch, from the checkpoints; nothing is spread over several machines.
"""

import contextlib
import fnmatch
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from qa_helpers.common.device import progress_bar
from qa_helpers.common.io import CourseError, check_writable, read_json, user_path, write_atomically
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record, write_record
from qa_helpers.experiment.spec import Experiment, RecordError, parse
from qa_helpers.experiment.store import run_experiment, runs_folder, training_questions
from qa_helpers.training.trainer import COMPLETE

POLL_SECONDS = 0.2  # how often the processes and their checkpoints are looked at
START_COST = 100  # what loading and the last evaluation cost, in questions trained on: a rough mean


# ---- the list --------------------------------------------------------------------------------------------------
def read_experiments(paths: Sequence[Path | str]) -> list[Experiment]:
    """The experiments of JSON files that each hold a list: of objects, or of names that `run --list` shows.

    What does not end in .json is no file but a pattern of such names, as `class-experiment*`.

    Raises:
        RecordError: naming the file, the place in its list (counted from 1) and, where there is one, the field; or a
            pattern that no name matches.
    """
    places: dict[str, str] = {}
    experiments = []
    for path in paths:
        raw = read_json(path, RecordError) if str(path).endswith(".json") else _matching(str(path))
        if not isinstance(raw, list) or not raw:
            raise RecordError(f"{path}: is no list of experiments, [{{…}}, …]")
        for number, item in enumerate(raw, start=1):
            place = f"{path}: no. {number}"
            experiment = _experiment(item, place)
            if experiment.name in places:
                raise RecordError(f"{place}: name: '{experiment.name}' is taken ({places[experiment.name]})")
            places[experiment.name] = place
            experiments.append(experiment)
    return experiments


def _matching(pattern: str) -> list[str]:
    names = fnmatch.filter(named_experiments(), pattern)
    if not names:
        raise RecordError(
            f"no experiment has a name like '{pattern}'; run --list shows the names; a list ends in .json"
        )
    return names


def _experiment(item: Any, place: str) -> Experiment:
    if isinstance(item, dict):
        experiment: Experiment = parse(Experiment, item, place)
        return experiment
    if not isinstance(item, str):
        raise RecordError(f"{place}: is neither an experiment, {{…}}, nor the name of one")
    named = named_experiments()
    if item not in named:
        raise RecordError(f"{place}: there is no experiment '{item}'; run --list shows those that have names")
    return named[item]


def check_starts(experiments: Sequence[Experiment], folder: Path) -> None:
    """See that every run which another starts from comes earlier in the list, or is finished.

    Raises:
        RecordError: naming the first that does not.
    """
    earlier: dict[str, Experiment] = {}
    for number, experiment in enumerate(experiments, start=1):
        for start in experiment.parents:
            words = f"no. {number} of the list: '{experiment.name}' starts from '{start}', which"
            if start in earlier:
                if not (earlier[start].epochs or earlier[start].members):
                    raise RecordError(f"{words} trains nothing to start from")
            elif not _is_finished(start, folder):
                raise RecordError(f"{words} is neither earlier in the list nor finished in {folder}")
        earlier[experiment.name] = experiment


def _is_finished(name: str, folder: Path) -> bool:
    return (folder / name / "run.json").exists()


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
    names = [one.name for one in experiments]
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
        finished = [one for one in experiments if _is_finished(one.name, self.folder)]
        for experiment in finished:
            try:
                self._keep(run_experiment(experiment, self.folder), " (read back)")
            except CourseError as problem:
                self._fail(experiment, str(problem))
        return [one for one in experiments if one not in finished]

    def run(self, waiting: list[Experiment], free: list[dict[str, str]]) -> None:
        """Run experiments, one at a time in each of the environments; both lists are used up."""
        progress = _Progress(waiting, self.folder)
        workers: list[_Worker] = []
        with tempfile.TemporaryDirectory() as scratch:
            try:
                while waiting or workers:
                    pending = [one.name for one in waiting] + [worker.experiment.name for worker in workers]
                    for experiment in [one for one in waiting if not set(one.parents) & set(pending)]:
                        if failed := [name for name in experiment.parents if name in self.failures]:
                            waiting.remove(experiment)
                            self._fail(experiment, f"not run, since '{failed[0]}' failed")
                        elif free:
                            waiting.remove(experiment)
                            workers.append(_start(experiment, self.folder, Path(scratch), free.pop(0)))
                    time.sleep(POLL_SECONDS)
                    for worker in [one for one in workers if one.process.poll() is not None]:
                        workers.remove(worker)
                        free.append(worker.environment)
                        self._finish(worker)
                    progress.update([*self.runs, *self.failures])
            finally:
                progress.bar.close()
                for worker in workers:
                    worker.process.kill()  # no harm: a killed run goes on from its last whole epoch
                    worker.process.wait()

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


def _say(line: str, file: Any = None) -> None:
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
        self.homes = {one.name: folder / one.name for one in experiments}
        self.totals = {one.name: START_COST + one.epochs * _training_questions(one) for one in experiments}
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
            total if name in ended else int((total - START_COST) * _share_trained(self.homes[name]))
            for name, total in self.totals.items()
        )


def _training_questions(experiment: Experiment) -> int:
    with contextlib.suppress(CourseError):  # its own run will say what is wrong with its data
        return training_questions(experiment)
    return 0


def _share_trained(home: Path) -> float:
    """How much of its training a run has done, from its newest whole checkpoint."""
    marks = home.glob(f"checkpoints/checkpoint-*/{COMPLETE}")
    newest = max((mark.parent for mark in marks), key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest is None:
        return 0.0
    with contextlib.suppress(CourseError):  # the run has ended since, and its checkpoints are gone
        state = read_json(newest / "trainer_state.json")
        return float(state["global_step"] / state["max_steps"])
    return 1.0
