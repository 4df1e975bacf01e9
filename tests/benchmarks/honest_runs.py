"""How far honest runs of the notebooks differ: what their tolerances have to allow, and no more.

    python tests/benchmarks/honest_runs.py runs/honest                    the live experiments, figure by figure
    python tests/benchmarks/honest_runs.py runs/honest --notebooks 00 02  the cells that have a tolerance

runs them under each condition (how many threads, which number format, which processor: one that rounds otherwise is
imitated by limiting torch and oneDNN to AVX2) and prints what they differ by. Runs are kept in the given folder: what
is there already is read back, so that a measurement may be stopped at any time. The course's own records and the
outputs that are stored in the notebooks were made elsewhere and stand beside them.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tables import print_table

from qa_helpers.common.io import project_folder, write_atomically
from qa_helpers.course.nbval_tolerance import FLOAT, parse_tolerance
from qa_helpers.course.notebooks import execute_notebook, read_notebook
from qa_helpers.experiment.catalogue import replay
from qa_helpers.experiment.record import Run
from qa_helpers.experiment.record_files import load_records, read_record
from qa_helpers.experiment.scales import SCALES
from qa_helpers.experiment.spec import Experiment

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
FP32 = {"QA_PRECISION": "fp32"}
CONDITIONS: dict[str, dict[str, str]] = {
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, fp32": {"OMP_NUM_THREADS": "2", **FP32},
    "2 threads, fp32, AVX2": {"OMP_NUM_THREADS": "2", **FP32, **AVX2},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "1 thread, fp32": {"OMP_NUM_THREADS": "1", **FP32},
    "1 thread, fp32, AVX2": {"OMP_NUM_THREADS": "1", **FP32, **AVX2},
}
RECORDED = "as recorded"  # by the course, on another processor
SETS_OWN = ("OMP_NUM_THREADS", *FP32, *AVX2)  # what a condition leaves unset is unset


def live_experiments() -> dict[str, Experiment]:
    """The span models that notebooks 00, 02 and 03 train while they run, at quick scale, each after its start."""
    quick = SCALES["quick"]
    chosen = [quick.baseline(), replay(2, scale=quick), quick.baseline(quick.sizes[0]), replay(1, scale=quick)]
    chosen.append(replay(1, warm=True, scale=quick))
    return {experiment.name: experiment for experiment in chosen}


def home_of(condition: str, folder: Path) -> Path:
    """Where the runs under a condition are kept."""
    return folder / condition.replace(", ", "-").replace(" ", "-")


@contextmanager
def under(condition: str) -> Iterator[None]:
    """Let the processes that are started within run under a condition."""
    before = {name: os.environ.pop(name, None) for name in SETS_OWN}
    os.environ.update(CONDITIONS[condition])
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# ---- experiments -----------------------------------------------------------------------------------------------
def run_under(experiment: Experiment, condition: str, folder: Path) -> Run:
    """Run an experiment under a condition, or read it back."""
    home = home_of(condition, folder)
    record = home / experiment.name / "run.json"
    if not record.exists():
        description = home / f"{experiment.name}.json"
        write_atomically(description, experiment.model_dump_json())
        command = [sys.executable, "-m", "qa_helpers", "run", str(description), "--folder", str(home)]
        with under(condition):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_record(record)


def figures(run: Run) -> dict[str, float]:
    """The figures of a run that the notebooks compare: scores, and losses and probes after each epoch."""
    found = {
        f"{part}: {metric}": getattr(scores, metric).value
        for part, scores in run.scores.items()
        for metric in ("string_equality", "exact_match", "f1", "contained")
    }
    last = len(run.losses) - 1
    for eighth in (0, 1, 3, 8):  # the moments that notebook 02 shows
        found[f"training loss, step {run.losses[eighth * last // 8][0]}"] = run.losses[eighth * last // 8][1]
    for epoch in run.epochs:
        for part in ("train", "eval"):
            probe = getattr(epoch, part)
            found |= {
                f"epoch {epoch.epoch}, {part} probe: {what}": getattr(probe, what)
                for what in ("loss", "exact_match", "f1")
            }
    return found


def print_differences(name: str, runs: Mapping[str, Run]) -> None:
    """A row a figure: its value under each condition and how far the furthest are apart."""
    columns = {condition: figures(run) for condition, run in runs.items()}
    rows = []
    for figure in next(iter(columns.values())):
        values = [column[figure] for column in columns.values()]
        rows.append((figure, *(f"{value:.2f}" for value in values), f"{max(values) - min(values):.2f}"))
    print_table(name, ["figure", *columns, "apart"], rows)


def print_answers(name: str, runs: Mapping[str, Run]) -> None:
    """How many of the answers two runs give alike, for every two."""
    texts = {condition: run.questions.prediction for condition, run in runs.items()}
    rows = [
        (one, *(f"{100 * statistics.mean(map(str.__eq__, texts[one], texts[other])):.0f}" for other in texts))
        for one in texts
    ]
    print_table(f"{name}: answers alike, %", ["", *texts], rows)


# ---- notebooks -------------------------------------------------------------------------------------------------
def floats_of(outputs: list[Any]) -> list[float]:
    """The floats that a cell shows, as text, as Markdown or as published figures."""
    found: list[float] = []
    for output in outputs:
        data = output.get("data", {})
        shown = output.get("text") or data.get("text/markdown") or data.get("text/plain", "")
        found += [float(number.replace("−", "-")) for number in FLOAT.findall(shown)]
    return found


def notebook_rows(name: str, condition: str, folder: Path) -> list[tuple[str, ...]]:
    """Execute a notebook under a condition: of each cell with a tolerance, how far its floats are from the stored."""
    [path] = (project_folder() / "notebooks").glob(f"{name}*.ipynb")
    stored, fresh = read_notebook(path), read_notebook(path)
    with under(condition):
        run = execute_notebook(path, fresh, runs_dir=home_of(condition, folder))
    rows: list[tuple[str, ...]] = [(f"{name} {run.failed_at}", condition, "", "", str(run.error))] if run.error else []
    for number, (before, after) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        tolerance = parse_tolerance(before.metadata.get("tags", []))
        if tolerance is None:
            continue
        old, new = floats_of(before.outputs), floats_of(after.outputs)
        fits = len(old) == len(new)
        apart = max((abs(a - b) for a, b in zip(old, new, strict=True)), default=0.0) if fits else float("nan")
        allowed = min(map(tolerance.allowed, old), default=0.0)
        values = ", ".join(f"{a:g}→{b:g}" for a, b in zip(old, new, strict=fits) if a != b)
        rows.append((f"{name} [{number}] {before.id}", condition, f"{allowed:.2f}", f"{apart:.2f}", values[:100]))
    return rows


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--only", nargs="*", default=[], help="names of experiments; all of them by default")
    parser.add_argument("--notebooks", nargs="*", default=[], help="instead: how their names begin, such as 00 02")
    parser.add_argument("--conditions", nargs="*", choices=list(CONDITIONS), metavar="CONDITION")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    if asked.notebooks:  # a notebook's kernel has two threads, wherever it runs
        conditions = asked.conditions or [name for name in CONDITIONS if name.startswith("2 ")]
        rows = [
            row
            for condition in conditions
            for name in asked.notebooks
            for row in notebook_rows(name, condition, asked.folder)
        ]
        header = ["cell", "condition", "least allowed", "furthest apart", "stored→now"]
        print_table("Cells with a tolerance", header, sorted(rows))
        return
    recorded = load_records("quick-*")
    for name, experiment in live_experiments().items():
        if asked.only and name not in asked.only:
            continue
        runs = {RECORDED: recorded[name]} if name in recorded else {}
        for condition in asked.conditions or CONDITIONS:
            runs[condition] = run_under(experiment, condition, asked.folder)
        print_differences(name, runs)
        print_answers(name, runs)


if __name__ == "__main__":
    main()
