"""Execute the course's notebooks, to read them, to refresh their stored outputs or to test them.

    python -m qa_helpers notebooks              run all; an HTML copy of each in build/, then a table
    python -m qa_helpers notebooks --refresh    the same, and store the outputs in the notebooks

A notebook hands its main figures to the closing table with `publish(EM=38.8, F1=46.1)`.

Every run, and every test of a notebook (`nbval_tolerance`), goes through `notebook_kernel`: a fresh kernel,
one environment, one way to collect outputs. What is stored is therefore what a test compares.

What it simplifies: notebooks run one after the other, because two kernels with two threads each on two
cores take longer together than in turn; peak memory is sampled, so a shorter peak than the sampling step
is missed.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qa_helpers.common.io import CourseError, check_writable, user_path, write_atomically
from qa_helpers.course.checks import format_figures, published_figures

# nbformat, nbclient, nbconvert, psutil and tqdm load on first use: every pytest run imports this module.
if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

OFFLINE_TEMPLATE = Path(__file__).resolve().parents[1] / "assets" / "offline.html.j2"
TOLERANCE_TAG = "nbval-tol"  # what the tag means is told in nbval_tolerance
PATIENCE = 16  # times as long may a cell take at the larger scales
CELL_TIMEOUT = 900  # seconds; a quick notebook takes under 120 as a whole, so a cell that needs more hangs
MEMORY_STEP = 0.1  # seconds between two samples of a kernel's memory
TRACEBACK_LINES = 8  # of a failed cell: its last calls and the error, still readable in a terminal
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# ---- kernels -------------------------------------------------------------------------------------------


def notebook_environment(scale: str, runs_dir: Path) -> dict[str, str]:
    """The environment variables of a notebook's kernel, for a run, a refresh and a test alike.

    `scale` is the QA_SCALE of the run, `runs_dir` the folder from which finished runs are read back.
    """
    environment = {
        **os.environ,
        "QA_SCALE": scale,
        "QA_RUNS_DIR": str(runs_dir.resolve()),  # the kernel runs in the notebook's folder, not in ours
        "PYTHONHASHSEED": "0",  # sets and dict views print in the same order each time
        "TQDM_DISABLE": "1",  # a stored progress bar shows timings, which differ each time
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures show even under MPLBACKEND=agg
        "OMP_NUM_THREADS": "2",  # as the stored outputs were made: sums in another order round differently
        # A thread that waits for the other sleeps instead of spinning: with one of two cores kept busy by another
        # program, a training took 1.3 times as long instead of over 3 times; alone on the machine, 8 % longer.
        "OMP_WAIT_POLICY": "passive",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # or each kernel's start warns about frozen modules
    }
    if scale == "quick":
        environment["HF_HUB_OFFLINE"] = "1"  # everything that quick needs comes with the installed packages
    # The kernel imports the package that started it, also from a checkout that is not installed.
    checkout = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    return environment


@contextmanager
def notebook_kernel(
    notebook: NotebookNode,
    folder: Path,
    *,
    scale: str = "quick",
    runs_dir: Path | None = None,
    timeout: float = CELL_TIMEOUT,
) -> Iterator[NotebookClient]:
    """A fresh kernel in `folder`, ready for `client.execute_cell(cell, index)` on cells of `notebook`.

    `timeout` is in seconds a cell. Without `runs_dir` finished runs go to a temporary folder that is removed
    with the kernel, so that the notebook really trains.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=math.ceil(timeout),
        kernel_name="python3",  # of this environment, whatever kernel the notebook was last saved with
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        skip_cells_with_tag="nbval-skip",  # the tag by which the tests skip a cell, too
        extra_arguments=["--log-level=ERROR"],  # or each start warns that local messages are not encrypted
    )
    with TemporaryDirectory(prefix="qa-runs-") as temporary:
        environment = notebook_environment(scale, runs_dir or Path(temporary))
        with client.setup_kernel(cwd=str(folder), env=environment):
            yield client


@contextmanager
def peak_memory(pid: int) -> Iterator[Callable[[], float]]:
    """Sample the resident memory of a process and its children; what it yields gives the highest sum so far, in MiB."""
    import psutil

    process, ended, highest = psutil.Process(pid), threading.Event(), 0.0

    def sample() -> None:
        nonlocal highest
        while not ended.wait(MEMORY_STEP):
            with suppress(psutil.NoSuchProcess):  # the kernel died; a child that just ended only costs this sample
                family = [process, *process.children(recursive=True)]
                highest = max(highest, sum(member.memory_info().rss for member in family) / 2**20)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield lambda: highest
    finally:
        ended.set()
        sampler.join()


# ---- one notebook --------------------------------------------------------------------------------------


@dataclass
class NotebookRun:
    """What came of one execution of a notebook; `failed_at` and `error` are None if all cells ran."""

    path: Path
    notebook: NotebookNode
    seconds: float = 0.0
    peak_mib: float = 0.0
    failed_at: str | None = None  # the number that Jupyter shows beside the cell, as in [4]
    error: str | None = None  # the last lines of the traceback
    figures: dict[str, float | str] = field(default_factory=dict)


def execute_notebook(
    path: Path,
    notebook: NotebookNode,
    *,
    scale: str = "quick",
    runs_dir: Path | None = None,
    timeout: float = CELL_TIMEOUT,
    on_cell: Callable[[], object] = lambda: None,
) -> NotebookRun:
    """Execute `notebook`, read from `path`, in place and in a fresh kernel.

    An exception in a cell, a cell over `timeout` seconds and a dead kernel end the run and are told in the
    result; the cells after it keep no outputs. `on_cell` is called after each cell.
    """
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    forget_outputs(notebook)
    run = NotebookRun(path, notebook)
    start = time.monotonic()
    with (
        notebook_kernel(notebook, path.parent, scale=scale, runs_dir=runs_dir, timeout=timeout) as client,
        peak_memory(client.km.provisioner.pid) as peak_mib,  # type: ignore[union-attr]  # it has been started
    ):
        try:
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
                on_cell()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            run.failed_at, run.error = f"[{client.code_cells_executed}]", describe_failure(error, timeout)
    run.seconds, run.peak_mib, run.figures = time.monotonic() - start, peak_mib(), published_figures(notebook)
    return run


def describe_failure(error: Exception, timeout: float) -> str:
    """Why a cell did not run to its end: the last lines of its traceback, or one sentence."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    if isinstance(error, CellExecutionError):
        lines = ANSI_COLOUR.sub("", error.traceback).strip().splitlines()
        return "\n".join(lines[-TRACEBACK_LINES:])
    if isinstance(error, CellTimeoutError):
        return f"The cell ran longer than {timeout:g} seconds; make its work smaller or look for a hang."
    return "The kernel died while the cell ran: out of memory, or killed; run the cell alone and watch memory."


def forget_outputs(notebook: NotebookNode) -> None:
    """Remove the outputs and execution counts of a former run, so that none outlives a failure."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def normalise(notebook: NotebookNode) -> None:
    """Remove what would differ between two runs on two machines: timings, widget state, kernel versions."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "tags" in cell.metadata:  # the notebook format forbids commas in tags
            cell.metadata.tags = [
                tag.replace(",", ";") if tag.startswith(TOLERANCE_TAG) else tag for tag in cell.metadata.tags
            ]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def store(path: Path, notebook: NotebookNode) -> None:
    """Replace the notebook file in one step: a reader sees the old or the new one, never a part."""
    import nbformat

    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")


def write_html(run: NotebookRun, out: Path) -> None:
    """Write `<out>/<name>.html`, which reads without a network (formulas then show as TeX)."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_file=str(OFFLINE_TEMPLATE))
    page, _ = exporter.from_notebook_node(run.notebook, {"metadata": {"name": run.path.stem}})
    write_atomically(out / f"{run.path.stem}.html", page)


# ---- all notebooks -------------------------------------------------------------------------------------


def run_notebooks(
    paths: Sequence[Path], out: Path = Path("build"), *, refresh: bool = False, timeout: float = CELL_TIMEOUT
) -> list[NotebookRun]:
    """Execute the notebooks in turn and write an HTML copy of each, with what ran, to `out`.

    Work is at the scale QA_SCALE (default quick), and finished runs are read back from QA_RUNS_DIR if that is
    set. With `refresh` the scale is always quick and everything is trained anew; the outputs are stored in
    the notebook, unless a cell failed: then the file stays as it was. Raises CourseError for a file that is no
    notebook, or what cannot be written, before anything runs.
    """
    from tqdm import tqdm

    scale = "quick" if refresh else os.environ.get("QA_SCALE", "quick")
    kept = None if refresh else os.environ.get("QA_RUNS_DIR")
    runs_dir = user_path(kept) if kept else None
    timeout *= 1 if scale == "quick" else PATIENCE
    notebooks = {path: read_notebook(path) for path in paths}
    for path in [out / "page.html", *(paths if refresh else [])]:
        check_writable(path)
    runs = []
    with tqdm(total=sum(len(notebook.cells) for notebook in notebooks.values()), unit="cell") as bar:
        for path, notebook in notebooks.items():
            bar.set_description(path.stem)
            cells_until_here = bar.n + len(notebook.cells)
            run = execute_notebook(path, notebook, scale=scale, runs_dir=runs_dir, timeout=timeout, on_cell=bar.update)
            bar.update(cells_until_here - bar.n)  # a failed notebook left cells out
            normalise(notebook)
            write_html(run, out)
            if run.error:
                bar.write(failure_message(run, refresh))
            elif refresh:
                store(path, notebook)
            runs.append(run)
    return runs


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in `path`; raises CourseError if it is none."""
    import nbformat

    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever it stumbles over in a file of another kind
        reason = str(error).splitlines()[0]
        raise CourseError(f"{path} cannot be read as a notebook ({reason}); name a Jupyter .ipynb file.") from error
    return notebook


def failure_message(run: NotebookRun, refresh: bool) -> str:
    """What failed where, with the last lines of the traceback."""
    kept = " The file keeps its former outputs." if refresh else ""
    traceback = "\n".join(f"    {line}" for line in str(run.error).splitlines())
    return f"{run.path}: cell {run.failed_at} failed; the cells after it did not run.{kept}\n{traceback}"


def format_table(runs: Sequence[NotebookRun]) -> str:
    """The closing table: notebook, seconds, peak memory (MiB), main figures or where it failed."""
    width = max(len(name) for name in ["notebook", *(run.path.stem for run in runs)])
    lines = [f"{'notebook':{width}}  seconds  peak MiB  main figures"]
    for run in runs:
        figures = f"FAILED at cell {run.failed_at}" if run.error else format_figures(run.figures)
        lines.append(f"{run.path.stem:{width}}  {run.seconds:7.1f}  {run.peak_mib:8.0f}  {figures}".rstrip())
    return "\n".join(lines)
