"""What depends on how a model answers, by pointing or by writing: how it is loaded, trained and asked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.data.windows import make_windows, training_features
from qa_helpers.evaluation import span_answers, written_answers
from qa_helpers.evaluation.span_answers import Answers
from qa_helpers.experiment.spec import SpanTraining, Task, Training
from qa_helpers.model.load import load_qa_model, load_tokenizer
from qa_helpers.training import labels

Loaded = tuple[nn.Module, PreTrainedTokenizerFast]


class Lessons(NamedTuple):
    """What to train on, what makes batches of it, and the loss; None where the stock one will do."""

    features: Sequence[dict[str, Any]]
    collator: Callable[..., dict[str, Any]] | None = None
    loss: Callable[..., Any] | None = None


class Answering(Protocol):
    """A way to answer."""

    recompute: bool  # in training, see `trainer.Settings`

    def load(self, source: str, seed: int = 0) -> Loaded:
        """A model, of which what it lacks is drawn by the seed, and its tokenizer."""

    def lessons(self, training: Training, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> Lessons:
        """What a training trains on."""

    def answer(self, loaded: Loaded, rows: Dataset, loss: bool = False) -> Answers:
        """A model's answers; their loss, too, if it is asked for."""

    def out_of_reach(self, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> int:
        """How many questions have only answers that are longer than a model may give."""


class _Pointing:
    recompute = False

    def load(self, source: str, seed: int = 0) -> Loaded:
        return load_qa_model(source, seed), load_tokenizer(source)

    def lessons(self, training: Training, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> Lessons:
        windows = make_windows(rows, tokenizer)
        if not isinstance(training, SpanTraining) or (training.label_smoothing, training.targets) == (0, "first"):
            return Lessons(training_features(windows))
        features = labels.training_features(windows, training.targets)
        return Lessons(features, labels.SoftLabelCollator(tokenizer, training.label_smoothing), labels.soft_loss)

    def answer(self, loaded: Loaded, rows: Dataset, loss: bool = False) -> Answers:
        return span_answers.answer(*loaded, rows)

    def out_of_reach(self, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> int:
        return span_answers.out_of_reach(rows, tokenizer)


class _Writing:
    recompute = True  # a language model's many layers would take twice the memory

    def load(self, source: str, seed: int = 0) -> Loaded:
        return written_answers.load_language_model(source), written_answers.load_chat_tokenizer(source)

    def lessons(self, training: Training, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> Lessons:
        return Lessons(written_answers.training_features(rows, tokenizer), written_answers.AnswerCollator(tokenizer))

    def answer(self, loaded: Loaded, rows: Dataset, loss: bool = False) -> Answers:
        answers = written_answers.answer(*loaded, rows)
        return answers._replace(loss=written_answers.answer_loss(*loaded, rows)) if loss else answers

    def out_of_reach(self, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> int:
        return written_answers.out_of_reach(rows, tokenizer)


ANSWERING: dict[Task, Answering] = {"span": _Pointing(), "generate": _Writing()}
