"""The command line, run as a user runs it, on the smallest real experiments."""

import json
from pathlib import Path

import pytest

from qa_helpers.__main__ import main
from qa_helpers.experiment import rerun
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import SpanTraining

TINY = {
    "name": "tiny",
    "train_size": 16,
    "epochs": 1,
    "probe_size": 0,
    "evaluations": {"few": {"limit": 8}},
}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny experiment, its runs folder and its record."""
    folder = tmp_path_factory.mktemp("main")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    record = folder / "record"
    assert main(["run", str(folder / "tiny.json"), "--folder", str(folder / "runs"), "--record", str(record)]) == 0
    return folder


def test_run_writes_the_record_and_reads_it_back(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_record(tiny_run / "record")
    assert run.experiment == SpanTraining.model_validate(TINY)
    before = (tiny_run / "runs/tiny/run.json").stat().st_mtime_ns
    assert main(["run", str(tiny_run / "tiny.json"), "--folder", str(tiny_run / "runs")]) == 0
    assert "| tiny | 16 of courseqa, 1 epoch," in capsys.readouterr().out
    assert (tiny_run / "runs/tiny/run.json").stat().st_mtime_ns == before


def test_rerun_says_same(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", str(tiny_run / "record"), "--folder", str(tiny_run / "rerun")]) == 0
    printed = capsys.readouterr().out
    verdicts = [line.split()[-1] for line in printed.splitlines() if "few:" in line]
    assert verdicts == ["same"] * 4
    assert "answers: 0 of 8 differ (0.0 %); of 0 only one of the two is right (EM); of 9 recorded pairs" in printed


def test_rerun_shows_the_experiment_before_it_is_trained(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, run = [], read_record(tiny_run / "record")
    monkeypatch.setattr(rerun, "rerun", lambda *_args, **_options: seen.append(capsys.readouterr().out) or (run, []))
    assert main(["rerun", str(tiny_run / "record")]) == 0
    assert '"train_size":16' in seen[0]


def test_rerun_says_off_and_fails(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = read_record(tiny_run / "record"), [rerun.Comparison("few: exact_match", 100.0, 12.5, 3.0)]
    monkeypatch.setattr(rerun, "rerun", lambda *_args, **_options: result)
    assert main(["rerun", str(tiny_run / "record")]) == 1
    assert "100.00" in next(line for line in capsys.readouterr().out.splitlines() if line.endswith("off"))


def test_report_into_a_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- report -->\nold\n<!-- /report -->\nafter\n")
    assert main(["report", str(tiny_run / "record")]) == 0
    table = capsys.readouterr().out.strip()
    assert main(["report", str(tiny_run / "record"), "--into", str(page)]) == 0
    assert page.read_text() == f"before\n<!-- report -->\n{table}\n<!-- /report -->\nafter\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no-such-experiment"], "--list shows"),
        (["run"], "name an experiment"),
        (["run", "missing.json"], "missing.json: cannot be read"),
        (["rerun", "missing"], "missing/run.json: cannot be read"),
        (["report", "missing"], "missing/run.json: cannot be read"),
        (["report", "RECORD", "--into", "README-without-marks"], "<!-- report -->"),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_code_2(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "plain.md").write_text("no marks here\n")
    places = {"RECORD": str(tiny_run / "record"), "README-without-marks": str(tmp_path / "plain.md")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_model_is_asked_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"kind": "ask as it comes", "name": "plain", "evaluations": TINY["evaluations"]}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    assert main(["run", str(tmp_path / "plain.json"), "--folder", str(tmp_path / "runs")]) == 0
    assert "| plain | nothing: minilm as it comes | few (8) |" in capsys.readouterr().out
    assert not (tmp_path / "runs/plain/model").exists()


def test_list_names_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(named_experiments())
    assert {"class-baseline-1000-seed0", "quick-zero-shot-smollm2-seed0"} <= set(listed)


@pytest.mark.parametrize("command", ["check", "run", "sweep", "rerun", "report", "notebooks"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_check_without_squad_or_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("QA_DATA_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["check"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["courseqa"] == "622 training and 206 validation questions"
    assert "QA_DATA_DIR is not set" in lines["squad"]
    assert lines["Hub"].startswith("not asked")
    assert "sha256 as expected" in lines["minilm"]
