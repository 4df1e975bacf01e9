"""What an experiment is and what a run of it leaves behind: one JSON file, the *record*, checked when read.

An `Experiment` says everything that decides a result; a `Run` holds it, the machine, and all that came of it.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from qa_helpers.common.io import CourseError, read_json, write_atomically
from qa_helpers.data.squad import ASSETS, Sampling, sample_indices
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, Interval, bootstrap_mean, exact_mean

MOST_SHOWN = 1_500  # characters of a record, an experiment or a part of one
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


class StrictModel(BaseModel):
    """What a JSON file is held to: nothing more and nothing less than its fields, of exactly their types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def __repr__(self) -> str:
        """As pydantic's, but not longer than can be read: it is what a notebook shows."""
        whole = super().__repr__()
        return whole if len(whole) <= MOST_SHOWN else f"{whole[:MOST_SHOWN]}…)"


# ---- what is to be done ----------------------------------------------------------------------------------------
class EvalSet(StrictModel):
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


class Experiment(StrictModel):
    """Everything that decides a run's result, versions and machine apart."""

    name: Name
    data: Line = "courseqa"
    train_size: Positive | None = None  # None: the whole training set
    sampling: Sampling = "first"
    sampling_seed: Seed = 0  # with questions "cloze", of their making, too
    per_passage: Positive | None = None  # at most so many training questions of one passage, see `squad.choose`
    questions: Literal["asked", "cloze"] = "asked"  # those of the data set, or made from its passages, see `cloze`
    evaluations: Annotated[dict[Name, EvalSet], Field(min_length=1, max_length=20)] = {"all": EvalSet()}
    model: Annotated[Line, Field(min_length=1)] = "minilm"
    task: Literal["span", "generate"] = "span"  # point at the answer, or write it with a language model
    trainable: Line = "all"  # as `trainable.set_trainable` takes it
    start_from: Name | None = None  # another run whose fine-tuned weights to start from
    ensemble_of: tuple[Name, ...] = ()  # other runs that answer together, with nothing trained, see `lineage`
    average_of: tuple[Name, ...] = ()  # other runs whose weights are averaged, with nothing trained
    epochs: Annotated[int, Field(ge=0, le=300)] = 3  # 0: the model is asked as it comes
    batch_size: Annotated[int, Field(ge=1, le=4_096)] = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # of the learning rate, see `trainer.Settings`
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the steps
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the learning rate, from each layer to the one below
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # see `training.labels`
    targets: Literal["first", "all"] = "first"  # whose answer is the label: the first annotator's, or everybody's
    average_last: Annotated[int, Field(ge=1, le=100)] = 1  # epochs whose weights are averaged at the end
    seed: Seed = 0
    probe_size: Count = 100  # training and validation questions scored after every epoch
    retrieval: bool = False  # whether to measure, before and after, how well the encoder finds the right passage

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Experiment":
        if self.retrieval and self.task != "span":
            raise ValueError("retrieval measures an encoder; it does not go with task 'generate'")
        of_spans = ("layer_decay", "label_smoothing", "targets", "average_last", "ensemble_of", "average_of")
        unfit = [name for name in of_spans if self.task != "span" and name in self.changed]
        if unfit:
            raise ValueError(f"{unfit[0]} is of models with a span head; it does not go with task 'generate'")
        if self.questions == "cloze" and self.per_passage is not None:
            raise ValueError("per_passage counts asked questions; it does not go with questions 'cloze'")
        return self

    @model_validator(mode="after")
    def _can_be_combined(self) -> "Experiment":
        if self.average_last > max(self.epochs, 1):
            raise ValueError(f"average_last: there are no {self.average_last} of {self.epochs} epochs to average")
        if self.average_last > 1 and self.trainable in ("lora", "ia3"):
            raise ValueError("average_last: the mean of adapters is not the adapter of the mean; train the weights")
        if not self.members:
            return self
        if self.epochs or len(self.parents) > len(self.members) or (self.ensemble_of and self.average_of):
            raise ValueError("ensemble_of or average_of, one of them, goes with epochs 0 and no start_from")
        if len(set(self.members)) != len(self.members) or len(self.members) < 2:
            raise ValueError("ensemble_of and average_of take the names of two or more runs, each once")
        if self.retrieval and self.ensemble_of:
            raise ValueError("retrieval measures one encoder; it does not go with ensemble_of")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """The runs that it combines."""
        return self.ensemble_of + self.average_of

    @property
    def parents(self) -> tuple[str, ...]:
        """The runs that it starts from or combines."""
        return (() if self.start_from is None else (self.start_from,)) + self.members

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that are not as they are by default, in order."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.default
        }

    @property
    def command(self) -> str:
        """What re-runs it from its record."""
        return f"python -m qa_helpers rerun records/{self.name}.json"


Plan = TypeVar("Plan", bound=StrictModel)


def change(plan: Plan, **fields: Any) -> Plan:
    """A copy of an experiment (or another plan) with some fields changed, checked like any other.

    For example `change(experiment, name="mine", learning_rate=1e-4)`.

    Raises:
        RecordError: naming the field that does not fit.
    """
    source = f"the changed '{getattr(plan, 'name', type(plan).__name__)}'"
    try:
        raw = to_jsonable_python(dict(plan) | fields)
    except PydanticSerializationError as problem:
        raise RecordError(f"{source}: {problem}") from None
    changed: Plan = parse(type(plan), raw, source, "its fields together")
    return changed


# ---- what came of it -------------------------------------------------------------------------------------------
class Score(StrictModel):
    """A mean over questions with its 95 % interval, in percent, see `statistics.bootstrap_mean`."""

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


class Scores(StrictModel):
    """The metrics of `qa_helpers.evaluation.metrics` on one evaluation set."""

    questions: Positive
    string_equality: Score
    exact_match: Score
    f1: Score
    contained: Score


class ProbeScores(StrictModel):
    """Loss, EM, F1 and mean confidence on the few questions that are scored after every epoch."""

    loss: float
    exact_match: Percent
    f1: Percent
    confidence: Percent | None = None  # None in records of before it was kept


class Epoch(StrictModel):
    """Scores after one epoch, on training and on validation questions."""

    epoch: Positive
    train: ProbeScores
    eval: ProbeScores


class Questions(StrictModel):
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


class Retrieval(StrictModel):
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
        right = [100.0 * (rank <= most) for rank in getattr(self, when)]
        return Score.of(bootstrap_mean(right, bounds=PERCENT_BOUNDS))


class Fingerprints(StrictModel):
    """Of the questions trained on and of those evaluated on, see `squad.fingerprint`."""

    train: str
    eval: str


class Ancestor(StrictModel):
    """A run that another one rests on, and the data that it was run on."""

    experiment: Experiment
    fingerprints: Fingerprints


class Timing(StrictModel):
    """Seconds of training (with the scoring after every epoch) and of the final evaluation, and speeds.

    Of a run that was killed and resumed, training counts from the last start only, and its speed means nothing.
    """

    resumed: bool = False

    train_seconds: Annotated[float, Field(ge=0)]
    eval_seconds: Annotated[float, Field(ge=0)]
    train_questions_per_second: Annotated[float, Field(ge=0)]
    eval_questions_per_second: Annotated[float, Field(ge=0)]
    peak_memory_mib: Annotated[float, Field(ge=0)]


class Machine(StrictModel):
    """What ran it, see `device.describe_machine`."""

    device: Line
    device_name: Line
    precision: Line
    threads: Positive
    memory_gib: Annotated[float, Field(ge=0)]
    system: Line
    versions: dict[Line, Line]

    @property
    def where(self) -> str:
        """The device's name, of a CPU with the number of threads."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return self.device_name + (threads if self.device == "cpu" else "")


Defect = Literal["lost-text"]  # made with a tokenizer that lost the text after the first windows, see `unread_ids`


@lru_cache
def unread_ids(defect: Defect = "lost-text") -> frozenset[str]:
    """The questions of SQuAD's validation set whose passages a run with this defect has not read to their ends."""
    raw = read_json(ASSETS / "unread-questions.json", RecordError)
    return frozenset(raw[defect]["ids"])


class Run(StrictModel):
    """An experiment and what came of it; as JSON, a record."""

    schema_version: Literal[1] = 1  # a later schema that reads differently gets the next number
    experiment: Experiment
    machine: Machine
    defects: tuple[Defect, ...] = ()
    fingerprints: Fingerprints
    ancestors: dict[Name, Ancestor] = {}  # the runs that it started from or combines, and theirs
    parameters: tuple[Count, Count]  # trained, all
    stored_bytes: Count | None = None  # of the trained weights, see `trainable.trained_bytes`
    losses: list[tuple[int, float]]  # (optimizer step, mean training loss since the last entry)
    epochs: list[Epoch]
    scores: dict[str, Scores]  # by evaluation set
    indices: dict[str, list[int]]  # by evaluation set: its questions' places in `questions`
    ladder: dict[str, dict[str, Count]] = {}  # by evaluation set, what made answers right, see `metrics.metric_ladder`
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
            if self.ladder and sum(self.ladder.get(name, {}).values()) != len(places):
                raise ValueError(f"the ladder of '{name}' does not add up to its {len(places)} questions")
            for metric in METRICS:
                mean = 100 * float(self.column(metric, name).mean())
                if abs(mean - getattr(self.scores[name], metric).value) > ROUNDING:
                    raise ValueError(f"the {metric} of '{name}' is not the mean of its questions, {mean:.2f}")
            self.scores[name] = self._with_exact_intervals(name)
        return self

    def _with_exact_intervals(self, evaluation: str) -> Scores:
        """The scores, with exact intervals where nearly all questions are right or wrong: old records have none."""
        exact = {metric: exact_mean(100 * self.column(metric, evaluation), bounds=PERCENT_BOUNDS) for metric in METRICS}
        changed = {metric: Score.of(interval) for metric, interval in exact.items() if interval}
        return Scores(**dict(self.scores[evaluation]) | changed)

    def __repr__(self) -> str:
        """Its name, what was trained on, and EM and F1: the record itself is thousands of lines."""
        scores = (f"{name}: EM {one.exact_match}, F1 {one.f1}" for name, one in self.scores.items())
        return f"<Run {self.experiment.name}: {training_in_words(self.experiment)}; {'; '.join(scores)}>"

    __str__ = __repr__

    def column(self, metric: str, evaluation: str) -> np.ndarray:
        """One metric's values, question by question, on one evaluation set (0 to 1; text for `prediction`)."""
        return np.asarray(getattr(self.questions, metric))[self.indices[evaluation]]

    @property
    def unread(self) -> frozenset[str]:
        """The questions that a defect kept it from reading whole."""
        return frozenset().union(*map(unread_ids, self.defects))

    def mean_loss(self, first: int, last: int) -> float:
        """The mean training loss of the optimizer steps after `first` up to `last`, as the Trainer logs it.

        Raises:
            RecordError: if the losses are not kept for exactly these steps.
        """
        steps, values = np.array([0] + [step for step, _ in self.losses]), np.array([loss for _, loss in self.losses])
        if not (first < last and first in steps and last in steps):
            raise RecordError(f"'{self.experiment.name}' kept no mean loss from optimizer step {first} to {last}")
        inside = (steps[1:] > first) & (steps[1:] <= last)
        return float(np.average(values[inside], weights=np.diff(steps)[inside]))


def paired_columns(
    first: Run, second: Run, metric: str = "exact_match", evaluation: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One metric of two runs on the questions that both were asked, in the first run's order (0 to 1).

    Questions that only one of the two could read whole, see `Run.unread`, are left out.

    Args:
        first, second: the runs.
        metric: a column of `Questions`.
        evaluation: only the questions of this evaluation set of the first run; all of both if None.

    Raises:
        RecordError: if they share no question, or were asked different ones under the same ids.
    """
    if first.fingerprints.eval != second.fingerprints.eval and first.questions.id == second.questions.id:
        raise RecordError(f"'{first.experiment.name}' and '{second.experiment.name}' were asked different questions")
    position = {id: i for i, id in enumerate(second.questions.id)}
    asked = range(len(first.questions.id)) if evaluation is None else first.indices[evaluation]
    by_id = [(i, first.questions.id[i]) for i in asked]
    uneven = first.unread ^ second.unread
    shared = [(i, position[id]) for i, id in by_id if id in position and id not in uneven]
    if not shared:
        raise RecordError(f"'{first.experiment.name}' and '{second.experiment.name}' share no question")
    mine, theirs = (list(positions) for positions in zip(*shared, strict=True))
    return np.asarray(getattr(first.questions, metric))[mine], np.asarray(getattr(second.questions, metric))[theirs]


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


def parse(kind: Any, raw: Any, source: str, whole: str = "the file") -> Any:
    """A model of this module from what a JSON file holds, or a part of it.

    Raises:
        RecordError: naming the source and, where the value does not fit the schema, the field, or `whole`.
    """
    try:
        return kind.model_validate_json(json.dumps(raw))  # from JSON, since strict Python input takes no list as tuple
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or whole
        raise RecordError(f"{source}: {place}: {first['msg']}") from None
    except RecursionError:
        raise RecordError(f"{source}: is nested too deeply to be a record") from None


def write_record(run: Run, path: Path | str) -> None:
    """Write a record, whole or not at all: a line a field, so that differences can be read."""
    fields = run.model_dump(mode="json").items()
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields)
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


# ---- the report ------------------------------------------------------------------------------------------------
LOST_TEXT = (
    "made with tokenizers 0.23.2, which loses text: of some long passages, the end was never read. Against runs "
    "without a mark these are compared without the questions on such passages."
)
REPORT_MARKS = ("<!-- report -->", "<!-- /report -->")


def format_report(runs: Iterable[Run]) -> str:
    """A Markdown table of runs, a line an evaluation set: scores in percent with 95 % intervals."""
    lines = [
        "| run | trained on | questions asked | string equality | EM | F1 | training | device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    runs = list(runs)
    for run in runs:
        experiment, timing = run.experiment, run.timing
        for name, scores in run.scores.items():
            cells = [
                experiment.name,
                training_in_words(experiment),
                f"{name} ({scores.questions:,})",
                *(str(getattr(scores, metric)) for metric in ("string_equality", "exact_match", "f1")),
                _speed_in_words(timing) if experiment.epochs else "–",
                f"{run.machine.where}, {run.machine.precision}" + (" \\*" if run.defects else ""),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if any(run.defects for run in runs):
        lines += ["", f"\\* {LOST_TEXT}"]
    return "\n".join(lines)


def _speed_in_words(timing: Timing) -> str:
    if timing.resumed:
        return "resumed, not timed"
    speed = timing.train_questions_per_second
    return f"{timing.train_seconds:.0f} s, {speed:.{0 if speed >= 1 else 1}f} questions/s"


MOST_NAMED = 3  # runs that are combined; of more, the table says only how many
# Said otherwise in the table, or of no weight for what was trained; seeds are told apart by the runs' names.
NOT_SAID = {
    *("name", "data", "train_size", "questions", "epochs", "batch_size", "evaluations", "seed", "probe_size"),
    "retrieval",
}


def training_in_words(experiment: Experiment) -> str:
    """What was trained on what and how, but for what the experiment leaves as it is by default."""
    if experiment.members:
        what = "answers" if experiment.ensemble_of else "weights"
        count = len(experiment.members)
        named = ", ".join(experiment.members) if count <= MOST_NAMED else f"{count} runs"
        return f"nothing: the mean {what} of {named}"
    if not experiment.epochs:
        return f"nothing: {experiment.start_from or experiment.model} as it comes"
    size = "all" if experiment.train_size is None else f"{experiment.train_size:,}"
    kind = "" if experiment.questions == "asked" else f"{experiment.questions} questions "
    epochs = f"{experiment.epochs} epoch{'s' if experiment.epochs > 1 else ''}"
    words = [f"{size} {kind}of {experiment.data}, {epochs}, batch {experiment.batch_size}"]
    words += [f"{n.replace('_', ' ')}: {value}" for n, value in experiment.changed.items() if n not in NOT_SAID]
    return ", ".join(words)


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
