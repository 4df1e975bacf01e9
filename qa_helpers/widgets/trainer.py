"""The trainer panel: choose an experiment, start it, watch it, stop it, while the notebook stays usable.

The experiment runs in a process of its own, as from the command line, so that the kernel has nothing to do but look
at the file in which it says how far it is.
Stopping ends that process: of a run that is started again with the same settings, the epochs that were trained count.

What it simplifies: the time that is left is that of the training, by its mean speed so far; the last scoring comes on
top.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ipywidgets

from qa_helpers.common.io import CourseError, read_json, write_atomically
from qa_helpers.experiment.catalogue import METHODS, method
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.scales import Scale, current_scale
from qa_helpers.experiment.spec import SpanTraining, Training, change
from qa_helpers.experiment.store import runs_folder
from qa_helpers.training.trainer import COMPLETE, PROGRESS, read_progress
from qa_helpers.widgets.look import Shown, block, button, labelled, paragraph, problem, table

POLL_SECONDS = 0.2  # how often the process is looked at
STOP_SECONDS = 1.0  # what a process that is asked to end gets before it is ended
METHOD_NAMES = {
    "all weights": "all",
    "the last two layers": "last:2",
    "the head alone": "head",
    "LoRA": "lora",
    "IA³": "ia3",
}


def panel_experiment(
    scale: Scale, train_size: int, epochs: int, learning_rate: float, trainable: str, seed: int = 0
) -> SpanTraining:
    """The experiment that these settings describe; the same settings have the same name.

    Raises:
        RecordError: if one of them is out of range.
    """
    if not 0 < learning_rate < 1:
        raise RecordError(
            f"a learning rate lies between 0 and 1, such as {METHODS[trainable]:g}; this one is {learning_rate}"
        )
    short = trainable.replace(":", "")
    name = f"panel-{scale.name}-{train_size}-{epochs}ep-{short}-lr{learning_rate:g}-seed{seed}"
    asked = method(scale, trainable, learning_rate, seed)
    return change(asked, name=name, train_size=train_size, epochs=epochs, retrieval=False, probe_size=100)


# ---- the process -----------------------------------------------------------------------------------------------
State = Literal["starting", "training", "scoring", "finished", "stopped", "failed"]
UNDER_WAY = ("starting", "training", "scoring")


@dataclass(frozen=True)
class Progress:
    """How far a job is, as numbers for the bar and as a sentence."""

    state: State
    share: float  # of the training that is done, 0 to 1
    seconds_left: float | None  # of training; None where that is not known yet
    words: str


class TrainingJob:
    """One experiment in a process of its own."""

    def __init__(self, experiment: Training, folder: Path | str | None = None) -> None:
        """Start it; one that was stopped goes on, one that is finished is read back."""
        self.experiment, self.folder = experiment, runs_folder(folder)
        self._stopped = False
        self._first: tuple[float, float] | None = None  # when training was first seen, and what share was done then
        scratch = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        description, self._said = scratch / "experiment.json", scratch / "said"
        write_atomically(description, experiment.model_dump_json())
        if (self._checkpoints / PROGRESS).exists():  # of a training that was ended before
            (self._checkpoints / PROGRESS).unlink(missing_ok=True)
        with self._said.open("wb") as file:
            self._process = subprocess.Popen(
                _command(description, self.folder),
                env=os.environ | {"TQDM_DISABLE": "1"},  # what it writes is what went wrong
                stdin=subprocess.PIPE,  # closed with this process, see `child`
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,  # interrupting a cell is not meant for it
            )

    @property
    def home(self) -> Path:
        """The folder in which the run's record, model and checkpoints lie."""
        return self.folder / self.experiment.name

    @property
    def _checkpoints(self) -> Path:
        return self.home / "checkpoints"

    def stop(self) -> None:
        """End the process, within two seconds; what it has trained is kept, to the last whole epoch."""
        self._stopped = True
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def progress(self) -> Progress:
        """How far it is now, from its process and the file in which it says so; why it ended, if it has."""
        code = self._process.poll()
        if code is None:
            return self._under_way()
        if code == 0:
            return Progress("finished", 1.0, 0.0, "finished")
        epochs, of = kept_epochs(self.home), self.experiment.epochs
        if self._stopped:
            kept = f"epoch {epochs} of {of} is kept: Start goes on from there" if epochs else "no epoch was complete"
            return Progress("stopped", epochs / of, None, f"stopped; {kept}")
        return Progress("failed", epochs / of, None, f"failed: {_reason(code, self._said)}")

    def run(self) -> Run:
        """The finished run.

        Raises:
            RecordError: if it is not finished.
        """
        return read_record(self.home)

    def _under_way(self) -> Progress:
        training = read_progress(self._checkpoints)
        if training is None:
            epochs = kept_epochs(self.home)
            return Progress("starting", epochs / self.experiment.epochs, None, "starting: loading libraries and data")
        if training.step == training.steps:
            return Progress("scoring", 1.0, 0.0, "trained; answering the validation questions")
        share = training.step / training.steps
        left = self._seconds_left(share)
        words = f"training: step {training.step:,} of {training.steps:,}"
        return Progress("training", share, left, words + (f", {_time(left)} left" if left is not None else ""))

    def _seconds_left(self, share: float) -> float | None:
        """By the mean speed since the first step that was seen."""
        now = time.monotonic()
        self._first = self._first or (now, share)
        begin, share_then = self._first
        return (1 - share) * (now - begin) / (share - share_then) if share > share_then else None


def _command(description: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "qa_helpers.widgets.child", "run", str(description), "--folder", str(folder)]


def kept_epochs(home: Path) -> int:
    """The epochs that a run has done and will not do again if it is ended now, from its whole checkpoints."""
    epochs = []
    for path in home.glob(f"checkpoints/checkpoint-*/{COMPLETE}"):
        with contextlib.suppress(CourseError):  # the run goes on, and has removed it since
            epochs.append(round(read_json(path.parent / "trainer_state.json")["epoch"]))
    return max(epochs, default=0)


def _reason(code: int, said: Path) -> str:
    """Why a process ended with this code: the last line of what it wrote, if there is one."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("qa_helpers: ") if lines else f"ended with exit code {code}"


def _time(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, round(seconds))} s"


# ---- the widget ------------------------------------------------------------------------------------------------
class TrainerPanel(Shown):
    """Settings, Start, Stop, a progress bar; what is finished is handed on."""

    def __init__(self, folder: Path | str | None = None, on_finished: Callable[[Run], Any] | None = None) -> None:
        """Show the settings of the current scale.

        Args:
            folder: the runs folder; `runs_folder()` if None.
            on_finished: called with each finished run, such as `Dashboard.add`.
        """
        self.scale, self.folder, self._on_finished = current_scale(), runs_folder(folder), on_finished
        self.job: TrainingJob | None = None
        self._thread: threading.Thread | None = None
        self.size = labelled(ipywidgets.Dropdown, "Questions", options=list(self.scale.sizes))
        self.epochs = labelled(ipywidgets.BoundedIntText, "Epochs", value=self.scale.epochs, min=1, max=100)
        self.method = labelled(ipywidgets.Dropdown, "What is trained", options=METHOD_NAMES)
        self.learning_rate = labelled(ipywidgets.FloatText, "Learning rate", value=METHODS["all"], step=1e-5)
        self.start = button("Start", "train with these settings, or go on where they were stopped")
        self.stop = button("Stop", "end the training; whole epochs are kept")
        self.bar, self.status = ipywidgets.FloatProgress(min=0, max=1), ipywidgets.HTML()
        self.method.observe(self._suggest, "value")
        self.start.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._stop())
        fields = [self.size, self.epochs, self.method, self.learning_rate]
        self.box = ipywidgets.VBox([*fields, ipywidgets.HBox([self.start, self.stop, self.bar]), self.status])
        self._say("not started")

    def experiment(self) -> SpanTraining:
        """What the settings describe.

        Raises:
            RecordError: if one is out of range.
        """
        return panel_experiment(
            self.scale, self.size.value, self.epochs.value, self.learning_rate.value, self.method.value
        )

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the training to end, at most so long; whether it has."""
        if self._thread:
            self._thread.join(seconds)
        return not (self._thread and self._thread.is_alive())

    def to_html(self) -> str:
        """A table of the settings, and below it whether a training is under way."""
        rows = [
            ("training questions", f"{self.size.value:,} of {self.scale.data}"),
            ("epochs", str(self.epochs.value)),
            ("what is trained", self.method.label),
            ("learning rate", f"{self.learning_rate.value:g}"),
        ]
        state = self.job.progress().state if self.job else "not started"
        return block(table("Training", ("setting", "value"), rows), paragraph(f"State: {state}"))

    def _suggest(self, change: Any) -> None:
        self.learning_rate.value = METHODS[change["new"]]

    def _start(self) -> None:
        if not self.wait(0):
            self._say("a training is under way: stop it first, or wait for it", wrong=True)
            return
        try:
            self.job = TrainingJob(self.experiment(), self.folder)
        except (CourseError, OSError) as error:
            self._say(str(error), wrong=True)
            return
        self._thread = threading.Thread(target=self._follow, args=[self.job], daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        if self.job is None or self.wait(0):
            self._say("there is nothing to stop", wrong=True)
            return
        self.job.stop()
        self.wait(1)  # then the state on show is the last one

    def _follow(self, job: TrainingJob) -> None:
        """Show a job's progress until it ends: in a thread, so that the kernel is free."""
        while (now := job.progress()).state in UNDER_WAY:
            self._show(now)
            time.sleep(POLL_SECONDS)
        self._show(now)
        if now.state == "finished":
            self._hand_on(job)

    def _hand_on(self, job: TrainingJob) -> None:
        try:
            run = job.run()
        except RecordError as error:  # somebody has removed or changed it since
            self._say(str(error), wrong=True)
            return
        scores = ", ".join(f"EM {score.exact_match}, F1 {score.f1} ({name})" for name, score in run.scores.items())
        self._say(f"finished: {run.experiment.name}: {scores}")
        if self._on_finished:
            self._on_finished(run)

    def _show(self, now: Progress) -> None:
        self.bar.value = now.share
        self._say(now.words, wrong=now.state == "failed")

    def _say(self, sentence: str, wrong: bool = False) -> None:
        words = problem(sentence) if wrong else f'<div role="status">{paragraph(sentence)}</div>'
        self.status.value = block(words)
