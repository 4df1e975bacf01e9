"""What the tests share: no network, no progress bars, one thread, and a few things that are slow to make."""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("course", deadline=None)  # a busy machine is no reason to fail
# What CI tries is the same each time, so that it fails by what was changed; new cases are sought everywhere else.
settings.register_profile("ci", parent=settings.get_profile("course"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "course")


@pytest.fixture(scope="session")
def tokenizer():
    from qa_helpers.model.load import load_tokenizer

    return load_tokenizer()


@pytest.fixture(scope="session")
def course():
    """CourseQA's training questions, as rows."""
    from qa_helpers.data.squad import ASSETS
    from qa_helpers.data.squad_file import read_squad_file

    return read_squad_file(ASSETS / "courseqa" / "train.json")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A runs folder with one finished run, "finished", which no test changes; and the run."""
    from qa_helpers.experiment.spec import EvalSet, SpanTraining
    from qa_helpers.experiment.store import run_experiment

    folder: Path = tmp_path_factory.mktemp("runs")
    experiment = SpanTraining(
        name="finished",
        train_size=16,
        evaluations={"first": EvalSet(limit=12), "drawn": EvalSet(limit=12, sampling="random")},
        epochs=1,
        learning_rate=5e-4,
        probe_size=4,
    )
    return folder, run_experiment(experiment, folder)


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """Makes an encoder with a span head and two layers of 16 units, as drawn at random by a seed."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )

    def make(seed=0):
        torch.manual_seed(seed)
        return BertForQuestionAnswering(config)

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Any use of a socket is an error of its own, which no one catches."""

    class NetworkTouchedError(BaseException):
        pass

    def touched(*_args, **_options):
        raise NetworkTouchedError

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(f"socket.socket.{name}", touched)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(f"socket.{name}", touched)


@pytest.fixture(scope="session")
def inputs(tokenizer, course):
    """Two questions of different length, padded."""
    return tokenizer(
        [row["question"] for row in course[:40:20]],
        [row["context"] for row in course[:40:20]],
        padding=True,
        return_tensors="pt",
    )
