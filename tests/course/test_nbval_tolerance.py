"""The pytest plugin for notebooks: its comparison alone, then whole pytest runs on small notebooks."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from qa_helpers.course.checks import FIGURES_MIME
from qa_helpers.course.nbval_tolerance import Tolerance, parse_tolerance, snap

TAGGED = ["nbval-tol:rel=0.02;abs=0.001"]

# ---- comparison ----------------------------------------------------------------------------------------

TABLE = """\
           EM     F1
-------  ----  -----
MiniLM    9.9  100.0
"""
TABLE_WIDER = """\
            EM    F1
-------  -----  ----
MiniLM   10.0   99.9
"""
HTML = "<tr>\n<th>1</th>\n<td>{}</td>\n<td>{} %</td>\n</tr>"


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("loss 0.1234", "loss 0.1240"),
        ("1.2e-05", "1.21e-05"),
        ("1e-05", "9.99e-06"),
        ("nan", "nan"),
        ("EM 50.0%, F1 60.0 %", "EM 50.4%, F1 59.6 %"),
        ("EM is 38.8.", "EM is 39.0."),
        ("gain +0.0003 [-0.10, 0.20]", "gain -0.0004 [-0.101, 0.201]"),
        ("gain −0.0003", "gain 0.0004"),
        ("(206, 38.8)", "(206, 38.9)"),
        ("0.10-0.20", "0.101-0.201"),
        ("   a    b\n0  1  0.10", "   a      b\n0  1  0.101"),
        (TABLE, TABLE_WIDER),
        ("| a | 99.9 |\n|---|------|", "| a | 100.0 |\n|---|-------|"),
        (HTML.format("0.513463", "38.8"), HTML.format("0.5134631", "39.1")),
        ({"EM": 38.8, "n": 206, "runs": [0.5, "x"]}, {"EM": 39.0, "n": 206, "runs": [0.501, "x"]}),
        ({"EM": 38}, {"EM": 38.1}),  # 38.0, saved in a browser
    ],
)
def test_close_numbers_are_equal(stored: object, new: object) -> None:
    misses: list[str] = []
    assert snap(stored, new, Tolerance(rel=0.02, abs=0.001), misses) == stored
    assert misses == []


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("loss 0.1234", "loss 0.2240"),
        ("1.2e-05", "1.3e-03"),
        ("-0.51", "0.51"),
        ("0.5", "nan"),
        ("0.5", "inf"),
        ("a-1.0", "a 1.0"),
        ("[0.1, 0.2]", "[0.1, 0.2, 0.3]"),
        ("epoch 3: 0.91", "epoch 4: 0.91"),
        ("206 questions", "207 questions"),
        ("of 1000 questions, 206. Done", "of 1000 questions, 207. Done"),
        ("10000", "10001"),
        ("99 %", "100 %"),
        ("12 34 0.5", "1 234 0.5"),
        ("1 2.5", "12.5"),
        ("f63e41", "f63e42"),
        ("63e4567", "63e4568"),
        ("100e12", "101e12"),
        ("v1.2.3", "v1.2.4"),
        ("torch 2.11.0+cpu", "torch 2.12.0+cpu"),
        ("2.50x faster", "2.51x faster"),
        ("EM: 0.93 ± 0.03 ok", "EM: 0.93 ± 0.03 FAILED"),
        ("cat sat 0.5", "catsat 0.5"),
        ("0.5\n", "0.5\n\n"),
        (HTML.format("0.5", "38.8"), HTML.format("0.5", "39.8")),
        (HTML.format("0.5", "38.8"), HTML.format("0.5", "38.8").replace("<th>1", "<th>2")),
        ({"n": 206}, {"n": 207}),
        ({"EM": 38.8}, {"EM": 3.4}),
        ({"EM": 38.8}, {"F1": 38.8}),
        ([0.5], [0.5, 0.5]),
    ],
)
def test_far_numbers_integers_and_text_differ(stored: object, new: object) -> None:
    assert snap(stored, new, Tolerance(rel=0.02, abs=0.001)) != stored


@pytest.mark.parametrize(
    ("stored", "new", "miss"),
    [
        ("EM 38.8 · F1 46.1", "EM 3.4 · F1 46.0", "EM: stored 38.8, now 3.4, allowed ±4"),
        ("<td>0.5</td>", "<td>9.5</td>", "stored 0.5, now 9.5, allowed ±4"),
        ({"loss": 0.5}, {"loss": 9.5}, "loss: stored 0.5, now 9.5, allowed ±4"),
    ],
)
def test_a_number_out_of_tolerance_is_named(stored: object, new: object, miss: str) -> None:
    misses: list[str] = []
    snap(stored, new, Tolerance(abs=4.0), misses)
    assert misses == [miss]


texts = st.text(st.sampled_from("ab .:%|<>[],-+_0123456789e\nnif"), max_size=60)
tolerances = st.builds(Tolerance, rel=st.floats(0, 0.5), abs=st.floats(0, 100))
moderate = st.floats(-1e6, 1e6)


@given(texts, tolerances)
def test_equal_text_is_equal(text: str, tolerance: Tolerance) -> None:
    assert snap(text, text, tolerance) == text


@given(texts, moderate, moderate, texts, tolerances)
def test_a_change_passes_exactly_within_tolerance(
    before: str, stored: float, new: float, after: str, tolerance: Tolerance
) -> None:
    old_text, new_text = f"{stored:.6f}", f"{new:.6f}"
    difference, allowed = abs(float(old_text) - float(new_text)), tolerance.allowed(float(old_text))
    assume(abs(difference - allowed) > 1e-6 * max(1.0, allowed))  # rounding decides on the very edge
    passes = difference < allowed or old_text == new_text
    old_line, new_line = f"{before} {old_text} {after}", f"{before} {new_text} {after}"
    assert (snap(old_line, new_line, tolerance) == old_line) is passes
    old_data, new_data = {"x": float(old_text)}, {"x": float(new_text)}
    assert (snap(old_data, new_data, tolerance) == old_data) is passes


@given(texts, st.integers(), st.integers(), texts, st.floats(0, 1e9))
def test_a_changed_integer_never_passes(before: str, stored: int, new: int, after: str, size: float) -> None:
    assume(stored != new)
    everything = Tolerance(rel=size, abs=size)
    old_line, new_line = f"{before} {stored} {after}", f"{before} {new} {after}"
    assert snap(old_line, new_line, everything) != old_line
    assert snap({"n": stored}, {"n": new}, everything) != {"n": stored}


@given(texts, texts, tolerances)
def test_different_words_never_pass(stored: str, new: str, tolerance: Tolerance) -> None:
    def words(text: str) -> list[str]:
        return re.findall("[a-df-hj-mo-z]", text)  # letters that no float can hold

    assume(words(stored) != words(new))
    assert snap(stored, new, tolerance) != stored


# ---- the tag -------------------------------------------------------------------------------------------


def test_tag_is_read() -> None:
    both = Tolerance(rel=0.05, abs=0.01)
    assert parse_tolerance(["nbval-tol:rel=0.05;abs=0.01", "hide-input"]) == both
    assert parse_tolerance(["nbval-tol: rel=0.05, abs=0.01"]) == both
    assert parse_tolerance(["nbval-tol:abs=2"]) == Tolerance(rel=0.0, abs=2.0)
    assert parse_tolerance(["nbval-ignore-output", "exercise"]) is None


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("nbval-tol:rel=five", "gives rel as 'five'"),
        ("nbval-tol:rel=-0.1", "gives rel as '-0.1'"),
        ("nbval-tol:rel=nan", "gives rel as 'nan'"),
        ("nbval-tol:abs=inf", "gives abs as 'inf'"),
        ("nbval-tol:rel", "no value for rel"),
        ("nbval-tol:rel=", "no value for rel"),
        ("nbval-tol:relative=0.1", "unknown key 'relative'"),
        ("nbval-tol:rel=0.1;rel=0.2", "gives rel twice"),
        ("nbval-tol", "unknown key ''"),
        ("nbval-tolerance:rel=0.1", "unknown key 'erance:rel'"),
        ("nbval-ignore-outputs", "is unknown"),
    ],
)
def test_bad_tag_is_refused(tag: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as refusal:
        parse_tolerance([tag])
    assert repr(tag) in str(refusal.value)


def test_two_tolerances_are_refused() -> None:
    with pytest.raises(ValueError, match="2 nbval-tol tags"):
        parse_tolerance(["nbval-tol:rel=0.1", "nbval-tol:abs=1"])


# ---- whole runs of pytest on generated notebooks -------------------------------------------------------


def cell(source: str, *outputs: Any, tags: list[str] | None = None, run: int | None = 1) -> Any:
    """A code cell as a notebook stores it."""
    metadata = {"tags": tags} if tags else {}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata, execution_count=run)


def printed(text: str) -> Any:
    return new_output("stream", name="stdout", text=text)


def result(text: str) -> Any:
    return new_output("execute_result", {"text/plain": text}, execution_count=1)


def displayed(**data: object) -> Any:
    return new_output("display_data", {name.replace("__", "/"): value for name, value in data.items()})


FIGURE = "display({'image/png': 'aGVsbG8=', 'image/svg+xml': '<svg>2</svg>', 'text/plain': '<Figure>'}, raw=True)"
STORED_FIGURE = new_output(
    "display_data", {"image/png": "d29ybGQ=", "image/svg+xml": "<svg>1</svg>", "text/plain": "<Figure>"}
)
EMBEDDED = (
    """display({{'text/html': '<img src="data:image/png;base64,{}" alt="one">', 'text/plain': '<x>'}}, raw=True)"""
)


def embedded(image: str, alt: str = "one") -> dict[str, str]:
    return {"text/html": f'<img src="data:image/png;base64,{image}" alt="{alt}">', "text/plain": "<x>"}


PUBLISH = "from qa_helpers.course.checks import publish\npublish(EM=38.8, n=206)"
PUBLISHED = new_output("display_data", {FIGURES_MIME: {"EM": 39.0, "n": 206}, "text/plain": "EM 39.0 · n 206"})
ENVIRONMENT = """\
import os
from pathlib import Path
runs = Path(os.environ["QA_RUNS_DIR"])
Path(Path.cwd().name + "-runs.txt").write_text(str(runs))
names = ["TQDM_DISABLE", "PYTHONHASHSEED", "HF_HUB_OFFLINE", "QA_SCALE"]
print([os.environ[name] for name in names], "OMP_NUM_THREADS" in os.environ, list(runs.iterdir()))"""
CLEARED = "from IPython.display import clear_output\nprint('first')\nclear_output(wait=True)\nprint('second')"
UPDATED = "handle = display('one', display_id=True)\nprint('between')\nhandle.update('two')"

GOOD = {
    "a number within tolerance": cell("print('EM 38.8, n 206')", printed("EM 39.0, n 206\n"), tags=TAGGED),
    "an HTML table": cell(
        "display({'text/html': '<td>0.50</td>', 'text/plain': ' 0.50'}, raw=True)",
        displayed(text__html="<td>0.501</td>", text__plain="0.501"),
        tags=TAGGED,
    ),
    "published figures": cell(PUBLISH, PUBLISHED, tags=TAGGED),
    "a figure": cell(FIGURE, STORED_FIGURE),
    "a figure within HTML": cell(EMBEDDED.format("d29ybGQ="), new_output("display_data", embedded("aGVsbG8="))),
    "a trailing semicolon": cell("1 + 1;"),
    "clear_output": cell(CLEARED, printed("second\n")),
    "an updated display": cell(UPDATED, displayed(text__plain="'two'"), printed("between\n")),
    "stderr": cell("import sys\nprint('now', file=sys.stderr)\nprint('out')", printed("out\n")),
    "an expected exception": cell(
        "1 / 0",
        new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[]),
        tags=["raises-exception"],
    ),
    "ignored outputs": cell("print(id(object()))", printed("1\n"), tags=["nbval-ignore-output"]),
    "the environment": cell(ENVIRONMENT, printed("['1', '0', '1', 'quick'] True []\n")),
}
BAD = {
    "a number out of tolerance": cell(
        "print('EM 3.4 · F1 46.0')", printed("EM 38.8 · F1 46.1\n"), tags=["nbval-tol:abs=4"]
    ),
    "a number without the tag": cell("print(38.9)", printed("38.8\n")),
    "an integer under tolerance": cell("print('206 of 38.8')", printed("207 of 38.8\n"), tags=["nbval-tol:abs=4"]),
    "text under tolerance": cell("print('ok 0.5')", printed("no 0.5\n"), tags=TAGGED),
    "a missing figure": cell("pass", STORED_FIGURE, tags=TAGGED),
    "other text beside a figure within HTML": cell(
        EMBEDDED.format("d29ybGQ="), new_output("display_data", embedded("aGVsbG8=", "another"))
    ),
    "one published, two stored": cell(PUBLISH, PUBLISHED, PUBLISHED, tags=TAGGED),
    "no stored run": cell("print('never stored')", run=None),
    "an exception": cell("raise KeyError('gone')"),
}
AFTER = cell("open('ran-after-' + __import__('pathlib').Path.cwd().name, 'w').close()")
DEATHS = {"exit": "import os\nos._exit(1)", "kill": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"}


@dataclass
class Outcome:
    """How pytest judged one cell."""

    status: str  # passed, failed or skipped
    message: str


def write(path: Path, cells: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), path)
    return path


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest with the plugin on the notebooks in `folder`, in a process of its own, colours off."""
    plugin = ["-p", "qa_helpers.course.nbval_tolerance", "--nbval", "--color=no", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(folder), *plugin, *options, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def outcomes(report: Path) -> dict[str, list[Outcome]]:
    """The cells' outcomes in a JUnit report, in order, by the notebook's folder."""
    found: dict[str, list[Outcome]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        child = case.find("failure") if case.find("failure") is not None else case.find("skipped")
        status = {"failure": "failed", "skipped": "skipped"}[child.tag] if child is not None else "passed"
        message = "" if child is None else f"{child.get('message')} {child.text}"
        found.setdefault(str(case.get("classname")).split(".")[0], []).append(Outcome(status, message))
    return found


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Outcome]]]:
    """One pytest run over a good, a bad and two dying notebooks: few kernels, for each costs a second."""
    folder = tmp_path_factory.mktemp("judged")
    write(folder / "good" / "n.ipynb", list(GOOD.values()))
    write(folder / "bad" / "n.ipynb", [*BAD.values(), AFTER])
    for name, source in DEATHS.items():
        write(folder / name / "n.ipynb", [GOOD["the environment"], cell(source), AFTER])
    run_pytest(folder, f"--junitxml={folder / 'report.xml'}")
    return folder, outcomes(folder / "report.xml")


@pytest.mark.parametrize("name", GOOD)
def test_cell_passes(judged: tuple[Path, dict[str, list[Outcome]]], name: str) -> None:
    outcome = judged[1]["good"][list(GOOD).index(name)]
    assert outcome.status == "passed", outcome.message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a number out of tolerance", "EM: stored 38.8, now 3.4, allowed ±4"),
        ("a number without the tag", "38.9"),
        ("an integer under tolerance", "206 of 38.8"),
        ("text under tolerance", "ok 0.5"),
        ("a missing figure", "Missing output fields"),
        ("other text beside a figure within HTML", "another"),
        ("one published, two stored", "dissimilar number of outputs"),
        ("no stored run", "python -m qa_helpers notebooks --refresh bad/n.ipynb"),
        ("an exception", "KeyError"),
    ],
)
def test_cell_fails(judged: tuple[Path, dict[str, list[Outcome]]], name: str, message: str) -> None:
    outcome = judged[1]["bad"][list(BAD).index(name)]
    assert outcome.status == "failed"
    assert message in outcome.message


def test_numbers_within_tolerance_are_not_listed(judged: tuple[Path, dict[str, list[Outcome]]]) -> None:
    assert "46.1, now" not in judged[1]["bad"][0].message


@pytest.mark.parametrize("name", ["bad", *DEATHS])
def test_cells_after_a_break_are_not_run(judged: tuple[Path, dict[str, list[Outcome]]], name: str) -> None:
    folder, by_notebook = judged
    assert by_notebook[name][-2].status == "failed"
    assert by_notebook[name][-1].status == "skipped"
    assert f"{name}/n.ipynb stopped at Cell" in by_notebook[name][-1].message
    assert not (folder / name / f"ran-after-{name}").exists()


@pytest.mark.parametrize("name", DEATHS)
def test_dead_kernel_is_told(judged: tuple[Path, dict[str, list[Outcome]]], name: str) -> None:
    # The cell timeout of the run was nbval's 2000 seconds: the run's own timeout would have ended a wait.
    assert "kernel died" in judged[1][name][1].message


def test_each_notebook_has_its_own_folder_of_runs(judged: tuple[Path, dict[str, list[Outcome]]]) -> None:
    folders = [Path((judged[0] / name / f"{name}-runs.txt").read_text()) for name in ("good", *DEATHS)]
    assert len(set(folders)) == len(folders)
    assert not any(folder.exists() for folder in folders)


def test_a_cell_over_its_time_fails(tmp_path: Path) -> None:
    write(tmp_path / "slow" / "n.ipynb", [cell("import time\ntime.sleep(300)"), AFTER])
    start = time.monotonic()
    run = run_pytest(tmp_path, "--nbval-cell-timeout=1")
    assert "The cell ran longer than 1 seconds" in run.stdout
    assert "1 failed, 1 skipped" in run.stdout
    assert time.monotonic() - start < 60


def test_bad_tag_fails_at_collection(tmp_path: Path) -> None:
    write(tmp_path / "tagged" / "n.ipynb", [cell("1"), cell("2", tags=["nbval-tol:rel=five"])])
    run = run_pytest(tmp_path)
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert (
        "tagged/n.ipynb, Cell 1: the tag 'nbval-tol:rel=five' gives rel as 'five', which is not a number of "
        "zero or more; write it like nbval-tol:rel=0.05;abs=0.01." in run.stdout
    )
