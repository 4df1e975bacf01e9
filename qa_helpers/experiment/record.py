"""What a run of an experiment leaves behind: the *record*, checked as a whole; see `record_files` for its two files.

What follows from something else in a record is not stored; what is stored beside what it follows from is checked.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, InstanceOf, field_validator, model_validator

from qa_helpers.common.io import read_json
from qa_helpers.data.squad import ASSETS
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, bootstrap_mean
from qa_helpers.experiment.forms import Count, Line, Name, Positive, RecordError, StrictModel
from qa_helpers.experiment.questions import Questions, known_questions
from qa_helpers.experiment.scores import METRICS, ROUNDING, Percent, Score, Scores, check_score
from qa_helpers.experiment.spec import Experiment, SpanTraining, Training, chosen_questions, training_in_words

NotNegative = Annotated[float, Field(ge=0)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class ProbeScores(StrictModel):
    """Loss, EM, F1 and mean confidence on the few questions that are scored after every epoch."""

    loss: NotNegative
    exact_match: Percent
    f1: Percent
    confidence: Percent | None = None  # None in records of before it was kept


class Epoch(StrictModel):
    """Scores after one epoch, on training and on validation questions."""

    epoch: Positive
    train: ProbeScores
    eval: ProbeScores


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

    train: Fingerprint | None  # None where nothing is trained
    eval: Fingerprint


class Ancestor(StrictModel):
    """A run that another one rests on, and the data that it was run on."""

    experiment: Experiment
    fingerprints: Fingerprints


class Timing(StrictModel):
    """Seconds of training (with the scoring after every epoch) and of the final evaluation, and speeds.

    Of a run that was killed and resumed, training counts from the last start only, and its speed means nothing.
    """

    resumed: bool = False

    train_seconds: NotNegative
    eval_seconds: NotNegative
    train_questions_per_second: NotNegative
    eval_questions_per_second: NotNegative
    peak_memory_mib: NotNegative


class Machine(StrictModel):
    """What ran it, see `device.describe_machine`."""

    device: Line
    device_name: Line
    precision: Line
    threads: Positive
    memory_gib: NotNegative
    system: Line
    versions: dict[Line, Line]

    @property
    def where(self) -> str:
        """The device's name, of a CPU with the number of threads."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return self.device_name + (threads if self.device == "cpu" else "")


LOSES_TEXT = ("0.23.1", "0.23.2")  # of tokenizers
Defect = Literal["lost-text"]  # made with a tokenizer that lost the text after the first windows, see `unread_ids`


@lru_cache
def unread_ids(defect: Defect = "lost-text") -> frozenset[str]:
    """The questions of SQuAD's validation set whose passages a run with this defect has not read to their ends."""
    raw = read_json(ASSETS / "unread-questions.json", RecordError)
    return frozenset(raw[defect]["ids"])


class Recorded(StrictModel):
    """What `run.json` holds of a run."""

    schema_version: Literal[3] = 3  # a later schema that reads differently gets the next number
    experiment: Experiment
    machine: Machine
    defects: tuple[Defect, ...] = ()
    fingerprints: Fingerprints
    ancestors: dict[Name, Ancestor] = Field(
        default_factory=dict
    )  # the runs that it started from or combines, and theirs
    parameters: tuple[Count, Count]  # trained, all
    stored_bytes: Count | None = None  # of the trained weights, see `trainable.trained_bytes`
    losses: list[tuple[Positive, NotNegative]]  # (optimizer step, mean training loss since the last entry)
    epochs: list[Epoch]
    validation_size: Positive  # questions of the validation set, of which the evaluation sets are chosen
    scores: dict[Name, Scores]  # by evaluation set
    passages: Positive | None = None  # of the validation set, where retrieval was measured
    timing: Timing

    @field_validator("parameters")
    @classmethod
    def _part_of_all(cls, parameters: tuple[int, int]) -> tuple[int, int]:
        if parameters[0] > parameters[1]:
            raise ValueError(f"{parameters[0]:,} of {parameters[1]:,} were trained, which is more than all")
        return parameters

    @field_validator("losses")
    @classmethod
    def _step_by_step(cls, losses: list[tuple[int, float]]) -> list[tuple[int, float]]:
        steps = [step for step, _ in losses]
        wrong = [later for step, later in pairwise(steps) if later <= step]
        if wrong:
            raise ValueError(f"the optimizer's steps do not go up at step {wrong[0]}")
        return losses

    @model_validator(mode="after")
    def _fits_the_experiment(self) -> "Recorded":
        chosen, _ = chosen_questions(self.experiment, self.validation_size)
        known_questions(self.fingerprints.eval, chosen)  # if the course knows the fingerprint, it is that of these
        trained = self.experiment.epochs if isinstance(self.experiment, Training) else 0
        if (self.fingerprints.train is None) != (trained == 0):
            raise ValueError("fingerprints.train: is there if and only if something is trained")
        numbers = [epoch.epoch for epoch in self.epochs]
        if numbers not in ([], list(range(1, trained + 1))):
            raise ValueError(f"epochs: the numbers of the epochs are not 1 to {trained}, one after another")
        if ("lost-text" in self.defects) != (self.machine.versions.get("tokenizers") in LOSES_TEXT):
            raise ValueError("defects: these are not those of the version of tokenizers that the machine had")
        return self


class Run(Recorded):
    """An experiment and what came of it."""

    questions: InstanceOf[Questions]  # checked when it was made

    @model_validator(mode="after")
    def _consistent(self) -> "Run":
        if set(self.scores) != set(self.experiment.evaluations):
            raise ValueError("scores: these are not of the experiment's evaluations")
        chosen, indices = chosen_questions(self.experiment, self.validation_size)
        if len(self.questions.id) != len(chosen):
            raise ValueError(f"{len(self.questions.id)} questions were answered, and {len(chosen)} asked")
        values = {metric: 100.0 * np.asarray(getattr(self.questions, metric)) for metric in METRICS}
        for name, scores in self.scores.items():
            if scores.questions != len(indices[name]):
                raise ValueError(f"scores.{name}: are of {scores.questions} questions, not {len(indices[name])}")
            asked = np.asarray(indices[name])
            for metric in METRICS:
                check_score(getattr(scores, metric), values[metric][asked], ROUNDING[metric], f"scores.{name}.{metric}")
        ranks = self.questions.rank_before, self.questions.rank_after
        measured = isinstance(self.experiment, SpanTraining) and self.experiment.retrieval
        if {value is not None for value in (self.passages, *ranks)} != {measured}:
            raise ValueError("passages: retrieval was not measured as the experiment says")
        if self.passages and max(map(max, filter(None, ranks))) > self.passages:
            raise ValueError(f"passages: a rank is beyond these {self.passages}")
        return self

    @property
    def indices(self) -> dict[str, list[int]]:
        """By evaluation set: its questions' places in `questions`; not to be changed."""
        return chosen_questions(self.experiment, self.validation_size)[1]

    @property
    def ladder(self) -> dict[str, dict[str, int]]:
        """By evaluation set, what made answers right, see `metrics.metric_ladder`."""
        return {name: self.questions.ladder(chosen) for name, chosen in self.indices.items()}

    @property
    def retrieval(self) -> Retrieval | None:
        """How well the encoder finds the right passage, if that was measured."""
        before, after = self.questions.rank_before, self.questions.rank_after
        if self.passages is None or before is None or after is None:
            return None
        return Retrieval(passages=self.passages, before=before, after=after)

    def __repr__(self) -> str:
        """Its name, what was trained on, and EM and F1: the record itself is thousands of lines."""
        scores = (f"{name}: EM {score.exact_match}, F1 {score.f1}" for name, score in self.scores.items())
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
