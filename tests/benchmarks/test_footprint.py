"""What the package costs before and beside the model: seconds of importing it, memory of a quick run."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from tables import print_table

from qa_helpers.common.io import project_folder
from qa_helpers.course.notebooks import read_notebook
from qa_helpers.experiment.record_files import read_record

pytestmark = pytest.mark.benchmark

MOST_IMPORT_SECONDS = 0.5
MOST_MEMORY_MIB = 3072
IMPORT_RUNS = 5
TIMED_IMPORT = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
QUICK_RUN = "quick-baseline-100-seed0"


def import_seconds(module: str) -> float:
    """Median seconds that importing a module takes in a fresh interpreter, whose own start is not counted."""
    command = [sys.executable, "-c", TIMED_IMPORT.format(module)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(IMPORT_RUNS)]
    return median(float(run.stdout) for run in runs)


def imported_by_notebooks() -> list[str]:
    """The modules of the package that the notebooks import."""
    notebooks = [read_notebook(path) for path in sorted((project_folder() / "notebooks").glob("*.ipynb"))]
    source = "\n".join(cell.source for notebook in notebooks for cell in notebook.cells if cell.cell_type == "code")
    modules = re.findall(r"^\s*(?:from|import) +(qa_helpers\.[\w.]+)", source, re.MULTILINE)
    for names in re.findall(r"^\s*from +qa_helpers +import +\(?([\w, ]+)", source, re.MULTILINE):
        modules += [f"qa_helpers.{name.split()[0]}" for name in names.split(",")]
    return sorted(set(modules))


def test_import_takes_under_half_a_second() -> None:
    used = imported_by_notebooks()
    assert used, "no notebook imports a module of the package"
    seconds = {module: import_seconds(module) for module in ["qa_helpers", *used]}
    print_table(
        f"Importing the package and what the notebooks use of it, each alone, median of {IMPORT_RUNS}",
        ["module", "seconds"],
        list(seconds.items()),
    )
    assert seconds["qa_helpers"] < MOST_IMPORT_SECONDS


def test_quick_run_fits_into_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qa_helpers", "run", QUICK_RUN, "--folder", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    timing = read_record(tmp_path / QUICK_RUN / "run.json").timing
    print_table(
        f"{QUICK_RUN}: training and evaluation in a process of its own",
        ["peak memory MiB", "training s", "questions/s", "evaluation s", "questions/s"],
        [
            (
                f"{timing.peak_memory_mib:.0f}",
                timing.train_seconds,
                timing.train_questions_per_second,
                timing.eval_seconds,
                timing.eval_questions_per_second,
            )
        ],
    )
    assert timing.peak_memory_mib < MOST_MEMORY_MIB
