"""What an experiment is: everything that decides a run's result, and what holds a file to its form."""

import contextlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from qa_helpers.common.io import CourseError, read_json
from qa_helpers.data.squad import Sampling, sample_indices

MOST_SHOWN = 1_500  # characters of a record, an experiment or a part of one


def _without_link(text: str) -> str:
    if "://" in text or "www." in text.lower():
        raise ValueError("holds a link")
    return text


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Line = Annotated[  # safe in a Markdown table and a terminal: no mark-up, link or character that is not seen
    str, Field(max_length=200, pattern=r"^[^|<>`\[\]\p{C}\p{Zl}\p{Zp}]*$"), AfterValidator(_without_link)
]
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

    def __copy__(self) -> Self:
        """Without what was derived from the fields and kept: a copy may get other ones."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


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
        return f"python -m qa_helpers rerun records/{self.name}"


def chosen_questions(experiment: Experiment, size: int) -> tuple[list[int], dict[str, list[int]]]:
    """Which of a validation set's `size` questions an experiment asks, each once and in order.

    Returns:
        Their places in the validation set, and by evaluation set, in its own order, places among these; not to be
        changed.

    Raises:
        RecordError: if an evaluation set asks for more than there are.
    """
    return _chosen(tuple(experiment.evaluations.items()), size)


@lru_cache(maxsize=64)
def _chosen(evaluations: tuple[tuple[str, EvalSet], ...], size: int) -> tuple[list[int], dict[str, list[int]]]:
    chosen = {name: evaluation.indices(size) for name, evaluation in evaluations}
    union = sorted(set().union(*chosen.values()))
    position = {index: number for number, index in enumerate(union)}
    return union, {name: [position[index] for index in indices] for name, indices in chosen.items()}


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


# ---- in words -------------------------------------------------------------------------------------------------
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


# ---- files -----------------------------------------------------------------------------------------------------
def read_experiment(path: Path | str) -> Experiment:
    """Read an experiment's description from a JSON file.

    Raises:
        RecordError: naming the file and, where it does not fit the schema, the field.
    """
    experiment: Experiment = parse(Experiment, read_json(path, RecordError), str(path))
    return experiment


def parse(kind: Any, raw: Any, source: str, whole: str = "the file") -> Any:
    """A model from what a JSON file holds, or a part of it.

    Raises:
        RecordError: naming the source and, where the value does not fit the schema, the field, or `whole`.
    """
    with naming(source, whole):
        return kind.model_validate_json(json.dumps(raw))  # from JSON, since strict Python input takes no list as tuple


@contextlib.contextmanager
def naming(source: str, whole: str = "the file") -> Iterator[None]:
    """Around what makes a model: where a value does not fit, that becomes one sentence.

    Raises:
        RecordError: naming the source and the field, or `whole`.
    """
    try:
        yield
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(str(step) for step in first["loc"]) or whole
        raise RecordError(f"{source}: {field}: {first['msg']}") from None
    except RecursionError:
        raise RecordError(f"{source}: is nested too deeply to be a record") from None
