"""What an experiment is and what a run of it leaves behind: one JSON file, the *record*, checked when read.

An `Experiment` says everything that decides a result; a `Run` holds it, the machine, and all that came of it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qa_helpers.data import Sampling, sample_indices
from qa_helpers.files import CourseError, read_json, write_atomically
from qa_helpers.statistics import Interval, bootstrap_mean

ROUNDING = 0.02  # percent: scores are rounded to two decimals, F1 of a question to four
METRICS = ("string_equality", "exact_match", "f1", "contained")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Line = Annotated[str, Field(max_length=200, pattern=r"^[^|<>\x00-\x1f\x7f]*$")]  # safe in a table and a terminal
Positive = Annotated[int, Field(ge=1, le=1_000_000)]  # a record may come from anybody: no number to overflow or hang on
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy takes it


class RecordError(CourseError):
    """An experiment or a record that is not of the form it should have, or contradicts what is on disk."""


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# ---- what is to be done ----------------------------------------------------------------------------------------
class EvalSet(_Model):
    """Which validation questions: all, the first `limit`, or `limit` drawn at random by `seed`."""

    limit: Positive | None = None
    sampling: Sampling = "first"
    seed: Seed = 0

    def indices(self, size: int) -> list[int]:
        """The questions' places in a validation set of `size` questions.

        Raises:
            RecordError: if there are fewer than `limit`.
        """
        limit = size if self.limit is None else self.limit
        if limit > size:
            raise RecordError(f"an evaluation set of {limit} questions was asked of a validation set of {size}")
        return list(range(limit)) if self.sampling == "first" else sample_indices(size, limit, self.seed)


class Experiment(_Model):
    """Everything that decides a run's result, versions and machine apart."""

    name: Name
    data: Line = "courseqa"
    train_size: Positive | None = None  # None: the whole training set
    sampling: Sampling = "first"
    sampling_seed: Seed = 0
    evaluations: Annotated[dict[Name, EvalSet], Field(min_length=1, max_length=20)] = {"all": EvalSet()}
    model: Annotated[Line, Field(min_length=1)] = "minilm"
    task: Literal["span", "generate"] = "span"  # point at the answer, or write it with a language model
    trainable: Line = "all"  # as `tuning.set_trainable` takes it
    start_from: Name | None = None  # another run whose fine-tuned weights to start from
    epochs: Annotated[int, Field(ge=0, le=1_000)] = 3  # 0: the model is asked as it comes
    batch_size: Annotated[int, Field(ge=1, le=4_096)] = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    seed: Seed = 0
    probe_size: Count = 100  # training and validation questions scored after every epoch
    retrieval: bool = False  # whether to measure, before and after, how well the encoder finds the right passage

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Experiment":
        if self.retrieval and self.task != "span":
            raise ValueError("retrieval measures an encoder; it does not go with task 'generate'")
        return self

    @property
    def command(self) -> str:
        """What re-runs it from its record."""
        return f"python -m qa_helpers rerun records/{self.name}.json"


# ---- what came of it -------------------------------------------------------------------------------------------
class Score(_Model):
    """A mean over questions with its 95 % bootstrap interval, in percent."""

    value: Percent
    low: Percent
    high: Percent

    @classmethod
    def of(cls, interval: Interval) -> "Score":
        """From an interval, to two decimals."""
        return cls(**{end: round(number, 2) for end, number in interval._asdict().items()})

    @model_validator(mode="after")
    def _in_order(self) -> "Score":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value} is not within its interval")
        return self

    def __str__(self) -> str:
        """Such as `38.8 [32.0, 45.6]`."""
        return str(Interval(self.value, self.low, self.high))


class Scores(_Model):
    """The metrics of `qa_helpers.evaluation` on one evaluation set."""

    questions: Positive
    string_equality: Score
    exact_match: Score
    f1: Score
    contained: Score


class ProbeScores(_Model):
    """Loss, EM and F1 on the few questions that are scored after every epoch."""

    loss: float
    exact_match: Percent
    f1: Percent


class Epoch(_Model):
    """Scores after one epoch, on training and on validation questions."""

    epoch: Positive
    train: ProbeScores
    eval: ProbeScores


class Questions(_Model):
    """Per-question results, a list a column, in the validation set's order."""

    id: list[str]
    prediction: list[str]
    confidence: list[Fraction]
    string_equality: list[Literal[0, 1]]
    exact_match: list[Literal[0, 1]]
    f1: list[Fraction]
    contained: list[Literal[0, 1]]
    category: list[str]

    @model_validator(mode="after")
    def _same_length(self) -> "Questions":
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns differ in length: {lengths}")
        return self


class Retrieval(_Model):
    """The place of each question's own passage among all passages of the validation set, see `retrieval.ranks`."""

    passages: Positive
    before: list[Positive]
    after: list[Positive]

    @model_validator(mode="after")
    def _within_range(self) -> "Retrieval":
        if len(self.before) != len(self.after) or max(self.before + self.after, default=1) > self.passages:
            raise ValueError(f"ranks before and after do not fit each other or the {self.passages} passages")
        return self

    def recall(self, when: Literal["before", "after"], most: int) -> Score:
        """How often the right passage is among the `most` nearest, in percent."""
        return Score.of(bootstrap_mean([100.0 * (rank <= most) for rank in getattr(self, when)]))


class Fingerprints(_Model):
    """Of the questions trained on and of those evaluated on, see `data.fingerprint`."""

    train: str
    eval: str


class Timing(_Model):
    """Seconds of training (with the scoring after every epoch) and of the final evaluation, and speeds.

    Of a run that was killed and resumed, training counts from the last start only, and its speed means nothing.
    """

    train_seconds: Annotated[float, Field(ge=0)]
    eval_seconds: Annotated[float, Field(ge=0)]
    train_questions_per_second: Annotated[float, Field(ge=0)]
    eval_questions_per_second: Annotated[float, Field(ge=0)]
    peak_memory_mib: Annotated[float, Field(ge=0)]


class Machine(_Model):
    """What ran it, see `machine.describe_machine`."""

    device: Line
    device_name: Line
    precision: Line
    threads: Positive
    memory_gib: Annotated[float, Field(ge=0)]
    system: Line
    versions: dict[Line, Line]


class Run(_Model):
    """An experiment and what came of it; as JSON, a record."""

    schema_version: Literal[1] = 1  # a later schema that reads differently gets the next number
    experiment: Experiment
    machine: Machine
    fingerprints: Fingerprints
    parameters: tuple[Count, Count]  # trained, all
    stored_bytes: Count | None = None  # of the trained weights, see `tuning.trained_bytes`
    losses: list[tuple[int, float]]  # (optimizer step, mean training loss since the last entry)
    epochs: list[Epoch]
    scores: dict[str, Scores]  # by evaluation set
    indices: dict[str, list[int]]  # by evaluation set: its questions' places in `questions`
    questions: Questions
    retrieval: Retrieval | None = None
    timing: Timing

    @model_validator(mode="after")
    def _consistent(self) -> "Run":
        if not set(self.scores) == set(self.indices) == set(self.experiment.evaluations):
            raise ValueError("scores, indices and the experiment's evaluations differ in their sets")
        size = len(self.questions.id)
        if len(set(self.questions.id)) != size:
            raise ValueError("a question stands twice in `questions`")
        if self.retrieval and len(self.retrieval.after) != size:
            raise ValueError(f"retrieval has {len(self.retrieval.after)} ranks for {size} questions")
        for name, places in self.indices.items():
            if not len(places) == len(set(places)) == self.scores[name].questions or any(
                not 0 <= place < size for place in places
            ):
                raise ValueError(f"the indices of '{name}' do not fit its scores and the {size} questions")
            for metric in METRICS:
                mean = 100 * float(self.column(metric, name).mean())
                if abs(mean - getattr(self.scores[name], metric).value) > ROUNDING:
                    raise ValueError(f"the {metric} of '{name}' is not the mean of its questions, {mean:.2f}")
        return self

    def column(self, metric: str, evaluation: str) -> np.ndarray:
        """One metric's values, question by question, on one evaluation set (0 to 1; text for `prediction`)."""
        return np.asarray(getattr(self.questions, metric))[self.indices[evaluation]]


# ---- records ---------------------------------------------------------------------------------------------------
def read_record(path: Path | str) -> Run:
    """Read a record.

    Raises:
        RecordError: naming the file and, where it does not fit the schema, the field.
    """
    run: Run = _parse(Run, path)
    return run


def read_experiment(path: Path | str) -> Experiment:
    """Read an experiment's description from a JSON file.

    Raises:
        RecordError: naming the file and, where it does not fit the schema, the field.
    """
    experiment: Experiment = _parse(Experiment, path)
    return experiment


def _parse(kind: Any, path: Path | str) -> Any:
    return parse(kind, read_json(path, RecordError), str(path))


def parse(kind: Any, raw: Any, source: str) -> Any:
    """A model of this module from what a JSON file holds, or a part of it.

    Raises:
        RecordError: naming the source and, where the value does not fit the schema, the field.
    """
    try:
        return kind.model_validate_json(json.dumps(raw))  # from JSON, since strict Python input takes no list as tuple
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise RecordError(f"{source}: {place}: {first['msg']}") from None
    except RecursionError:
        raise RecordError(f"{source}: is nested too deeply to be a record") from None


def write_record(run: Run, path: Path | str) -> None:
    """Write a record, whole or not at all: a line a field, so that differences can be read."""
    fields = run.model_dump(mode="json").items()
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields)
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


# ---- the report ------------------------------------------------------------------------------------------------
REPORT_MARKS = ("<!-- report -->", "<!-- /report -->")


def format_report(runs: Iterable[Run]) -> str:
    """A Markdown table of runs, a line an evaluation set: scores in percent with 95 % intervals."""
    lines = [
        "| run | trained on | questions asked | string equality | EM | F1 | training | device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        experiment, timing = run.experiment, run.timing
        for name, scores in run.scores.items():
            cells = [
                experiment.name,
                _training_in_words(experiment),
                f"{name} ({scores.questions:,})",
                *(str(getattr(scores, metric)) for metric in ("string_equality", "exact_match", "f1")),
                f"{timing.train_seconds:.0f} s, {timing.train_questions_per_second:.0f} questions/s",
                f"{run.machine.device_name}, {run.machine.threads} threads, {run.machine.precision}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _training_in_words(experiment: Experiment) -> str:
    if not experiment.epochs:
        return f"nothing: {experiment.start_from or experiment.model} as it comes"
    size = "all" if experiment.train_size is None else f"{experiment.train_size:,}"
    words = f"{size} of {experiment.data}, {experiment.epochs} epochs, batch {experiment.batch_size}"
    return words if experiment.trainable == "all" else f"{words}, trainable: {experiment.trainable}"


def replace_report(path: Path | str, report: str) -> None:
    """Put a report between a text file's marks `<!-- report -->` and `<!-- /report -->`.

    Raises:
        RecordError: if the file lacks the marks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecordError(f"{path}: cannot be read as text ({type(problem).__name__})") from None
    begin, end = REPORT_MARKS
    if not 0 <= text.find(begin) < text.find(end):
        raise RecordError(f"{path}: has no line '{begin}' followed by a line '{end}' to put the table between")
    before, rest = text.split(begin, 1)
    write_atomically(path, f"{before}{begin}\n{report}\n{end}{rest.split(end, 1)[1]}")
