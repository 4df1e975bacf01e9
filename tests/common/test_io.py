"""Files: what is not readable JSON gives one sentence, and what is written is there whole or not at all."""

import bz2
import gzip
import json
import lzma
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.common import io
from qa_helpers.common.io import CourseError, project_folder, read_json, write_atomically

NO_JSON = {
    "truncated": (b'{"data": [', ("line 1, column 11", "not valid JSON")),
    "truncated, on another line": (b'{\n "data": [1,\n', ("line 3, column 1",)),
    "two values": (b"{} {}", ("line 1, column 4", "Extra data")),
    "empty file": (b"", ("line 1, column 1", "Expecting value")),
    "UTF-16": ('{"a": "é"}'.encode("utf-16"), ("not UTF-8", "byte 0")),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), ("not UTF-8", "byte 7")),
    "NaN": (b'{"a": NaN}', ("NaN", "not JSON")),
    "infinity": (b"[-Infinity]", ("-Infinity", "not JSON")),
    "an integer of 5,000 digits": (b"[" + b"9" * 5000 + b"]", ("not valid JSON", "digits")),
    "nested 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, ("nested too deeply",)),
    "a lone surrogate": (rb'["before \ud83d"]', (r"half a character, \ud83d", "before")),
    "a lone surrogate as a key": (rb'{"\uDE00": 1}', (r"half a character, \ude00",)),
    "a lone surrogate in a long text": (rb'["' + b"x" * 90 + rb'\ud83d"]', ("after 'xxxxxxxxxx",)),
    "JSON Lines": (b'{"a": 1}\n{"a": 2}\n', ("seems to be JSON Lines", "another begins at line 2", "one JSON value")),
    "gzip": (gzip.compress(b"{}"), ("is compressed with gzip; unpack it first",)),
    "bzip2": (bz2.compress(b"{}"), ("is compressed with bzip2",)),
    "xz": (lzma.compress(b"{}"), ("is compressed with xz",)),
    "zip": (b"PK\x03\x04\x14\x00", ("is a zip archive; unpack it first",)),
    "Parquet": (b"PAR1\x15\x04\x15", ("is a Parquet table; save what it holds as JSON",)),
    "a web page": (b"<!DOCTYPE html>\n<html>", ("seems to be a web page; download the file itself",)),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
    "a control character": (b'["a\nb"]', ("line 1, column 4", "control character")),
}


@pytest.mark.parametrize(("content", "words"), NO_JSON.values(), ids=NO_JSON)
def test_a_file_that_is_not_json_gives_one_sentence(tmp_path, content, words):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(CourseError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("absent.json", "No such file"),
        (".", "directory"),
        ("x" * 5000, "too long"),
        ("nul\0.json", "null"),
        ("/dev/null/x.json", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_sentence(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="cannot be read") as caught:
        read_json(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_that_no_file_system_takes_is_cut_in_the_message():
    with pytest.raises(CourseError) as caught:
        read_json("y" * 5000)
    assert str(caught.value).startswith("y" * 300 + "…: ")


def test_the_error_is_of_the_kind_asked_for(tmp_path):
    class OwnError(CourseError):
        pass

    with pytest.raises(OwnError):
        read_json(tmp_path / "absent.json", OwnError)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        value = read_json(path)
    except CourseError as problem:
        message = str(problem)
    else:
        assert value == json.loads(content.decode("utf-8-sig"))
        return
    assert message.startswith(f"{path}: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@given(value=JSON, escape=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, encoding, value, escape):
    path = tmp_path_factory.getbasetemp() / "written.json"
    path.write_text(json.dumps(value, ensure_ascii=escape), encoding=encoding)
    assert read_json(path) == value


# ---- writing ----------------------------------------------------------------------------------------------------
def test_writing_makes_folders_keeps_line_ends_and_lets_others_read(tmp_path):
    path = tmp_path / "new" / "folder" / "text.json"
    write_atomically(path, "a\nü 😀\r\n")
    assert path.read_bytes() == "a\nü 😀\r\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["text.json"]


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    write_atomically(path, "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("problem", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken, problem):
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def fail(*_args):
        raise problem

    monkeypatch.setattr(os, broken, fail)
    said = CourseError if isinstance(problem, OSError) else KeyboardInterrupt
    with pytest.raises(said):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "record.json"
    program = (
        "import sys; from qa_helpers.common.io import write_atomically\n"
        "while True:\n for letter in 'ab': write_atomically(sys.argv[1], letter * 3_000_000)"
    )
    moments = random.Random(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not (path.exists() and list(tmp_path.glob(".record.json.*"))):  # one is whole, the next is begun
            assert writer.poll() is None
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_text() in ("a" * 3_000_000, "b" * 3_000_000)
        for rest in tmp_path.glob(".record.json.*"):
            rest.unlink()


def test_the_project_folder_is_the_checkout():
    assert (project_folder() / "pyproject.toml").is_file()


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    path.write_bytes(b"[1, 2]")
    monkeypatch.setattr(io, "MOST_BYTES", 6)
    assert read_json(path) == [1, 2]
    monkeypatch.setattr(io, "MOST_BYTES", 5)
    with pytest.raises(CourseError, match="more than the 0 MB that are read at most; use a part"):
        read_json(path)
