"""A run question by question, and the ids of the validation questions that the course knows."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, Self, get_args

from pydantic import model_validator

from qa_helpers.common.io import read_json
from qa_helpers.data.rows import short
from qa_helpers.data.squad import ASSETS
from qa_helpers.evaluation.metrics import LADDER, REST, normalize_answer
from qa_helpers.experiment.forms import Fraction, Positive, RecordError, StrictModel

# How a prediction relates to the given answers: what makes it right, see `metrics.LADDER`, or how it is wrong, see
# `metrics.CATEGORIES`.
Relation = Literal[
    "equals the first answer",
    "but for case",
    "but for articles",
    "but for punctuation and white space",
    "equals any answer, but for these (EM)",
    "holds an answer and more words",
    "too short",
    "overlap",
    "elsewhere",
    "empty",
]
*_STEPS, _HOLDS = LADDER
_RELATIONS: tuple[str, ...] = get_args(Relation)
_EQUAL = {relation: int(relation in _STEPS[:2]) for relation in _RELATIONS}
_EXACT = {relation: int(relation in _STEPS) for relation in _RELATIONS}
_HOLDS_ANY = {relation: relation in LADDER for relation in _RELATIONS}
_CATEGORY_OF = {relation: relation for relation in _RELATIONS} | dict.fromkeys(_STEPS, "exact") | {_HOLDS: "too long"}
_SHARES_WORDS = (_HOLDS, "too short", "overlap")


# ---- the columns -----------------------------------------------------------------------------------------------
class Questions(StrictModel):
    """Per-question results, a list a column, in the validation set's order."""

    id: list[str]
    prediction: list[str]
    confidence: list[Fraction]  # this and F1 to four decimals
    f1: list[Fraction]
    relation: list[Relation]
    rank_before: list[Positive] | None = None  # of the question's own passage, see `record.Retrieval`
    rank_after: list[Positive] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Questions":
        columns = {name: getattr(self, name) for name in type(self).model_fields}
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns differ in length: {lengths}")
        if len(set(self.id)) != len(self.id):
            raise ValueError("a question stands twice")
        for id, text, score, relation in zip(self.id, self.prediction, self.f1, self.relation, strict=True):
            if (score != _USUAL_F1.get(relation) or not _CERTAIN.search(text)) and not _is_possible(
                text, score, relation
            ):
                raise ValueError(
                    f"question '{short(id)}': the prediction '{short(text)}' cannot have the relation '{relation}' "
                    f"and an F1 of {score:g}"
                )
        return self

    def __copy__(self) -> Self:
        """Without what was derived from the fields and kept: a copy may get other ones."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @cached_property
    def string_equality(self) -> list[int]:
        """Whether it equals the first given answer but for case: 1 or 0."""
        return [_EQUAL[relation] for relation in self.relation]

    @cached_property
    def exact_match(self) -> list[int]:
        """Official exact match: 1 or 0."""
        return [_EXACT[relation] for relation in self.relation]

    @cached_property
    def contained(self) -> list[int]:
        """Whether a given answer that is not empty once normalised stands in it: 1 or 0."""
        return [int(f1 > 0 and _HOLDS_ANY[relation]) for relation, f1 in zip(self.relation, self.f1, strict=True)]

    @cached_property
    def category(self) -> list[str]:
        """The key of `metrics.CATEGORIES`."""
        return [_CATEGORY_OF[relation] for relation in self.relation]

    def ladder(self, chosen: Sequence[int]) -> dict[str, int]:
        """What made the answers to some of the questions right, as `metrics.metric_ladder` counts."""
        counts = Counter[str](self.relation[number] for number in chosen)
        steps = {step: counts[step] for step in LADDER}
        return steps | {REST: len(chosen) - sum(steps.values())}


# What is seen to be possible without looking further: a text with a character that is in no article is not empty.
_CERTAIN = re.compile(r"[b-df-gi-mo-su-zB-DF-GI-MO-SU-Z0-9]")
_USUAL_F1 = dict.fromkeys(_STEPS, 1.0) | {"elsewhere": 0.0}


def _is_possible(prediction: str, score: float, relation: str) -> bool:
    """Whether there are answers to which a prediction has this F1 and stands in this relation."""
    if relation in _SHARES_WORDS:
        return _is_possible_f1(score, _count_words(prediction))
    empty = _count_words(prediction) == 0
    if relation in _STEPS:
        return score == float(not empty)
    return score == 0 and empty == (relation == "empty")


@lru_cache(maxsize=200_000)
def _count_words(prediction: str) -> int:
    return len(normalize_answer(prediction).split())


@lru_cache(maxsize=100_000)
def _is_possible_f1(score: float, words: int) -> bool:
    """Whether a text of so many words can share some with another so that F1, to four decimals, is this.

    F1 is twice the shared words over the words of both.
    """
    if score <= 0:
        return False
    most, least = score + 0.00005 + 1e-9, max(score - 0.00005 - 1e-9, 1e-9)
    bounds = ((shared, 2 * shared / most - words, 2 * shared / least - words) for shared in range(1, words + 1))
    return any(max(shared, math.ceil(low)) <= math.floor(high) for shared, low, high in bounds)


# ---- ids -------------------------------------------------------------------------------------------------------
class _Known(StrictModel):
    """The validation questions of a data set."""

    asked: dict[str, str]  # by fingerprint of some of them that runs were asked, see `squad.fingerprint`: their digest
    ids: list[str]  # of all of them


@lru_cache
def _known_sets() -> dict[str, _Known]:
    raw = read_json(ASSETS / "validation-ids.json", RecordError)
    return {name: _Known.model_validate(known) for name, known in raw.items()}


class KnownQuestions(NamedTuple):
    """Some validation questions of a data set that the course knows; their ids stand in its assets, once."""

    data: str
    ids: list[str]


def known_questions(fingerprint: str, chosen: Sequence[int]) -> KnownQuestions | None:
    """Chosen questions of a validation set that the course knows by the fingerprint of just these; None of another.

    Raises:
        RecordError: if it knows the fingerprint as that of others.
    """
    return _known_questions(fingerprint, tuple(chosen))


@lru_cache(maxsize=64)
def _known_questions(fingerprint: str, chosen: tuple[int, ...]) -> KnownQuestions | None:
    for data, known in _known_sets().items():
        if fingerprint in known.asked:
            ids = [known.ids[number] for number in chosen if number < len(known.ids)]
            if digest(ids) != known.asked[fingerprint]:
                raise RecordError(f"the fingerprint {fingerprint} is of other questions of {data} than are asked")
            return KnownQuestions(data, ids)
    return None


def digest(ids: Sequence[str]) -> str:
    """16 hexadecimal digits that change with any id or with their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
