"""Running experiments: train, evaluate, record; read a finished run back; run a record again and compare.

Files under the runs folder (`$QA_RUNS_DIR`, else `runs/` of the course)::

    NAME/experiment.json   what is being run, so that a half-done run is only ever resumed as what it was
    NAME/checkpoints/      only while the run is under way
    NAME/model/            the fine-tuned weights and the tokenizer
    NAME/run.json          the record; its presence says that the run is finished
    .locks/NAME.lock       held by the process that is running it
"""

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from qa_helpers.common.device import (
    describe_machine,
    peak_memory_mib,
    quiet,
    release_memory,
    reset_peak_memory,
    set_seed,
)
from qa_helpers.common.io import project_folder, user_path
from qa_helpers.data.cloze import load_cloze
from qa_helpers.data.squad import fingerprint, load_qa, sample_indices
from qa_helpers.data.windows import make_windows, training_features
from qa_helpers.evaluation import span_answers, written_answers
from qa_helpers.evaluation.diagnosis import metric_ladder
from qa_helpers.evaluation.retrieval import retrieval_ranks
from qa_helpers.evaluation.span_answers import Answers, Result, evaluate
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, bootstrap_mean
from qa_helpers.experiment.lineage import ancestors, average_weights, changed_ancestors, load_run, starting_point
from qa_helpers.experiment.once import run_once
from qa_helpers.experiment.record import (
    METRICS,
    Experiment,
    Fingerprints,
    Questions,
    RecordError,
    Retrieval,
    Run,
    Score,
    Scores,
    Timing,
    read_record,
    write_record,
)
from qa_helpers.model import load, trainable
from qa_helpers.training import labels
from qa_helpers.training.trainer import History, Settings, complete_checkpoints, train

PROBE_SEED = 0  # draws the questions that are scored after every epoch: the same ones for every run


# ---- folders ---------------------------------------------------------------------------------------------------
def runs_folder(folder: Path | str | None = None) -> Path:
    """Where runs are kept: the folder that is given, else `$QA_RUNS_DIR`, else `runs/` of the course."""
    return user_path(folder or os.environ.get("QA_RUNS_DIR") or project_folder() / "runs")


def load_records(pattern: str = "*") -> dict[str, Run]:
    """The course's recorded runs whose names match a glob pattern, by name."""
    paths = sorted((project_folder() / "records").glob(f"{pattern}.json"))
    return {path.stem: read_record(path) for path in paths}


def load_trained(name: str, folder: Path | str | None = None) -> tuple[nn.Module, Any]:
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
            return _read_back(record)
        run = _train_and_evaluate(experiment, home)
        write_record(run, record)
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
        return run

    other = (
        f"holds another experiment of the name '{experiment.name}'; give this one another name, or run it with "
        "again=True (--again on the command line), which replaces the other"
    )
    return run_once(
        experiment, home / "experiment.json", record, result, other, partial(_clear, home) if again else None
    )


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
        if experiment.epochs:
            asked = training_questions(experiment) + experiment.probe_size
            share += experiment.epochs * asked / MOST_WORK[experiment.task]
            if share > 1:
                raise RecordError(
                    f"'{experiment.name}' trains on {experiment.epochs:,} × {asked:,} questions (epochs × questions, "
                    "those scored after each among them), with what it starts from more than is trained unasked; take "
                    "fewer, or set QA_LONG_RUNS=1 if you mean it"
                )


def training_questions(experiment: Experiment) -> int:
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


def _read_back(path: Path) -> Run:
    run = read_record(path)
    train_rows, eval_rows, _ = _load_rows(run.experiment)
    if _fingerprints(train_rows, eval_rows) != run.fingerprints:
        raise RecordError(
            f"{path}: the data have changed since this run; give the experiment another name, or run it with "
            "again=True (--again on the command line)"
        )
    if changed := changed_ancestors(run, path.parents[1]):
        raise RecordError(
            f"{path}: the run '{changed[0]}', which this one rests on, has been replaced since; run this one with "
            "again=True (--again on the command line)"
        )
    return run


def _train_and_evaluate(experiment: Experiment, home: Path) -> Run:
    quiet()
    release_memory()  # of an earlier run in this process: a notebook trains several
    reset_peak_memory()
    train_rows, eval_rows, indices = _load_rows(experiment)
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
    trained, total = trainable.count_parameters(model)
    return Run.model_validate(
        {
            "experiment": experiment,
            "machine": describe_machine(),
            "fingerprints": _fingerprints(train_rows, eval_rows),
            "ancestors": rests_on,
            "parameters": (trained if experiment.epochs else 0, total),
            "stored_bytes": trainable.trained_bytes(model) if experiment.epochs else 0,
            "losses": [(step, round(loss, 4)) for step, loss in history.losses],
            "epochs": history.epochs,
            "scores": {name: score([results[i] for i in places]) for name, places in indices.items()},
            "indices": indices,
            "ladder": {
                name: _ladder([results[i] for i in places], eval_rows.select(places))
                for name, places in indices.items()
            },
            "questions": _columns(results),
            "retrieval": Retrieval(passages=len(passages), before=before, after=after) if passages else None,
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


def _load_rows(experiment: Experiment) -> tuple[Any, Any, dict[str, list[int]]]:
    """The training rows; those of all evaluation sets together, each once; and every set's places among these."""
    which = (experiment.train_size, experiment.sampling, experiment.sampling_seed)
    if experiment.questions == "cloze":
        train = load_cloze(experiment.data, *which)
    else:
        train = load_qa(experiment.data, "train", *which, experiment.per_passage)
    rows = load_qa(experiment.data, "validation")
    chosen = {name: one.indices(len(rows)) for name, one in experiment.evaluations.items()}
    union = sorted(set().union(*chosen.values()))
    place = {index: position for position, index in enumerate(union)}
    return train, rows.select(union), {name: [place[index] for index in chosen[name]] for name in chosen}


def _fingerprints(train_rows: Any, eval_rows: Any) -> Fingerprints:
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


def _ladder(results: Iterable[Result], rows: Any) -> dict[str, int]:
    return metric_ladder([result.prediction for result in results], [row["answers"]["text"] for row in rows])


def _columns(results: Iterable[Result]) -> Questions:
    results = list(results)
    columns: dict[str, list[Any]] = {
        name: [getattr(result, name) for result in results] for name in Questions.model_fields
    }
    for name in ("string_equality", "exact_match", "contained"):
        columns[name] = [int(value) for value in columns[name]]
    for name in ("confidence", "f1"):
        columns[name] = [round(value, 4) for value in columns[name]]
    return Questions(**columns)


# ---- running again ---------------------------------------------------------------------------------------------
RERUN_SPREAD = 3.0  # points that a score may move beyond sampling: see docs/results.md, "Do the numbers hold?"
RERUN_CHANGED = 0.17  # share of answers that another machine's run turns right or wrong: the most in nine pairs of runs
Verdict = Literal["same", "within tolerance", "off"]


@dataclass(frozen=True)
class Comparison:
    """One recorded figure against the same figure of a new run, both in percent."""

    figure: str  # such as "all: exact_match"
    recorded: float
    now: float
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """Same to two decimals, within tolerance, or off."""
        if round(self.recorded, 2) == round(self.now, 2):
            return "same"
        return "within tolerance" if abs(self.recorded - self.now) <= self.tolerance else "off"


def compare(recorded: Run, now: Run) -> list[Comparison]:
    """Every score of two runs of one experiment, side by side, without questions that only one of them read whole."""
    uneven = recorded.unread ^ now.unread
    scores, scores_now = (scores_without(run, uneven) if uneven else run.scores for run in (recorded, now))
    return [
        Comparison(
            figure=f"{name}: {metric}",
            recorded=getattr(scores[name], metric).value,
            now=getattr(scores_now[name], metric).value,
            tolerance=rerun_tolerance(scores[name].questions),
        )
        for name in scores
        for metric in METRICS
    ]


def scores_without(run: Run, ids: Collection[str]) -> dict[str, Scores]:
    """A run's scores on each evaluation set without some of its questions."""
    kept = {name: [i for i in places if run.questions.id[i] not in ids] for name, places in run.indices.items()}
    return {
        name: Scores(
            questions=len(places),
            **{
                metric: Score.of(
                    bootstrap_mean(100.0 * np.asarray(getattr(run.questions, metric))[places], bounds=PERCENT_BOUNDS)
                )
                for metric in METRICS
            },
        )
        for name, places in kept.items()
    }


def rerun_tolerance(questions: int) -> float:
    """How far, in points, a score on so many questions may move when an experiment runs again on another machine.

    Two independent causes: the weights, which end a little better or worse (`RERUN_SPREAD`), and the luck of few
    questions when some answers change (1.96 standard errors, with the share `RERUN_CHANGED`).
    """
    return math.hypot(RERUN_SPREAD, 1.96 * 100 * math.sqrt(RERUN_CHANGED / questions))


def rerun(
    record: Run, folder: Path | str | None = None, beside: Path | str | None = None
) -> tuple[Run, list[Comparison]]:
    """Train a recorded experiment again, in a folder of its own, and compare every score with the recorded one.

    If it starts from another run or combines several, these are run again before it, in the same folder, each from its
    own record.

    A record may come from anybody: only the packaged models or models of the Hub, and the course's named data sets
    are loaded, and nothing is written outside of `folder` but what the Hub's client keeps in its cache.

    Args:
        record: what to run again.
        folder: where to write; `rerun/` in the runs folder if None.
        beside: the folder of the record's file, where the records of the runs it starts from are looked for before
            the course's `records/`.

    Raises:
        CourseError: if a record names a path as model or data, its data are not the ones at hand, or the record of
            a run that it starts from is not found.
    """
    chain = _with_starts(record, [Path(beside)] if beside else [])
    for one in chain:  # all, before anything is trained
        _check_rerun(one)
    check_work([one.experiment for one in chain])
    for one in chain:
        run = run_experiment(one.experiment, folder or runs_folder() / "rerun", again=True)
    return run, compare(record, run) + _compare_recall(record.retrieval, run.retrieval)


def _with_starts(record: Run, folders: list[Path]) -> list[Run]:
    """The record, and before it those of the runs that it starts from or combines, in the order to run them in."""
    chain: dict[str, Run] = {}

    def add(run: Run, line: tuple[str, ...]) -> None:
        line = (*line, run.experiment.name)
        for name in run.experiment.parents:
            words = f"'{run.experiment.name}' starts from '{name}'"
            if name in line:
                raise RecordError(f"{words}, which starts from it in turn: such runs cannot have been made")
            if name not in chain:
                add(_record_of_start(name, words, folders), line)
        chain[run.experiment.name] = run

    add(record, ())
    return list(chain.values())


def _record_of_start(name: str, words: str, folders: list[Path]) -> Run:
    paths = [folder / f"{name}.json" for folder in (*folders, project_folder() / "records")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise RecordError(f"{words}, whose record {name}.json lies neither beside its own nor in the course's")
    start = read_record(path)
    if start.experiment.name != name:
        raise RecordError(f"{path}: is the record of '{start.experiment.name}', not of '{name}'")
    if not (start.experiment.epochs or start.experiment.members):
        raise RecordError(f"{words}, which trained nothing to start from")
    return start


def _check_rerun(record: Run) -> None:
    """Refuse a record whose re-run would load a path, or other data than it states."""
    experiment = record.experiment
    if experiment.data not in ("courseqa", "squad"):
        raise RecordError(f"the record's data '{experiment.data}' is no named data set; only those are re-run")
    if experiment.model not in load.PACKAGED and not load.is_hub_name(experiment.model):
        raise RecordError(f"the record's model '{experiment.model}' is no model's name; only named models are re-run")
    train_rows, eval_rows, _ = _load_rows(experiment)
    if _fingerprints(train_rows, eval_rows) != record.fingerprints:
        raise RecordError(
            f"the data at hand are not those of the record '{experiment.name}'; their fingerprints differ"
        )


def _compare_recall(recorded: Retrieval | None, now: Retrieval | None) -> list[Comparison]:
    if recorded is None or now is None:
        return []
    times: tuple[Literal["before", "after"], ...] = ("before", "after")
    return [
        Comparison(
            figure=f"recall@{most} {when} training",
            recorded=recorded.recall(when, most).value,
            now=now.recall(when, most).value,
            tolerance=RERUN_SPREAD,
        )
        for when in times
        for most in (1, 5)
    ]
