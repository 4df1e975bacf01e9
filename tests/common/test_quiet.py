"""What the package silences it silences while it works: afterwards the libraries are as they were."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import datasets
import pytest
import transformers
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import progress_bar_states
from library_state import LOGGERS, all_is_silent, library_state
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoTokenizer

import qa_helpers
from qa_helpers import __main__ as command_line
from qa_helpers.common.quiet import quiet
from qa_helpers.data.windows import training_features
from qa_helpers.evaluation.written_answers import load_chat_tokenizer, load_language_model
from qa_helpers.experiment import store
from qa_helpers.experiment.spec import SpanTraining
from qa_helpers.rlhf import chain
from qa_helpers.rlhf.chain_record import named_chains
from qa_helpers.rlhf.language import chain as language_chain
from qa_helpers.rlhf.language.record import named_language_chains
from qa_helpers.training.trainer import Settings, train


@pytest.fixture
def loud(monkeypatch):
    """Libraries that say all they can, each switch set to something of its own; the state that this makes."""
    with contextlib.ExitStack() as undo:
        for number, name in enumerate(LOGGERS, 1):
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(number)
        undo.callback(progress_bar_states.update, dict(progress_bar_states))
        undo.callback(progress_bar_states.clear)
        datasets.enable_progress_bars()
        transformers.utils.logging.enable_progress_bar()
        progress_bar_states["peft"] = False
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("always", module="transformers")
        yield library_state()


# ---- the context itself ----------------------------------------------------------------------------------------
def test_within_all_is_silent_and_afterwards_as_it_was(loud):
    with quiet():
        assert all_is_silent()
        with warnings.catch_warnings(record=True) as shown:
            for module in ("transformers.models", "torch", "peft.tuners", "mine", "torchmetrics"):
                warnings.warn_explicit(module, UserWarning, "file", 1, module=module)
        assert [str(warning.message) for warning in shown] == ["mine", "torchmetrics"]
        with quiet():
            assert all_is_silent()
        assert all_is_silent()
    assert library_state() == loud


def test_an_error_leaves_nothing_behind(loud):
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert library_state() == loud


def test_a_choice_made_in_the_environment_stays(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with quiet():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_two_threads_may_overlap(loud):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with quiet():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        assert entered.wait(60)
    assert all_is_silent()  # the other is still within
    leave.set()
    thread.join()
    assert library_state() == loud


# ---- what readers and the command line call --------------------------------------------------------------------
def test_importing_the_whole_package_changes_nothing():
    program = """
import accelerate, IPython, ipywidgets, matplotlib.pyplot, nbclient, nbval.plugin, peft, scipy.stats, trl
from transformers import Trainer
from library_state import library_state
before = library_state()
import importlib, pkgutil, qa_helpers
for module in pkgutil.walk_packages(qa_helpers.__path__, "qa_helpers."):
    if module.name not in ("qa_helpers.__main__", "qa_helpers.widgets.child"):
        importlib.import_module(module.name)
print({name for name, value in library_state().items() if value != before[name]} or "nothing")
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    child = [sys.executable, "-c", program]
    result = subprocess.run(child, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nothing"


def first(named):
    return next(iter(named.values()))


class ReachedError(Exception):
    """Where the work itself would begin."""


@pytest.mark.parametrize(
    ("owner", "name", "enter"),
    [
        (datasets.Dataset, "from_list", lambda _: qa_helpers.load_qa(limit=2)),
        (AutoTokenizer, "from_pretrained", lambda _: qa_helpers.load_tokenizer()),
        (AutoConfig, "from_pretrained", lambda _: qa_helpers.load_tokenizer()),
        (AutoModelForQuestionAnswering, "from_pretrained", lambda _: qa_helpers.load_qa_model()),
        (AutoTokenizer, "from_pretrained", lambda _: load_chat_tokenizer()),
        (AutoModelForCausalLM, "from_pretrained", lambda _: load_language_model()),
        (store, "train_and_evaluate", lambda runs: qa_helpers.run_experiment(SpanTraining(name="x"), runs)),
        (store, "train_and_evaluate", lambda runs: command_line.main(["run", "start-here", "--folder", str(runs)])),
        (chain, "_run", lambda runs: chain.run_chain(first(named_chains()), runs)),
        (language_chain, "_run", lambda runs: language_chain.run_language_chain(first(named_language_chains()), runs)),
    ],
)
def test_work_is_done_in_silence_and_an_error_in_it_leaves_all_as_it_was(
    loud, monkeypatch, tmp_path, owner, name, enter
):
    def reached(*_args, **_options):
        assert all_is_silent()
        raise ReachedError

    monkeypatch.setattr(owner, name, reached)
    with pytest.raises(ReachedError):
        enter(tmp_path)
    assert library_state() == loud


def test_after_use_all_is_as_it_was(loud, finished, tiny_model, tmp_path, capsys):
    runs, run = finished
    rows, tokenizer = qa_helpers.load_qa("courseqa", "validation", 2), qa_helpers.load_tokenizer()
    assert library_state() == loud
    model = tiny_model()
    windows = qa_helpers.make_windows(rows, tokenizer)
    train(model, tokenizer, training_features(windows), Settings(epochs=1), tmp_path)
    assert len(qa_helpers.evaluate(qa_helpers.answer(model, tokenizer, rows).predictions, rows)) == 2
    assert library_state() == loud
    assert qa_helpers.run_experiment(run.experiment, runs) == run
    qa_helpers.load_trained("finished", runs)
    qa_helpers.set_trainable(qa_helpers.load_qa_model(), "lora")
    assert library_state() == loud
    for arguments in (["check"], ["run", "--list"], ["report", str(runs / "finished")], ["rerun", str(runs / "none")]):
        command_line.main(arguments)
    capsys.readouterr()
    assert library_state() == loud
