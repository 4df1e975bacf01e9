"""A run question by question: its `answers.parquet`, a column a field of `Questions`, checked when read.

What follows from a column is not stored. Neither are ids of the validation questions that the course knows: they
stand once for a data set in `assets/validation-ids.json`, where a run's fingerprint of them leads.
"""

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import model_validator

from qa_helpers.common.io import read_json
from qa_helpers.data.rows import short
from qa_helpers.data.squad import ASSETS
from qa_helpers.evaluation.metrics import LADDER, REST, normalize_answer
from qa_helpers.experiment.spec import Fraction, Positive, RecordError, StrictModel, naming

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
    """Some validation questions of a data set that the course knows."""

    data: str
    ids: list[str]


def known_questions(fingerprint: str, chosen: Sequence[int]) -> KnownQuestions | None:
    """Chosen questions of a validation set that the course knows by the fingerprint of just these.

    None where it knows no questions of this fingerprint, or these are not they.
    """
    return _known_questions(fingerprint, tuple(chosen))


@lru_cache(maxsize=64)
def _known_questions(fingerprint: str, chosen: tuple[int, ...]) -> KnownQuestions | None:
    for data, known in _known_sets().items():
        if fingerprint in known.asked:
            ids = [known.ids[number] for number in chosen if number < len(known.ids)]
            return KnownQuestions(data, ids) if digest(ids) == known.asked[fingerprint] else None
    return None


def digest(ids: Sequence[str]) -> str:
    """16 hexadecimal digits that change with any id or with their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


# ---- the file --------------------------------------------------------------------------------------------------
# What a file may hold, far more than any run: it may come from anybody.
MOST_QUESTIONS = 1_000_000
MOST_BYTES = 100_000_000  # on the disk; and of all texts
_FOUR_DECIMALS = pa.decimal128(5, 4)
_TYPES = {
    "id": pa.string(),
    "prediction": pa.string(),
    "confidence": _FOUR_DECIMALS,
    "f1": _FOUR_DECIMALS,
    "relation": pa.string(),
    "rank_before": pa.int32(),
    "rank_after": pa.int32(),
}
_TEXTS = [name for name, type in _TYPES.items() if type == pa.string()]
# Of the columns in which few values occur twice; of short texts, brotli makes a tenth less than zstd.
_ENCODINGS = dict.fromkeys(("confidence", "rank_before", "rank_after"), "DELTA_BINARY_PACKED") | dict.fromkeys(
    ("id", "prediction"), "DELTA_LENGTH_BYTE_ARRAY"
)
_COMPRESSIONS = dict.fromkeys(_TYPES, "zstd") | dict.fromkeys(("id", "prediction"), "brotli")
_LEVELS = {"zstd": 19, "brotli": 11}


def to_parquet(questions: Questions, with_ids: bool) -> bytes:
    """The columns as a compressed Parquet file."""
    columns = {name: getattr(questions, name) for name in _TYPES if name != "id" or with_ids}
    table = pa.table({name: pa.array(column).cast(_TYPES[name]) for name, column in columns.items() if column})
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression={name: _COMPRESSIONS[name] for name in table.column_names},
        compression_level={name: _LEVELS[_COMPRESSIONS[name]] for name in table.column_names},
        use_dictionary=["f1", "relation"],
        column_encoding={name: encoding for name, encoding in _ENCODINGS.items() if name in table.column_names},
        data_page_size=MOST_BYTES,
        store_decimal_as_integer=True,
        store_schema=False,
        write_statistics=False,
    )
    return file.getvalue()


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file, as `Questions` takes them.

    Raises:
        RecordError: naming the file, and the column if one is not of its type, if the file is missing, of another kind,
            damaged, or holds or unpacks to more than any run can have.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecordError(f"{path}: has more than the {MOST_BYTES / 1e6:.0f} MB that are read at most")
        content = pa.BufferReader(path.read_bytes())
        file = pq.ParquetFile(content)
        _check_form(file, path)
        table = pq.ParquetFile(content, read_dictionary=_repeated(file.metadata)).read(use_threads=False)
        table.validate(full=True)  # also that texts are UTF-8
        _check_cells(table, path)
        return {name: _values(table.column(name)) for name in table.column_names}
    except OSError as problem:
        raise RecordError(f"{path}: cannot be read: {problem.strerror or 'it is damaged'}") from None
    except (pa.ArrowException, UnicodeDecodeError):
        raise RecordError(f"{path}: is no Parquet file, or a damaged one") from None


def _check_form(file: pq.ParquetFile, path: Path) -> None:
    """See that a file's columns are known, of their types and not too large, before they are unpacked."""
    for field in file.schema_arrow:
        if field.name not in _TYPES:
            raise RecordError(f"{path}: {short(field.name)}: is no column of a record")
        if field.type != _TYPES[field.name]:
            raise RecordError(
                f"{path}: {field.name}: is of the type {short(str(field.type))}, not {_TYPES[field.name]}"
            )
    if len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
        raise RecordError(f"{path}: holds a column twice")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if not 1 <= file.metadata.num_rows <= MOST_QUESTIONS or sum(group.total_byte_size for group in groups) > MOST_BYTES:
        raise RecordError(
            f"{path}: holds {file.metadata.num_rows:,} questions, or unpacks to more than the {MOST_BYTES / 1e6:.0f} "
            "MB that are read at most"
        )


def _repeated(metadata: pq.FileMetaData) -> list[str]:
    """The columns of texts that are stored once each, however often they are repeated."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return [
        column.path_in_schema
        for column in columns
        if column.path_in_schema in _TEXTS and any("DICTIONARY" in encoding for encoding in column.encodings)
    ]


def _check_cells(table: pa.Table, path: Path) -> None:
    """See that no cell is empty, and that texts that are repeated are not too long in all."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise RecordError(f"{path}: {name}: holds a cell without a value")
        if pa.types.is_dictionary(column.type):
            whole = column.combine_chunks()
            lengths = np.from_dlpack(pc.binary_length(whole.dictionary))
            if lengths[np.from_dlpack(whole.indices)].sum(dtype=np.int64) > MOST_BYTES:
                raise RecordError(f"{path}: {name}: unpacks to more than {MOST_BYTES / 1e6:.0f} MB")


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column: texts, of which those that are repeated are one object each, or numbers."""
    whole = column.combine_chunks()
    if pa.types.is_dictionary(whole.type):
        texts = whole.dictionary.to_pylist()
        return [texts[number] for number in whole.indices.to_pylist()]
    if pa.types.is_decimal(whole.type):
        whole = pa.array(np.round(np.from_dlpack(whole.cast(pa.float64())), 4))
    values: list[Any] = whole.to_pylist()
    return values


def read_questions(path: Path, known: list[str] | None) -> Questions:
    """Read and check a run's columns.

    Args:
        path: of the Parquet file.
        known: the questions' ids where the course knows them; else the file has a column of them.

    Raises:
        RecordError: as `read_columns` does, or naming the file and the column, or the question, that does not fit.
    """
    columns = read_columns(path)
    if known is not None and columns.setdefault("id", [*known]) != known:
        raise RecordError(f"{path}: id: these are not the questions of which run.json has the fingerprint")
    with naming(str(path), "the columns"):
        return Questions.model_validate(columns)
