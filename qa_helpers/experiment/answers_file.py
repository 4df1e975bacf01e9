"""`answers.parquet`: the columns of `questions.Questions` as a compressed table, checked when read.

Ids of questions that the course knows are not among them, see `questions.known_questions`. What a file unpacks to is
bounded as far as it is true to its own description: a page that says otherwise may take up to 2 GB for a moment.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qa_helpers.data.rows import short
from qa_helpers.experiment.forms import RecordError, naming
from qa_helpers.experiment.questions import Questions

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
        decimals: list[float] = np.round(np.from_dlpack(whole.cast(pa.float64())), 4).tolist()
        return decimals
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
