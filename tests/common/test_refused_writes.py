"""What cannot be written: one sentence and exit code 2, before the work where that can be known, and nothing is lost.

`/dev/null/…` lies in a file, so that nobody can write there, root included.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from little_space import no_file_longer_than

from qa_helpers.__main__ import main
from qa_helpers.common.io import CourseError, check_writable, user_path, write_atomically
from qa_helpers.experiment import once, run, store
from qa_helpers.experiment.record_files import write_record
from qa_helpers.experiment.spec import EvalSet, SpanTraining

ROOT = Path(__file__).parents[2]
MARKED = "<!-- report -->\nold\n<!-- /report -->\n"


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """The current folder: a file "taken", a folder "folder", a page, a picture, a record, and experiments to run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", lambda *_args, **_options: pytest.fail("trained"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "page.md").write_text(MARKED)
    (tmp_path / "old.png").write_text("a picture")
    (tmp_path / "notebook.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    write_record(finished[1], tmp_path / "record")
    new = SpanTraining(name="new", train_size=8, epochs=1, evaluations={"few": EvalSet(limit=4)})
    (tmp_path / "new.json").write_text(new.model_dump_json())
    (tmp_path / "list.json").write_text(json.dumps([new.model_dump(mode="json")]))
    return tmp_path


def said(capsys):
    """The one line of standard error."""
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("qa_helpers: ")
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        "run new.json --folder taken",
        "run new.json --folder runs --record /dev/null/x",
        "run new.json --folder runs --record taken",
        "sweep list.json --folder taken",
        "sweep list.json --folder runs --records /dev/null/x",
        "sweep list.json --folder runs --records taken",
        "rerun record --folder taken",
        "report record --picture /dev/null/x.png",
        "report record --picture picture.pdf",
        "chain class-rlhf-seed0 --folder taken",
        "chain class-rlhf-seed0 --folder runs --record /dev/null/x.json",
        "language-chain quick-language-seed0 --folder taken",
        "language-chain quick-language-seed0 --folder runs --record folder",
        "notebooks notebook.ipynb --out taken",
        "notebooks absent.ipynb",
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_in_one_sentence_before_the_work(place, capsys, arguments):
    assert main(arguments.split()) == 2
    assert arguments.split()[-1] in said(capsys)
    assert (place / "taken").read_text() == "mine"
    assert not (place / "runs").exists()


def test_on_a_full_disk_what_was_there_is_kept(place, capsys):
    write_atomically("mine.json", "old")
    tries = (
        "report record --into page.md",
        "report record --picture old.png",
    )
    for arguments in tries:
        with no_file_longer_than(10):
            assert main(arguments.split()) == 2
        assert arguments.split()[-1] + ": cannot be written: File too large; make room" in said(capsys)
    assert (place / "page.md").read_text() == MARKED
    assert (place / "old.png").read_text() == "a picture"
    with no_file_longer_than(10), pytest.raises(CourseError, match=r"mine\.json: cannot be written"):
        write_atomically("mine.json", "x" * 11)
    assert (place / "mine.json").read_text() == "old"
    assert not [path for path in place.iterdir() if path.suffix == ".tmp"]


def test_what_may_be_written_leaves_nothing_behind_when_it_is_tried(tmp_path):
    check_writable(tmp_path / "new" / "record.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_other_faults_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match=r"^CUDA error"), once.locked(tmp_path / "x"):
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(ConnectionError), once.locked(tmp_path / "x"):
        raise ConnectionError


# ---- the output --------------------------------------------------------------------------------------------------
def command(*arguments, python=(sys.executable,), **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [*python, "-m", "qa_helpers", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_reader_that_goes_away_gives_no_traceback():
    process = command("run", "--list", stdout=subprocess.PIPE)
    process.stdout.close()  # as `head` does once it has its lines
    assert (process.stderr.read(), process.wait()) == ("", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_an_output_that_goes_to_a_full_disk_gives_one_sentence():
    with open("/dev/full", "w") as full:
        process = command("run", "--list", stdout=full)
    [line] = process.stderr.read().splitlines()
    assert line.startswith("qa_helpers: the output: cannot be written: No space left on device")
    assert process.wait() == 2


# ---- the home folder ---------------------------------------------------------------------------------------------
def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch):
    from qa_helpers.data.squad import find_file
    from qa_helpers.rlhf.ranking_store import Pair, RankingSession, read_rankings

    home, here = tmp_path / "home", tmp_path / "here"
    (home / "data" / "squad").mkdir(parents=True)
    (home / "data" / "squad" / "train.json").write_text("{}")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("QA_RUNS_DIR", "~/runs")
    monkeypatch.setenv("QA_DATA_DIR", "~/data")
    assert store.runs_folder() == home / "runs"
    assert find_file("squad", "train") == home / "data" / "squad" / "train.json"
    assert find_file("~/data/squad", "train") == home / "data" / "squad" / "train.json"
    with pytest.raises(CourseError, match="no-such-model"):  # wherever it stops, the run's folder is the home's
        store.run_experiment(SpanTraining(name="x", train_size=4, model="/no-such-model"), "~/other")
    with pytest.raises(CourseError, match="no-such-model"):
        store.run_experiment(SpanTraining(name="x", train_size=4, model="/no-such-model"))
    write_atomically("~/record.json", "x")
    pair = Pair.of("Who?", "Ada or Bob.", "Ada", "Bob")
    RankingSession([pair], "~/rankings.sqlite", "ada").choose(pair, "A")
    assert len(read_rankings("~/rankings.sqlite")) == 1
    made = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    assert made == {"data", "runs", "other", "record.json", "rankings.sqlite"}
    assert list(here.iterdir()) == []


def test_a_tilde_on_the_command_line_is_the_home_folder(place, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(place / "home"))
    assert main(["report", "record", "--picture=~/drawn.png"]) == 0
    assert (place / "home" / "drawn.png").read_bytes().startswith(b"\x89PNG")
    assert not (place / "~").exists()


def test_a_home_that_is_nobodys_is_said():
    with pytest.raises(CourseError, match="~no-such-user/x: '~' names no user's home folder"):
        user_path("~no-such-user/x")


# ---- a Python without anything -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The command of a virtual environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return (str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"),)


def test_check_lists_what_a_bare_python_lacks(bare):
    process = command("check", python=bare, stdout=subprocess.PIPE)
    told = dict(line.split(maxsplit=1) for line in process.stdout.read().splitlines() if line)
    assert (process.stderr.read(), process.wait()) == ("", 1)
    assert {"torch>=", "numpy>=", "pydantic>="} <= {name.rstrip("0123456789.") for name in told["lacking"].split(", ")}
    assert "pip install -r requirements.txt" in told["to"]


@pytest.mark.parametrize(
    "arguments", ["run --list", "rerun x.json", "chain x", "language-chain x", "sweep x", "notebooks"]
)
def test_a_command_says_in_one_sentence_what_a_bare_python_lacks(bare, arguments):
    process = command(*arguments.split(), python=bare, stdout=subprocess.PIPE)
    [line] = process.stderr.read().splitlines()
    assert line.startswith("qa_helpers: this Python lacks torch>=")
    assert "pip install -r requirements.txt" in line
    assert process.wait() == 2


def test_an_old_python_is_what_is_lacking(monkeypatch, capsys):
    from qa_helpers.course import first_cell

    monkeypatch.setattr(first_cell, "LEAST_PYTHON", (99, 0))
    assert main(["check"]) == 1
    assert "Python>=99.0" in capsys.readouterr().out


def test_a_fault_of_the_package_is_no_lack(monkeypatch):
    def check(_options):
        """Break down."""
        raise ImportError("cannot import name 'x' from 'qa_helpers.data.squad'")

    monkeypatch.setattr("qa_helpers.__main__.check", check)
    with pytest.raises(ImportError, match="cannot import name 'x'"):
        main(["check"])
