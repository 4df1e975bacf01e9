"""Do the tests notice a fault? Each is planted in a copy of the project, where the test that it names has to fail.

The copy holds the files that git tracks or would track. Without a fault all of the named tests pass there; with one,
its test fails by an assertion, and not because something could no longer be imported or set up.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from faults import FAULTS, Fault

from qa_helpers.common.io import project_folder

pytestmark = pytest.mark.faults

NEEDED = ["qa_helpers", "tests", "notebooks", "pyproject.toml", "requirements.txt"]
MOST_SECONDS = 600  # a test; the slowest takes a tenth of that
ASSERTION = re.compile(r"assert |AssertionError|Failed: DID NOT RAISE|\[Cell|Notebook output")


class Outcome(NamedTuple):
    """What pytest made of some tests."""

    passed: list[str]
    failed: dict[str, str]  # the first line of why
    broken: dict[str, str]  # neither passed nor failed: not collected, not set up, skipped
    said: str


@pytest.fixture(scope="session")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files, without what git ignores."""
    root, copy = project_folder(), tmp_path_factory.mktemp("faults") / "copy"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *NEEDED]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():  # git also lists a file that has just been removed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    return copy


def run_tests(copy: Path, nodes: list[str]) -> Outcome:
    """Run tests of a copy in a process of its own."""
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    without_notebooks = ["-o", "addopts=", "-p", "no:nbval", "--strict-markers"]
    options = [] if any(".ipynb" in node for node in nodes) else without_notebooks
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *nodes, *options, "--exitfirst", f"--junitxml={report}"],
        cwd=copy,
        # No bytecode: a file that is changed twice in a second would be taken for the one before.
        env=os.environ
        | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS * max(1, len(nodes) // 4),
    )
    outcome = Outcome([], {}, {}, f"{run.stdout[-4000:]}\n{run.stderr[-2000:]}")
    assert report.is_file(), f"pytest ran nothing:\n{outcome.said}"
    for case in ElementTree.parse(report).iter("testcase"):
        name = str(case.get("name"))
        if (failure := case.find("failure")) is not None:
            outcome.failed[name] = str(failure.get("message"))
        elif (other := next((part for kind in ("error", "skipped") for part in case.iter(kind)), None)) is not None:
            outcome.broken[name] = str(other.get("message"))
        else:
            outcome.passed.append(name)
    return outcome


def test_there_are_forty_and_no_two_are_alike() -> None:
    assert len({fault.name for fault in FAULTS}) == len({(f.file, f.right, f.wrong) for f in FAULTS}) == len(FAULTS)
    assert len(FAULTS) >= 40


def test_the_named_tests_pass_without_a_fault(project_copy: Path) -> None:
    nodes = list(dict.fromkeys(fault.noticed_by for fault in FAULTS))
    begin = time.perf_counter()
    outcome = run_tests(project_copy, nodes)
    print(f"\nno fault: {len(outcome.passed)} tests pass, {time.perf_counter() - begin:.0f} s")
    assert not outcome.failed, outcome.said
    assert not outcome.broken, outcome.said
    missing = [node for node in nodes if not any(name.startswith(node.split("::")[-1]) for name in outcome.passed)]
    assert not missing, f"{missing} did not run:\n{outcome.said}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault: Fault, project_copy: Path) -> None:
    source = (project_copy / fault.file).read_bytes()
    begin = time.perf_counter()
    try:
        fault.plant(project_copy)
        outcome = run_tests(project_copy, [fault.noticed_by])
    finally:
        (project_copy / fault.file).write_bytes(source)
    seconds = f"{time.perf_counter() - begin:.0f} s"
    assert not outcome.broken, f"{fault.name}: {outcome.broken}\n{outcome.said}"
    assert outcome.failed, f"survived: {fault.name} is not noticed by {fault.noticed_by} ({seconds})\n{outcome.said}"
    [why] = outcome.failed.values()
    assert ASSERTION.search(why), f"{fault.name}: fails, but not by an assertion: {why}\n{outcome.said}"
    print(f"\n{fault.name}: noticed by {fault.noticed_by}, {seconds}")
