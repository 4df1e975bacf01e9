"""One run of an experiment: train, evaluate, and what is recorded of it."""

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qa_helpers.common.device import (
    describe_machine,
    peak_memory_mib,
    release_memory,
    reset_peak_memory,
    set_seed,
)
from qa_helpers.data.cloze import load_cloze
from qa_helpers.data.squad import fingerprint, load_qa, sample_indices
from qa_helpers.data.windows import make_windows, training_features
from qa_helpers.evaluation import span_answers, written_answers
from qa_helpers.evaluation.metrics import Result, evaluate, relation
from qa_helpers.evaluation.retrieval import retrieval_ranks
from qa_helpers.evaluation.span_answers import Answers
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, bootstrap_mean, exact_mean
from qa_helpers.experiment.lineage import ancestors, average_weights, starting_point
from qa_helpers.experiment.questions import Questions
from qa_helpers.experiment.record import Fingerprints, Run, Timing
from qa_helpers.experiment.scores import METRICS, Score, Scores
from qa_helpers.experiment.spec import Experiment, RecordError, chosen_questions
from qa_helpers.model import load, trainable
from qa_helpers.training import labels
from qa_helpers.training.trainer import History, Settings, complete_checkpoints, train

PROBE_SEED = 0  # draws the questions that are scored after every epoch: the same ones for every run


def train_and_evaluate(experiment: Experiment, home: Path) -> Run:
    """Train and evaluate an experiment in its folder, from its last whole checkpoint if it has one.

    Raises:
        CourseError: if the data or the model cannot be had, or training diverged.
    """
    release_memory()  # of an earlier run in this process: a notebook trains several
    reset_peak_memory()
    train_rows, eval_rows, validation_size = load_rows(experiment)
    _, indices = chosen_questions(experiment, validation_size)
    model, tokenizer = starting_point(experiment, home.parent)
    _warn_of_long_answers(experiment, tokenizer, train_rows, eval_rows)
    rests_on = ancestors(experiment, home.parent)
    passages = list(dict.fromkeys(load_qa(experiment.data, "validation")["context"])) if experiment.retrieval else []
    before = retrieval_ranks(model, tokenizer, eval_rows, passages) if passages else []
    history, train_seconds = History(), 0.0
    resumed = bool(complete_checkpoints(home / "checkpoints"))
    if experiment.epochs:
        history, train_seconds = _train(experiment, model, tokenizer, train_rows, eval_rows, home)
    elif experiment.average_of:  # a model like any other, to be loaded or started from
        _save_model(model, tokenizer, home / "model", None)

    begin = time.perf_counter()
    results = evaluate(_ask(experiment, model, tokenizer, eval_rows).predictions, eval_rows)
    eval_seconds = time.perf_counter() - begin
    after = retrieval_ranks(model, tokenizer, eval_rows, passages) if passages else []
    questions = _columns(results, eval_rows, before, after)
    trained, total = trainable.count_parameters(model)
    return Run.model_validate(
        {
            "experiment": experiment,
            "machine": describe_machine(),
            "fingerprints": fingerprints(train_rows, eval_rows),
            "ancestors": rests_on,
            "parameters": (trained if experiment.epochs else 0, total),
            "stored_bytes": trainable.trained_bytes(model) if experiment.epochs else 0,
            "losses": [(step, round(loss, 4)) for step, loss in history.losses],
            "epochs": history.epochs,
            "scores": {name: _scores(results, questions, chosen) for name, chosen in indices.items()},
            "validation_size": validation_size,
            "passages": len(passages) or None,
            "questions": questions,
            "timing": Timing(
                resumed=resumed,
                train_seconds=round(train_seconds, 1),
                eval_seconds=round(eval_seconds, 1),
                train_questions_per_second=_per_second(len(train_rows) * experiment.epochs, train_seconds),
                eval_questions_per_second=_per_second(len(eval_rows), eval_seconds),
                peak_memory_mib=round(peak_memory_mib()),
            ),
        },
        strict=False,
    )


def _warn_of_long_answers(experiment: Experiment, tokenizer: Any, train_rows: Any, eval_rows: Any) -> None:
    """Say of how many questions no given answer is short enough to be found, if there are any."""
    count = (span_answers if experiment.task == "span" else written_answers).out_of_reach
    train, evaluated = count(train_rows if experiment.epochs else [], tokenizer), count(eval_rows, tokenizer)
    if train or evaluated:
        warnings.warn(
            f"{train} of {len(train_rows):,} training and {evaluated} of {len(eval_rows):,} evaluation questions have "
            "only answers that are longer than a model may give, and cannot be answered right",
            stacklevel=4,
        )


def _train(
    experiment: Experiment, model: nn.Module, tokenizer: Any, train_rows: Any, eval_rows: Any, home: Path
) -> tuple[History, float]:
    """Train and save the model; what happened, and the seconds it took."""
    probes = {"train": _probe(train_rows, experiment), "eval": _probe(eval_rows, experiment)}

    def after_epoch(model: nn.Module) -> dict[str, Any]:
        return {part: _probe_scores(experiment, model, tokenizer, rows) for part, rows in probes.items()}

    begin = time.perf_counter()
    examples, collator, loss = _examples(experiment, tokenizer, train_rows)
    set_seed(experiment.seed)
    history = train(
        model,
        tokenizer,
        examples,
        Settings(
            experiment.epochs,
            experiment.batch_size,
            experiment.learning_rate,
            experiment.seed,
            recompute=experiment.task == "generate",  # a language model's many layers would take twice the memory
            schedule=experiment.schedule,
            warmup=experiment.warmup,
            layer_decay=experiment.layer_decay,
            checkpoints=max(2, experiment.average_last),
        ),
        home / "checkpoints",
        after_epoch if experiment.probe_size else None,
        collator,
        loss,
    )
    if experiment.average_last > 1:
        last = complete_checkpoints(home / "checkpoints")[-experiment.average_last :]
        average_weights(model, (load.load_qa_model(str(path)) for path in last))
    seconds = time.perf_counter() - begin
    if not np.all(np.isfinite([loss for _, loss in history.losses])):
        raise RecordError("training diverged: the loss is no finite number any more; lower the learning rate")
    # An adapter is stored with its base model's name; weights that come from another run have none.
    named = experiment.start_from is None and trainable.adapter_base(experiment.model) is None
    _save_model(model, tokenizer, home / "model", experiment.model if named else None)
    return history, seconds


def _examples(
    experiment: Experiment, tokenizer: Any, rows: Any
) -> tuple[list[dict[str, Any]], Callable[..., Any] | None, Callable[..., Any] | None]:
    """What to train on, what makes batches of it, and the loss; None where the stock one will do."""
    if experiment.task == "generate":
        return written_answers.training_features(rows, tokenizer), written_answers.AnswerCollator(tokenizer), None
    made = make_windows(rows, tokenizer)
    if experiment.label_smoothing == 0 and experiment.targets == "first":
        return training_features(made), None, None
    return (
        labels.training_features(made, experiment.targets),
        labels.SoftLabelCollator(tokenizer, experiment.label_smoothing),
        labels.soft_loss,
    )


def _ask(experiment: Experiment, model: nn.Module, tokenizer: Any, rows: Any) -> Answers:
    if experiment.task == "span":
        return span_answers.answer(model, tokenizer, rows)
    return written_answers.answer(model, tokenizer, rows)


def _per_second(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds else 0.0


def load_rows(experiment: Experiment) -> tuple[Any, Any, int]:
    """The training rows; those of all evaluation sets together, each once; and the size of the validation set."""
    which = (experiment.train_size, experiment.sampling, experiment.sampling_seed)
    if experiment.questions == "cloze":
        train = load_cloze(experiment.data, *which)
    else:
        train = load_qa(experiment.data, "train", *which, experiment.per_passage)
    rows = load_qa(experiment.data, "validation")
    chosen, _ = chosen_questions(experiment, len(rows))
    return train, rows.select(chosen), len(rows)


def fingerprints(train_rows: Any, eval_rows: Any) -> Fingerprints:
    """Of what an experiment trains on and of what it asks."""
    return Fingerprints(train=fingerprint(train_rows), eval=fingerprint(eval_rows))


def _probe(rows: Any, experiment: Experiment) -> Any:
    return rows.select(sample_indices(len(rows), experiment.probe_size, PROBE_SEED))


def _probe_scores(experiment: Experiment, model: nn.Module, tokenizer: Any, rows: Any) -> dict[str, float]:
    answers = _ask(experiment, model, tokenizer, rows)
    loss = answers.loss if experiment.task == "span" else written_answers.answer_loss(model, tokenizer, rows)
    if not np.isfinite(loss):
        raise RecordError("training diverged: the loss is no finite number any more; lower the learning rate")
    results = evaluate(answers.predictions, rows)
    return {
        "loss": round(loss, 4),
        "exact_match": round(100 * float(np.mean([result.exact_match for result in results])), 2),
        "f1": round(100 * float(np.mean([result.f1 for result in results])), 2),
        "confidence": round(100 * float(np.mean([result.confidence for result in results])), 2),
    }


def _save_model(model: nn.Module, tokenizer: Any, folder: Path, base: str | None) -> None:
    """Save under another name first, so that a folder of this name is always whole."""
    unfinished = folder.with_name("model.unfinished")
    for path in (unfinished, folder):
        shutil.rmtree(path, ignore_errors=True)
    trainable.save_model(model, unfinished, base)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def score(results: Iterable[Result]) -> Scores:
    """Means of all metrics over questions, in percent with their intervals."""
    results = list(results)
    columns = {metric: [100 * float(getattr(result, metric)) for result in results] for metric in METRICS}
    means = {metric: Score.of(bootstrap_mean(column, bounds=PERCENT_BOUNDS)) for metric, column in columns.items()}
    return Scores(questions=len(results), **means)


def _scores(results: Sequence[Result], questions: Questions, chosen: Sequence[int]) -> Scores:
    """As `score`, but exact intervals are those of the values as they are recorded: F1 with four decimals."""
    scores = dict(score(results[number] for number in chosen))
    for metric in METRICS:
        column = 100.0 * np.asarray(getattr(questions, metric))[list(chosen)]
        if exact := exact_mean(column, bounds=PERCENT_BOUNDS):
            scores[metric] = Score.of(exact)
    return Scores.model_validate(scores)


def _columns(results: Iterable[Result], rows: Any, before: list[int], after: list[int]) -> Questions:
    results = list(results)
    answers = [row["answers"]["text"] for row in rows]
    return Questions.model_validate(
        {
            "id": [result.id for result in results],
            "prediction": [result.prediction for result in results],
            "confidence": [round(result.confidence, 4) for result in results],
            "f1": [round(result.f1, 4) for result in results],
            "relation": [relation(result.prediction, given) for result, given in zip(results, answers, strict=True)],
            "rank_before": before or None,
            "rank_after": after or None,
        }
    )
