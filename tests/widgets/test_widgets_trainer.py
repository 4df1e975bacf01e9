"""The trainer panel: a real training that is stopped and goes on; and processes that only pretend, for the rest."""

import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qa_helpers.experiment.catalogue import METHODS
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.scales import SCALES
from qa_helpers.experiment.spec import EvalSet, SpanTraining
from qa_helpers.experiment.store import run_experiment
from qa_helpers.widgets import trainer
from qa_helpers.widgets.child import ORPHANED
from qa_helpers.widgets.trainer import METHOD_NAMES, TrainerPanel, kept_epochs, panel_experiment

QUICK = SCALES["quick"]
SMALL = SpanTraining(
    name="small", train_size=8, evaluations={"few": EvalSet(limit=4)}, epochs=3, batch_size=4, probe_size=0
)
PRETEND = """
import json, pathlib, signal, sys, time
description, folder = map(pathlib.Path, sys.argv[1:])
file = folder / json.loads(description.read_text())["name"] / "checkpoints" / "progress.json"
file.parent.mkdir(parents=True, exist_ok=True)

def reach(step, stage="training"):
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"stage": stage, "step": step, "steps": 10, "epoch": step / 10, "loss": None}))
    new.replace(file)

"""


def words(shown: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", shown, flags=re.DOTALL)))


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs this Python code instead of an experiment."""

    def replace(code: str) -> None:
        command = [sys.executable, "-c", PRETEND + code]
        monkeypatch.setattr(trainer, "_command", lambda description, folder: [*command, str(description), str(folder)])

    return replace


@pytest.fixture
def panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerPanel:
    monkeypatch.delenv("QA_SCALE", raising=False)
    return TrainerPanel(tmp_path)


def checkpoint(home: Path, step: int, epoch: float, whole: bool = True) -> None:
    folder = home / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": epoch, "global_step": step}))
    if whole:
        (folder / "complete").touch()


# ---- settings --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trainable", METHOD_NAMES.values())
def test_settings_make_an_experiment(trainable: str) -> None:
    one = panel_experiment(QUICK, 200, 5, METHODS[trainable], trainable)
    assert (one.train_size, one.epochs, one.learning_rate, one.trainable) == (200, 5, METHODS[trainable], trainable)
    assert (one.data, one.model) == (QUICK.data, QUICK.model)
    assert one == panel_experiment(QUICK, 200, 5, METHODS[trainable], trainable)
    others = [
        panel_experiment(QUICK, 100, 5, METHODS[trainable], trainable),
        panel_experiment(QUICK, 200, 4, METHODS[trainable], trainable),
        panel_experiment(QUICK, 200, 5, 1e-6, trainable),
        panel_experiment(SCALES["class"], 200, 5, METHODS[trainable], trainable),
        panel_experiment(QUICK, 200, 5, METHODS[trainable], trainable, seed=1),
    ]
    assert len({other.name for other in [one, *others]}) == 6


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.0, 1e30, float("nan"), float("inf")])
def test_a_learning_rate_out_of_range_is_said_and_nothing_starts(panel: TrainerPanel, rate: float) -> None:
    panel.learning_rate.value = rate
    panel.start.click()
    assert "a learning rate lies between 0 and 1" in words(panel.status.value)
    assert panel.job is None
    with pytest.raises(RecordError, match="epochs"):
        panel_experiment(QUICK, 200, -1, 1e-4, "all")


def test_the_inputs_are_what_is_trained(panel: TrainerPanel) -> None:
    panel.size.value, panel.epochs.value, panel.method.value = 200, 7, "lora"
    assert panel.learning_rate.value == METHODS["lora"]
    panel.learning_rate.value = 3e-3
    assert panel.experiment() == panel_experiment(QUICK, 200, 7, 3e-3, "lora")
    shown = words(panel.to_html())
    assert "200 of courseqa" in shown
    assert "LoRA" in shown
    assert "0.003" in shown
    assert "State: not started" in shown


# ---- processes that pretend ------------------------------------------------------------------------------------
def test_progress_and_what_is_left_come_from_the_runs_file(panel: TrainerPanel, pretend: Callable[[str], None]) -> None:
    pretend("for n in range(1, 10):\n reach(n)\n time.sleep(.2)\ntime.sleep(60)")
    panel.start.click()
    until(lambda: "step 9 of 10" in panel.status.value)
    assert panel.job
    now = panel.job.progress()
    assert (now.state, now.share) == ("training", 0.9)
    assert now.seconds_left is not None
    assert 0.1 < now.seconds_left < 5
    until(lambda: "s left" in panel.status.value)
    assert panel.bar.value == 0.9
    assert "State: training" in panel.to_html()
    panel.start.click()
    assert "a training is under way" in panel.status.value
    panel.stop.click()
    assert "stopped; no epoch was complete" in panel.status.value


def test_after_the_last_step_questions_are_answered(panel: TrainerPanel, pretend: Callable[[str], None]) -> None:
    pretend("reach(10, 'trained'); time.sleep(60)")
    panel.start.click()
    until(lambda: "trained; answering the validation questions" in panel.status.value)
    assert panel.bar.value == 1
    assert "State: scoring" in panel.to_html()
    panel.stop.click()


def test_what_an_earlier_training_said_is_forgotten(
    panel: TrainerPanel, pretend: Callable[[str], None], tmp_path: Path
) -> None:
    pretend("time.sleep(60)")
    checkpoint(tmp_path / panel.experiment().name, 10, 1.0)
    said = tmp_path / panel.experiment().name / "checkpoints" / "progress.json"
    said.write_text('{"stage": "training", "step": 7, "steps": 10, "epoch": 0.7, "loss": 1.5}')
    panel.start.click()
    until(lambda: "starting: loading libraries and data" in panel.status.value)
    assert panel.bar.value == pytest.approx(1 / 3), "what is kept"
    panel.stop.click()


def test_a_process_that_does_not_want_to_end_is_ended_within_two_seconds(
    panel: TrainerPanel, pretend: Callable[[str], None], tmp_path: Path
) -> None:
    pretend("signal.signal(signal.SIGTERM, signal.SIG_IGN); reach(3); time.sleep(60)")
    home = tmp_path / panel.experiment().name
    checkpoint(home, 10, 1.0)
    checkpoint(home, 20, 2.0)
    checkpoint(home, 30, 3.0, whole=False)
    panel.start.click()
    until(lambda: "step 3" in panel.status.value)
    begin = time.monotonic()
    panel.stop.click()
    assert time.monotonic() - begin < 2
    assert panel.wait(1)
    assert "stopped; epoch 2 of 3 is kept: Start goes on from there" in panel.status.value
    assert panel.bar.value == pytest.approx(2 / 3)
    panel.stop.click()
    assert "there is nothing to stop" in panel.status.value


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (r"sys.stderr.write('\rtraining: 10%|# | 1/10\r\nqa_helpers: no such data\n'); sys.exit(2)", "no such data"),
        ("sys.exit(1)", "ended with exit code 1"),
        pytest.param(
            "import os; os.kill(os.getpid(), 9)",
            "ended by signal 9",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
        ),
    ],
)
def test_a_failure_is_said(panel: TrainerPanel, pretend: Callable[[str], None], code: str, words: str) -> None:
    pretend(code)
    panel.start.click()
    assert panel.wait(20)
    assert f"failed: {words}" in panel.status.value
    assert "State: failed" in panel.to_html()
    pretend(code)
    panel.start.click()  # another try is possible
    assert panel.wait(20)


def test_a_process_that_ends_well_without_a_record_is_said(panel: TrainerPanel, pretend: Callable[[str], None]) -> None:
    pretend("")
    panel.start.click()
    assert panel.wait(20)
    assert "run.json: cannot be read" in panel.status.value


def test_the_kernel_is_free_while_it_trains(panel: TrainerPanel, pretend: Callable[[str], None]) -> None:
    pretend("time.sleep(60)")
    begin = time.monotonic()
    panel.start.click()
    assert time.monotonic() - begin < 1
    assert not panel.wait(0)
    panel.stop.click()
    assert panel.wait(0)


def test_checkpoints_that_are_being_written_do_not_count(tmp_path: Path) -> None:
    assert kept_epochs(tmp_path) == 0
    checkpoint(tmp_path, 9, 1.0)
    checkpoint(tmp_path, 18, 2.0, whole=False)
    assert kept_epochs(tmp_path) == 1
    (tmp_path / "checkpoints" / "checkpoint-9" / "trainer_state.json").unlink()
    assert kept_epochs(tmp_path) == 0


def test_a_process_ends_with_the_one_that_started_it() -> None:
    command = [sys.executable, "-m", "qa_helpers.widgets.child", "run", "quick-baseline-500-seed0"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdin
    process.stdin.close()  # as the system does when its other end is gone
    assert process.wait(60) == ORPHANED


# ---- a real one ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[Run] = []
    panel = TrainerPanel(tmp_path, finished.append)
    monkeypatch.setattr(panel, "experiment", lambda: SMALL)
    panel.start.click()
    until(lambda: kept_epochs(tmp_path / "small") >= 1)
    begin = time.monotonic()
    panel.stop.click()
    assert time.monotonic() - begin < 2
    kept = kept_epochs(tmp_path / "small")
    assert 1 <= kept < 3
    assert f"epoch {kept} of 3 is kept" in panel.status.value

    panel.start.click()
    until(lambda: "training: step" in panel.status.value)
    step = int(re.search(r"step (\d+) of 6", panel.status.value).group(1))  # type: ignore[union-attr]
    assert step >= 2 * kept, f"went on after {kept} epochs of two steps"
    assert panel.wait(240)
    assert "finished: small: EM" in words(panel.status.value)
    assert panel.bar.value == 1
    (run,) = finished
    assert [step for step, _ in run.losses] == [2, 4, 6]
    assert run_experiment(SMALL, tmp_path) == run, "it is a run like any other, and is read back"
