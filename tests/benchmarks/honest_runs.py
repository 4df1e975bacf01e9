"""How far honest runs of the notebooks' live experiments differ: what their tolerances have to allow, and no more.

    python tests/benchmarks/honest_runs.py runs/honest

runs each experiment under each condition in a process of its own, keeps the runs in the given folder (what is there
already is read back, so that it may be stopped at any time), and prints what they differ by. A processor that rounds
otherwise is imitated by limiting torch and oneDNN to AVX2; the course's own records, made elsewhere, stand beside them.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tables import print_table

from qa_helpers.experiments import load_records
from qa_helpers.files import write_atomically
from qa_helpers.records import Experiment, Run, read_record
from qa_helpers.scales import SCALES, replay

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
FP32 = {"QA_PRECISION": "fp32"}
CONDITIONS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "1 thread, fp32": {"OMP_NUM_THREADS": "1", **FP32},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "1 thread, fp32, AVX2": {"OMP_NUM_THREADS": "1", **FP32, **AVX2},
    "2 threads, fp32": {"OMP_NUM_THREADS": "2", **FP32},
}
RECORDED = "as recorded"  # by the course, on another processor
SETS_OWN = ("OMP_NUM_THREADS", *FP32, *AVX2)  # what a condition leaves unset is unset


def live_experiments() -> dict[str, Experiment]:
    """The span models that notebooks 00, 02 and 03 train while they run, at quick scale, each after its start."""
    quick = SCALES["quick"]
    chosen = [quick.baseline(), replay(2, scale=quick), quick.baseline(quick.sizes[0]), replay(1, scale=quick)]
    chosen.append(replay(1, warm=True, scale=quick))
    return {experiment.name: experiment for experiment in chosen}


def run_under(experiment: Experiment, condition: str, folder: Path) -> Run:
    """Run an experiment under a condition, or read it back."""
    home = folder / condition.replace(", ", "-").replace(" ", "-")
    record = home / experiment.name / "run.json"
    if not record.exists():
        kept = {name: value for name, value in os.environ.items() if name not in SETS_OWN}
        description = home / f"{experiment.name}.json"
        write_atomically(description, experiment.model_dump_json())
        command = [sys.executable, "-m", "qa_helpers", "run", str(description), "--folder", str(home)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=kept | CONDITIONS[condition])
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


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--only", nargs="*", default=[], help="names of experiments; all of them by default")
    parser.add_argument(
        "--conditions", nargs="*", default=list(CONDITIONS), choices=list(CONDITIONS), metavar="CONDITION"
    )
    asked = parser.parse_args(None if arguments is None else list(arguments))
    recorded = load_records("quick-*")
    for name, experiment in live_experiments().items():
        if asked.only and name not in asked.only:
            continue
        runs = {RECORDED: recorded[name]} if name in recorded else {}
        runs |= {condition: run_under(experiment, condition, asked.folder) for condition in asked.conditions}
        print_differences(name, runs)
        print_answers(name, runs)


if __name__ == "__main__":
    main()
