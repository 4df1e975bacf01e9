"""`answers.parquet`: what is damaged, of another kind or unpacks to too much is refused in one sentence."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qa_helpers.experiment import answers_file
from qa_helpers.experiment.answers_file import read_columns, read_questions, to_parquet
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.questions import Questions

QUESTIONS = Questions(
    id=["a", "b"], prediction=["é \u2028\n", ""], confidence=[0.1234, 1.0], f1=[0.5, 0.0], relation=["overlap", "empty"]
)


def refused(path, words):
    with pytest.raises(RecordError) as caught:
        read_columns(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize("with_ids", [True, False])
def test_what_is_written_is_read(tmp_path, with_ids):
    path = tmp_path / "answers.parquet"
    path.write_bytes(to_parquet(QUESTIONS, with_ids))
    assert ("id" in read_columns(path)) == with_ids
    assert read_questions(path, None if with_ids else ["a", "b"]) == QUESTIONS
    if with_ids:
        with pytest.raises(RecordError, match=r"answers\.parquet: id: these are not the questions of which run\.json"):
            read_questions(path, ["a", "c"])


def test_all_numbers_of_four_decimals_are_read_as_they_were_written(tmp_path):
    path, numbers = tmp_path / "x", [number / 10_000 for number in range(10_001)]
    ids = [str(number) for number in numbers]
    columns = {"id": ids, "prediction": ["x"] * len(ids), "f1": [0.0] * len(ids), "relation": ["elsewhere"] * len(ids)}
    path.write_bytes(to_parquet(Questions.model_validate(columns | {"confidence": numbers}), True))
    assert read_columns(path)["confidence"] == numbers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no Parquet file, or a damaged one"),
        (b"{}", "is no Parquet file, or a damaged one"),
        (b"PAR1" * 3, "is no Parquet file, or a damaged one"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", words)


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"x\xff")])
    pq.write_table(pa.table({"prediction": text}), tmp_path / "x")
    refused(tmp_path / "x", "is no Parquet file, or a damaged one")


def test_a_file_of_no_question_is_refused(tmp_path):
    pq.write_table(pa.table({"prediction": pa.array([], pa.string())}), tmp_path / "x")
    refused(tmp_path / "x", "holds 0 questions")


# ---- what unpacks to more than it should -------------------------------------------------------------------------
def test_a_long_text_that_is_stored_once_and_repeated_is_not_unpacked(tmp_path):
    """A file of some kilobytes: 100,000 times a text of 100,000 letters, 10 GB."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 100_000])
    pq.write_table(pa.table({"prediction": repeated}), tmp_path / "x", store_schema=False)
    assert (tmp_path / "x").stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    refused(tmp_path / "x", "prediction: unpacks to more than 100 MB")
    assert pa.total_allocated_bytes() - before < 50_000_000


def test_texts_that_are_packed_well_are_not_unpacked(tmp_path):
    text = pa.array(["x" * 101_000_000])
    pq.write_table(pa.table({"prediction": text}), tmp_path / "x", compression="zstd", use_dictionary=False)
    assert (tmp_path / "x").stat().st_size < 100_000
    refused(tmp_path / "x", "unpacks to more than the 100 MB that are read at most")


def test_more_questions_than_any_run_has_are_refused(tmp_path):
    pq.write_table(pa.table({"rank_after": pa.array([1] * 1_000_001, pa.int32())}), tmp_path / "x", store_schema=False)
    refused(tmp_path / "x", "holds 1,000,001 questions")


def test_a_large_file_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(answers_file, "MOST_BYTES", 10)
    (tmp_path / "x").write_bytes(b"x" * 11)
    refused(tmp_path / "x", "has more than the 0 MB that are read at most")
