"""One run of an experiment: train, evaluate, and what is recorded of it."""

import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import (
    default_device,
    describe_machine,
    peak_memory_mib,
    release_memory,
    reset_peak_memory,
    set_seed,
)
from qa_helpers.data.cloze import load_cloze
from qa_helpers.data.squad import fingerprint, load_qa, sample_indices
from qa_helpers.evaluation.metrics import Result, evaluate, relation
from qa_helpers.evaluation.retrieval import retrieval_ranks
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, exact_mean
from qa_helpers.experiment.answering import ANSWERING, Loaded
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.lineage import ancestors, starting_point
from qa_helpers.experiment.questions import Questions
from qa_helpers.experiment.record import Fingerprints, Run, Timing
from qa_helpers.experiment.scores import METRICS, Score, Scores, scores_of
from qa_helpers.experiment.spec import Combination, Experiment, SpanTraining, Task, Training, chosen_questions
from qa_helpers.model import load, trainable
from qa_helpers.model.combine import average_weights
from qa_helpers.training.trainer import History, Settings, complete_checkpoints, train

# Of an encoder with more weights than these, a CPU keeps the activations of so few windows at once: training MPNet with
# batches of 16 then takes 4.9 GiB, see docs/data-and-models.md.
LARGE, WINDOWS_AT_ONCE = 50_000_000, 4
PROBE_SEED = 0  # draws the questions that are scored after every epoch: the same ones for every run


def train_and_evaluate(experiment: Experiment, home: Path) -> Run:
    """Train and evaluate an experiment in its folder, from its last whole checkpoint if it has one.

    Raises:
        CourseError: if the data or the model cannot be had, or training diverged.
    """
    release_memory()  # of an earlier run in this process: a notebook trains several
    reset_peak_memory()
    rows = load_rows(experiment)
    loaded = starting_point(experiment, home.parent)
    _warn_of_long_answers(experiment, rows, loaded[1])
    rests_on = ancestors(experiment.parents, home.parent)
    passages = _passages(experiment)
    before = retrieval_ranks(*loaded, rows.asked, passages) if passages else None
    resumed = bool(complete_checkpoints(home / "checkpoints"))
    history, train_seconds = _change_model(experiment, loaded, rows, home)
    results, eval_seconds = _ask(experiment, loaded, rows)
    after = retrieval_ranks(*loaded, rows.asked, passages) if passages else None
    return Run.model_validate(
        {
            "experiment": experiment,
            "machine": describe_machine(),
            "fingerprints": rows.fingerprints,
            "ancestors": rests_on,
            "losses": [(step, round(loss, 4)) for step, loss in history.losses],
            "epochs": history.epochs,
            "passages": len(passages) or None,
            "timing": _timing(experiment, rows, resumed, train_seconds, eval_seconds),
            **_weights(experiment, loaded[0]),
            **_scored(experiment, rows, results, (before, after)),
        },
        strict=False,
    )


# ---- rows ------------------------------------------------------------------------------------------------------
class Rows(NamedTuple):
    """The questions that an experiment trains on, if any, and those of all its evaluation sets together, each once."""

    train: Dataset
    asked: Dataset
    validation_size: int  # of the set that they are chosen from

    @property
    def fingerprints(self) -> Fingerprints:
        """Of both."""
        return Fingerprints(train=fingerprint(self.train) if self.train else None, eval=fingerprint(self.asked))


def load_rows(experiment: Experiment) -> Rows:
    """Read an experiment's questions.

    Raises:
        CourseError: if they cannot be had, or are fewer than it asks for.
    """
    rows = load_qa(experiment.data, "validation")
    chosen, _ = chosen_questions(experiment, len(rows))
    return Rows(training_rows(experiment), rows.select(chosen), len(rows))


def training_rows(experiment: Experiment) -> Dataset:
    """The questions that an experiment trains on: none where it trains nothing.

    Raises:
        CourseError: as `load_rows` does.
    """
    if not isinstance(experiment, Training):
        return Dataset.from_dict({})
    which = (experiment.train_size, experiment.sampling, experiment.sampling_seed)
    if experiment.questions == "cloze":
        return load_cloze(experiment.data, *which)
    return load_qa(experiment.data, "train", *which, experiment.per_passage)


def _passages(experiment: Experiment) -> list[str]:
    """All passages of the validation set, where it is measured how well the encoder finds the right one."""
    if not (isinstance(experiment, SpanTraining) and experiment.retrieval):
        return []
    return list(dict.fromkeys(load_qa(experiment.data, "validation")["context"]))


def _warn_of_long_answers(experiment: Experiment, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> None:
    """Say of how many questions no given answer is short enough to be found, if there are any."""
    train, asked = (ANSWERING[experiment.task].out_of_reach(part, tokenizer) for part in (rows.train, rows.asked))
    if train or asked:
        warnings.warn(
            f"{train} of {len(rows.train):,} training and {asked} of {len(rows.asked):,} evaluation questions have "
            "only answers that are longer than a model may give, and cannot be answered right",
            stacklevel=6,
        )


# ---- training --------------------------------------------------------------------------------------------------
def _change_model(experiment: Experiment, loaded: Loaded, rows: Rows, home: Path) -> tuple[History, float]:
    """Train the model if it is to be trained, and save it if it is new; what happened, and the seconds it took."""
    history, seconds, base = History(), 0.0, None
    if isinstance(experiment, Training):
        begin = time.perf_counter()
        history = _train(experiment, loaded, rows, home)
        seconds = time.perf_counter() - begin
        # An adapter is stored with its base model's name; weights that come from another run have none.
        if experiment.start_from is None and trainable.adapter_base(experiment.model) is None:
            base = experiment.model
    elif not (isinstance(experiment, Combination) and experiment.mean_of == "weights"):
        return history, seconds
    _save_model(loaded, home / "model", base)
    return history, seconds


def _train(experiment: Training, loaded: Loaded, rows: Rows, home: Path) -> History:
    model, tokenizer = loaded
    probes = {"train": _probe(rows.train, experiment), "eval": _probe(rows.asked, experiment)}
    lessons = ANSWERING[experiment.task].lessons(experiment, rows.train, tokenizer)
    last = experiment.average_last if isinstance(experiment, SpanTraining) else 1

    def after_epoch(model: nn.Module) -> dict[str, Any]:
        return {part: _probe_scores(experiment.task, (model, tokenizer), probe) for part, probe in probes.items()}

    set_seed(experiment.seed)
    history = train(
        model,
        tokenizer,
        lessons.features,
        _settings(experiment, model, max(2, last)),
        home / "checkpoints",
        after_epoch if experiment.probe_size else None,
        lessons.collator,
        lessons.loss,
    )
    if last > 1:
        checkpoints = complete_checkpoints(home / "checkpoints")[-last:]
        average_weights(model, (load.load_qa_model(str(path)) for path in checkpoints))
    _check_finite(loss for _, loss in history.losses)
    return history


def _settings(experiment: Training, model: nn.Module, checkpoints: int) -> Settings:
    same = {"epochs", "batch_size", "learning_rate", "seed", "schedule", "warmup", "layer_decay"}
    recompute = ANSWERING[experiment.task].recompute
    large = sum(weights.numel() for weights in model.parameters()) > LARGE
    return Settings(
        **experiment.model_dump(include=same),
        recompute=recompute,
        windows_at_once=WINDOWS_AT_ONCE if large and not recompute and default_device().type == "cpu" else None,
        checkpoints=checkpoints,
    )


def _check_finite(losses: Iterable[float]) -> None:
    if not np.all(np.isfinite(list(losses))):
        raise RecordError("training diverged: the loss is no finite number any more; lower the learning rate")


def _probe(rows: Dataset, experiment: Training) -> Dataset:
    return rows.select(sample_indices(len(rows), experiment.probe_size, PROBE_SEED))


def _probe_scores(task: Task, loaded: Loaded, rows: Dataset) -> dict[str, float]:
    answers = ANSWERING[task].answer(loaded, rows, loss=True)
    _check_finite([answers.loss])
    results = evaluate(answers.predictions, rows)
    means = {
        metric: round(100 * float(np.mean([getattr(result, metric) for result in results])), 2)
        for metric in ("exact_match", "f1", "confidence")
    }
    return {"loss": round(answers.loss, 4), **means}


def _save_model(loaded: Loaded, folder: Path, base: str | None) -> None:
    """Save under another name first, so that a folder of this name is always whole."""
    model, tokenizer = loaded
    unfinished = folder.with_name("model.unfinished")
    for path in (unfinished, folder):
        shutil.rmtree(path, ignore_errors=True)
    trainable.save_model(model, unfinished, base)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


# ---- what is recorded ------------------------------------------------------------------------------------------
def _ask(experiment: Experiment, loaded: Loaded, rows: Rows) -> tuple[list[Result], float]:
    begin = time.perf_counter()
    answers = ANSWERING[experiment.task].answer(loaded, rows.asked)
    return evaluate(answers.predictions, rows.asked), time.perf_counter() - begin


def _weights(experiment: Experiment, model: nn.Module) -> dict[str, Any]:
    trained, total = trainable.count_parameters(model)
    if not isinstance(experiment, Training):
        return {"parameters": (0, total), "stored_bytes": 0}
    return {"parameters": (trained, total), "stored_bytes": trainable.trained_bytes(model)}


def _timing(experiment: Experiment, rows: Rows, resumed: bool, train_seconds: float, eval_seconds: float) -> Timing:
    def per_second(count: int, seconds: float) -> float:
        return round(count / seconds, 1) if seconds else 0.0

    epochs = experiment.epochs if isinstance(experiment, Training) else 0
    return Timing(
        resumed=resumed,
        train_seconds=round(train_seconds, 1),
        eval_seconds=round(eval_seconds, 1),
        train_questions_per_second=per_second(len(rows.train) * epochs, train_seconds),
        eval_questions_per_second=per_second(len(rows.asked), eval_seconds),
        peak_memory_mib=round(peak_memory_mib()),
    )


def _scored(
    experiment: Experiment, rows: Rows, results: Sequence[Result], ranks: tuple[list[int] | None, list[int] | None]
) -> dict[str, Any]:
    questions = Questions.model_validate(
        {
            "id": [result.id for result in results],
            "prediction": [result.prediction for result in results],
            "confidence": [round(result.confidence, 4) for result in results],
            "f1": [round(result.f1, 4) for result in results],
            "relation": [
                relation(result.prediction, row["answers"]["text"])
                for result, row in zip(results, rows.asked, strict=True)
            ],
            "rank_before": ranks[0],
            "rank_after": ranks[1],
        }
    )
    _, indices = chosen_questions(experiment, rows.validation_size)
    return {
        "questions": questions,
        "validation_size": rows.validation_size,
        "scores": {name: _scores(results, questions, chosen) for name, chosen in indices.items()},
    }


def score(results: Iterable[Result]) -> Scores:
    """Means of all metrics over questions, in percent with their intervals."""
    results = list(results)
    return scores_of({metric: [getattr(result, metric) for result in results] for metric in METRICS})


def _scores(results: Sequence[Result], questions: Questions, chosen: Sequence[int]) -> Scores:
    """As `score`, but exact intervals are those of the values as they are recorded: F1 with four decimals."""
    scores = dict(score(results[number] for number in chosen))
    for metric in METRICS:
        column = 100.0 * np.asarray(getattr(questions, metric))[list(chosen)]
        if exact := exact_mean(column, bounds=PERCENT_BOUNDS):
            scores[metric] = Score.of(exact)
    return Scores.model_validate(scores)
