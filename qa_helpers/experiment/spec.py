"""What an experiment is, of four kinds: everything that decides a run's result, versions and machine apart."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from qa_helpers.common.io import read_json
from qa_helpers.data.squad import Sampling, sample_indices
from qa_helpers.experiment.forms import Count, Form, Line, Name, Positive, RecordError, Seed, StrictModel, naming, parse


# ---- what is asked ---------------------------------------------------------------------------------------------
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


def chosen_questions(experiment: "Experiment", size: int) -> tuple[list[int], dict[str, list[int]]]:
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


# ---- what is done ----------------------------------------------------------------------------------------------
Task = Literal["span", "generate"]  # point at the answer, or write it with a language model


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names a run twice")
    return names


class _Experiment(StrictModel):
    """What an experiment of any kind has: a name, and the data and questions that its model is asked."""

    kind: str
    name: Name
    data: Line = "courseqa"
    evaluations: dict[Name, EvalSet] = Field({"all": EvalSet()}, min_length=1, max_length=20)

    @property
    def parents(self) -> tuple[str, ...]:
        """The runs that it starts from or combines."""
        return ()

    @property
    def command(self) -> str:
        """What re-runs it from its record."""
        return f"python -m qa_helpers rerun records/{self.name}"


class _OfOneModel(_Experiment):
    model: Annotated[Line, Field(min_length=1)] = "minilm"
    start_from: Name | None = None  # another run whose fine-tuned weights to start from
    seed: Seed = 0

    @property
    def parents(self) -> tuple[str, ...]:
        """The run that it starts from, if any."""
        return () if self.start_from is None else (self.start_from,)


class Training(_OfOneModel):
    """What both ways to train have: on which questions, which weights, and how."""

    task: ClassVar[Task]
    train_size: Positive | None = None  # None: the whole training set
    sampling: Sampling = "first"
    sampling_seed: Seed = 0  # with questions "cloze", of their making, too
    per_passage: Positive | None = None  # at most so many training questions of one passage, see `squad.choose`
    questions: Literal["asked", "cloze"] = "asked"  # those of the data set, or made from its passages, see `cloze`
    trainable: Line = "all"  # as `trainable.set_trainable` takes it
    epochs: Annotated[int, Field(ge=1, le=300)] = 3
    batch_size: Annotated[int, Field(ge=1, le=4_096)] = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # of the learning rate, see `trainer.Settings`
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the steps
    probe_size: Count = 100  # training and validation questions scored after every epoch

    @model_validator(mode="after")
    def _counts_asked_questions(self) -> Self:
        if self.questions == "cloze" and self.per_passage is not None:
            raise ValueError("per_passage counts asked questions; it does not go with questions 'cloze'")
        return self


class SpanTraining(Training):
    """Train a span model, which points at the answer: what an experiment is whose kind is not given."""

    kind: Literal["train a span model"] = "train a span model"
    task: ClassVar[Task] = "span"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the learning rate, from each layer to the one below
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # see `training.labels`
    targets: Literal["first", "all"] = "first"  # whose answer is the label: the first annotator's, or everybody's
    average_last: Annotated[int, Field(ge=1, le=100)] = 1  # epochs whose weights are averaged at the end
    retrieval: bool = False  # whether to measure, before and after, how well the encoder finds the right passage

    @model_validator(mode="after")
    def _has_epochs_to_average(self) -> Self:
        if self.average_last > self.epochs:
            raise ValueError(f"average_last: there are no {self.average_last} of {self.epochs} epochs to average")
        if self.average_last > 1 and self.trainable in ("lora", "ia3"):
            raise ValueError("average_last: the mean of adapters is not the adapter of the mean; train the weights")
        return self


class LanguageTraining(Training):
    """Train a language model, which writes the answer."""

    kind: Literal["train a language model"] = "train a language model"
    task: ClassVar[Task] = "generate"


class Combination(_Experiment):
    """Combine runs of span models, with nothing trained, see `model.combine`."""

    kind: Literal["combine runs"] = "combine runs"
    task: ClassVar[Task] = "span"
    mean_of: Literal["answers", "weights"]  # an ensemble, or one model
    members: Annotated[tuple[Name, ...], Field(min_length=2), AfterValidator(_each_once)]

    @property
    def parents(self) -> tuple[str, ...]:
        """The runs that it combines."""
        return self.members


class AsItComes(_OfOneModel):
    """Ask a model, or another run's, as it comes."""

    kind: Literal["ask as it comes"] = "ask as it comes"
    task: Task = "span"


# An experiment is of one of these kinds: `kind` says which.
Experiment = Annotated[SpanTraining | LanguageTraining | Combination | AsItComes, Field(discriminator="kind")]
_EXPERIMENT: TypeAdapter[Experiment] = TypeAdapter(Experiment)


def change(plan: Form, **fields: object) -> Form:
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
    return parse(type(plan), raw, source, "its fields together")


# ---- in words -------------------------------------------------------------------------------------------------
MOST_NAMED = 3  # runs that are combined; of more, the table says only how many
# Said otherwise in the table, or of no weight for what was trained; seeds are told apart by the runs' names.
NOT_SAID = {
    *("kind", "name", "data", "train_size", "questions", "epochs", "batch_size", "evaluations", "seed", "probe_size"),
    "retrieval",
}


def training_in_words(experiment: Experiment) -> str:
    """What was trained on what and how, but for what the experiment leaves as it is by default."""
    if isinstance(experiment, Combination):
        count = len(experiment.members)
        named = ", ".join(experiment.members) if count <= MOST_NAMED else f"{count} runs"
        return f"nothing: the mean {experiment.mean_of} of {named}"
    if isinstance(experiment, AsItComes):
        return f"nothing: {experiment.start_from or experiment.model} as it comes"
    size = "all" if experiment.train_size is None else f"{experiment.train_size:,}"
    made = "" if experiment.questions == "asked" else f"{experiment.questions} questions "
    epochs = f"{experiment.epochs} epoch{'s' if experiment.epochs > 1 else ''}"
    words = [f"{size} {made}of {experiment.data}, {epochs}, batch {experiment.batch_size}"]
    for name, field in type(experiment).model_fields.items():
        value = getattr(experiment, name)
        if name not in NOT_SAID and value != field.default:
            words.append(f"{name.replace('_', ' ')}: {value}")
    return ", ".join(words)


# ---- files -----------------------------------------------------------------------------------------------------
def read_experiment(path: Path | str) -> Experiment:
    """Read an experiment's description from a JSON file.

    Raises:
        RecordError: as `parse_experiment` does.
    """
    return parse_experiment(read_json(path, RecordError), str(path))


def parse_experiment(raw: object, source: str) -> Experiment:
    """An experiment from what a JSON file says of it; where that gives no kind, a span model is trained.

    Raises:
        RecordError: naming the source and, where the description does not fit its kind, the field.
    """
    if isinstance(raw, dict) and raw.keys().isdisjoint(("task", "ensemble_of", "average_of")):  # as those of before
        raw = {"kind": SpanTraining.model_fields["kind"].default} | raw
    with naming(source):
        return _EXPERIMENT.validate_json(json.dumps(raw))
