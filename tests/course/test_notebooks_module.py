"""Executing notebooks: runs, refreshes, failures, figures; with few kernels, as each takes a second."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qa_helpers.__main__ import main
from qa_helpers.course.checks import FIGURES_MIME, format_figures, publish
from qa_helpers.course.notebooks import (
    NotebookRun,
    execute_notebook,
    notebook_environment,
    read_notebook,
    write_html,
)

PUBLISH = """\
from qa_helpers.course.checks import publish
import numpy as np
publish(EM=np.float32(38.8125), n=np.int64(206))
publish(F1=46.06, loss=float("nan"), device="cpu")"""
SETTINGS = """\
import os
from pathlib import Path
names = "QA_SCALE", "HF_HUB_OFFLINE", "TQDM_DISABLE", "PYTHONHASHSEED"
print(*[os.environ.get(name) for name in names], Path.cwd().name)
Path(os.environ["QA_RUNS_DIR"], "trained").touch()"""
MEMORY = "block = bytearray(b'x') * (300 * 2**20)\nimport time\ntime.sleep(0.5)\nlen(block)"
FAIL = "def divide(x):\n    return 1 / x\n\n\nprint('reached')\ndivide(0)"
FORMER = new_output("stream", name="stdout", text="of a former run\n")


def write_notebooks(folder: Path) -> None:
    """A notebook that runs through and one that fails, with what former runs may have left in them."""
    folder.mkdir()
    good = [
        new_markdown_cell("# Good\n\nA formula: $x^2$"),
        new_code_cell(PUBLISH),
        new_code_cell(SETTINGS, metadata={"execution": {"iopub.status.idle": "2020-01-01T00:00:00Z"}}),
        new_code_cell(MEMORY, outputs=[FORMER], execution_count=7),
        new_code_cell("from ipywidgets import IntSlider\nIntSlider(3)"),
    ]
    old_metadata = {
        "kernelspec": {"name": "elsewhere", "display_name": "Elsewhere"},
        "language_info": {"name": "python", "version": "3.5.0"},
        "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
    }
    for number, cell in enumerate(good):
        cell.id = f"good-{number}"
    notebook = new_notebook(cells=good, metadata=old_metadata)
    notebook.cells[1].metadata.tags = ["nbval-tol:rel=0.1,abs=1", "hide"]  # nbformat would refuse the comma
    (folder / "good.ipynb").write_text(json.dumps(notebook))
    bad = [new_code_cell("1 + 1"), new_code_cell(FAIL), new_code_cell("3 + 3", outputs=[FORMER])]
    nbformat.write(new_notebook(cells=bad), folder / "bad.ipynb")


@dataclass
class Command:
    """What `python -m qa_helpers notebooks` did in `folder`."""

    folder: Path
    status: int
    output: str


def command(folder: Path, *arguments: str, **environment: str) -> Command:
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(folder)
        for name in ("QA_SCALE", "QA_RUNS_DIR", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        return Command(folder, main(["notebooks", *arguments]), output.getvalue())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Both notebooks run, at a scale and with a folder of runs of the user's own."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "runs").mkdir()
    write_notebooks(folder / "notebooks")
    return command(folder, "--out", "pages", QA_SCALE="class", QA_RUNS_DIR="runs")


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, dict[str, bytes], Command]:
    """The notebooks refreshed, their bytes thereafter, and the good one refreshed again."""
    folder = tmp_path_factory.mktemp("refreshed")
    write_notebooks(folder / "notebooks")
    first = command(folder, "--refresh", QA_SCALE="class", QA_RUNS_DIR="absent")
    stored = {path.name: path.read_bytes() for path in (folder / "notebooks").iterdir()}
    return first, stored, command(folder, "--refresh", "notebooks/good.ipynb", TQDM_DISABLE="1")


# ---- run -----------------------------------------------------------------------------------------------


def test_table_shows_figures_failures_time_and_memory(ran: Command) -> None:
    header, bad, good = ran.output.splitlines()[-3:]
    assert header == "notebook  seconds  peak MiB  main figures"
    assert bad.startswith("bad ")
    assert bad.endswith("FAILED at cell [2]")
    name, seconds, memory, figures = good.split(maxsplit=3)
    assert (name, figures) == ("good", "EM 38.8 · n 206 · F1 46.1 · loss nan · device cpu")
    assert 0.5 < float(seconds) < 60
    assert 300 < float(memory) < 1000


def test_failure_is_told_with_the_end_of_its_traceback(ran: Command) -> None:
    assert ran.status == 1
    assert f"{Path('notebooks/bad.ipynb')}: cell [2] failed; the cells after it did not run.\n" in ran.output
    assert "    ZeroDivisionError: division by zero\n" in ran.output
    assert "\x1b" not in ran.output


def test_run_leaves_the_notebooks_alone(ran: Command, tmp_path: Path) -> None:
    write_notebooks(tmp_path / "same")
    good = ran.folder / "notebooks" / "good.ipynb"
    assert good.read_text() == (tmp_path / "same" / "good.ipynb").read_text()
    assert "of a former run" in (ran.folder / "notebooks" / "bad.ipynb").read_text()


def test_an_html_copy_has_the_words_for_a_figure(tmp_path):
    told = {"image/png": {"alt": 'EM "by" epoch & size'}}
    figures = [new_output("display_data", {"image/png": "aGk="}, metadata=more) for more in (told, {})]
    notebook = new_notebook(cells=[new_code_cell("plot()", outputs=figures)])
    write_html(NotebookRun(Path("drawn.ipynb"), notebook), tmp_path)
    page = (tmp_path / "drawn.html").read_text()
    assert page.count("""alt='EM "by" epoch &amp; size'""") == page.count("No description") == 1


def test_user_settings_are_kept(ran: Command) -> None:
    page = (ran.folder / "pages" / "good.html").read_text()
    assert "class None 1 0 notebooks" in page  # not offline: the data of this scale may have to be loaded
    assert (ran.folder / "runs" / "trained").exists()


def test_pages_show_what_ran_and_need_no_network(ran: Command) -> None:
    good, bad = ((ran.folder / "pages" / f"{name}.html").read_text() for name in ("good", "bad"))
    assert "EM 38.8 · n 206" in good
    assert "reached" in bad
    assert "ZeroDivisionError" in bad
    assert "of a former run" not in good + bad
    assert "require.js" not in good
    assert "mermaid" not in good
    assert '<script async="" src="https://cdnjs.cloudflare.com/ajax/libs/mathjax' in good  # it blocks nothing
    assert good.count(' src="http') == 1
    assert 'href="http' not in good


# ---- refresh -------------------------------------------------------------------------------------------


def test_second_refresh_gives_no_diff(refreshed: tuple[Command, dict[str, bytes], Command]) -> None:
    first, stored, second = refreshed
    assert second.status == 0
    assert (first.folder / "notebooks" / "good.ipynb").read_bytes() == stored["good.ipynb"]


def test_refresh_stores_clean_valid_notebooks(refreshed: tuple[Command, dict[str, bytes], Command]) -> None:
    notebook = nbformat.reads(refreshed[1]["good.ipynb"].decode(), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    assert [cell.id for cell in notebook.cells] == [f"good-{number}" for number in range(5)]
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3, 4]
    assert [cell.metadata for cell in notebook.cells[1:3]] == [
        {"tags": ["nbval-tol:rel=0.1;abs=1", "hide"]},
        {},
    ]
    assert notebook.cells[1].outputs[0].data == {
        FIGURES_MIME: {"EM": 38.8125, "n": 206},
        "text/plain": "EM 38.8 · n 206",
    }
    assert notebook.cells[2].outputs[0].text == "quick 1 1 0 notebooks\n"  # whatever scale the user has set
    assert list(notebook.cells[4].outputs[0].data) == ["text/plain"]


def test_refresh_refuses_a_notebook_that_raised(refreshed: tuple[Command, dict[str, bytes], Command]) -> None:
    first, stored, _ = refreshed
    assert first.status == 1
    assert "The file keeps its former outputs." in first.output
    cells = json.loads(stored["bad.ipynb"])["cells"]
    assert [cell["outputs"] for cell in cells[:2]] == [[], []]
    assert cells[2]["outputs"][0]["text"] == ["of a former run\n"]
    assert sorted(stored) == ["bad.ipynb", "good.ipynb"]  # no partial file is left


# ---- one notebook --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os\nos._exit(1)", "The kernel died"),
        ("import time\ntime.sleep(300)", "longer than 10 seconds"),
    ],
)
def test_dead_and_hanging_kernels_are_told(tmp_path: Path, source: str, message: str) -> None:
    cells = [new_code_cell("1"), new_code_cell(source), new_code_cell("open('after', 'w')")]
    run = execute_notebook(tmp_path / "n.ipynb", new_notebook(cells=cells), timeout=10)
    assert run.failed_at == "[2]"
    assert message in str(run.error)
    assert run.seconds < 60
    assert not (tmp_path / "after").exists()


def test_environment_pins_what_decides_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = notebook_environment("quick", tmp_path)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["QA_RUNS_DIR"] == str(tmp_path.resolve())
    assert os.environ.get("QA_RUNS_DIR") != str(tmp_path)  # our own environment is left alone


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "No such file"), ("not JSON", "JSON"), ('{"cells": 3}', "cannot be read")]
)
def test_unreadable_notebook_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "n.ipynb"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=reason) as refusal:
        read_notebook(path)
    assert str(refusal.value).startswith(f"{path} cannot be read as a notebook")


def test_command_without_notebooks_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["notebooks"]) == 2
    assert "there are no notebooks in notebooks/" in capsys.readouterr().err


# ---- figures -------------------------------------------------------------------------------------------


def test_floats_are_shown_with_a_decimal_point() -> None:
    figures: dict[str, float | str] = {
        "a": 100.0,
        "b": -38.85,
        "c": 9.5,
        "d": 0.1234,
        "e": 0.0,
        "f": 1.2e-5,
        "n": 206,
        "s": "cpu",
    }
    text = "a 100.0 · b -38.9 · c 9.50 · d 0.123 · e 0.00 · f 1.20e-05 · n 206 · s cpu"
    assert format_figures(figures) == text


@pytest.mark.parametrize("value", [None, [1.0], np.ones(2)])
def test_publish_refuses_what_is_no_figure(value: object) -> None:
    with pytest.raises(TypeError, match="figure 'EM' is a"):
        publish(EM=value)  # type: ignore[arg-type]


def test_import_is_light() -> None:
    heavy = "nbclient", "nbconvert", "nbformat", "IPython", "torch", "numpy"
    check = f"import sys, qa_helpers.course.notebooks; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
