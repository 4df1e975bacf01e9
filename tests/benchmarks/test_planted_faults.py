"""Do the notebooks notice a fault in the package? Each is planted in a copy, whose notebooks then have to fail.

The copy holds every file of the working tree that git tracks or would track. Its notebooks run through nbval in
order, strictly, until the first cell that fails; without a fault all of them have to pass.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from qa_helpers.files import project_folder

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Fault:
    """One mistake: `right`, which stands in the file exactly once, becomes `wrong`."""

    name: str
    file: str  # below qa_helpers/
    right: str
    wrong: str

    def plant(self, copy: Path) -> None:
        """Make the mistake in a copy of the project."""
        path = copy / "qa_helpers" / self.file
        source = path.read_text(encoding="utf-8")
        assert source.count(self.right) == 1, f"'{self.right}' stands in {self.file} {source.count(self.right)} times"
        path.write_text(source.replace(self.right, self.wrong), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), str(path), "exec")  # a fault in the numbers, not in the syntax


FAULTS = [
    Fault(
        "learning rate divided by ten",
        "training.py",
        "learning_rate=settings.learning_rate,",
        "learning_rate=settings.learning_rate / 10,",
    ),
    Fault(
        "answer's start one token late",
        "features.py",
        "(first + start_token, first + end_token)",
        "(first + start_token + 1, first + end_token)",
    ),
    Fault(
        "EM without normalisation",
        "evaluation.py",
        "any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)",
        "any(prediction == answer for answer in answers)",
    ),
    # As many questions as the validation set holds: their number does not give the fault away.
    Fault(
        "evaluation on training questions",
        "experiments.py",
        'rows = load_qa(experiment.data, "validation")',
        'rows = load_qa(experiment.data, "train", len(load_qa(experiment.data, "validation")))',
    ),
]


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """A copy of the project's files, without what git ignores."""
    root, copy = project_folder(), tmp_path / "copy"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():  # git also lists a file that has just been removed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    return copy


def failed_cell(copy: Path) -> str | None:
    """Run a copy's notebooks in order; the first cell that fails, as `02_class_baseline.ipynb::Cell 5`, or None."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "notebooks", "--exitfirst"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return None
    found = re.search(r"^FAILED notebooks/(.+?::.+?)( - .*)?$", run.stdout, re.MULTILINE)
    assert run.returncode == 1, f"pytest did not run the notebooks:\n{run.stdout}{run.stderr}"
    assert found, f"no cell failed, but pytest did:\n{run.stdout}"
    return found[1]


def report(name: str, copy: Path) -> str | None:
    """Run a copy's notebooks and print what came of it."""
    begin = time.perf_counter()
    cell = failed_cell(copy)
    print(f"\n{name}: {f'noticed by {cell}' if cell else 'all cells pass'}, {time.perf_counter() - begin:.0f} s")
    return cell


def test_notebooks_pass_without_a_fault(project_copy: Path) -> None:
    assert report("no fault", project_copy) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_notebooks_notice(fault: Fault, project_copy: Path) -> None:
    fault.plant(project_copy)
    assert report(fault.name, project_copy), f"no notebook notices: {fault.name}"
