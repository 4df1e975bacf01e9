"""Sweeps: lists that are refused, the order of runs, failures among others, processes side by side and killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest

from qa_helpers.__main__ import main
from qa_helpers.common.io import CourseError
from qa_helpers.experiment import sweep
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import Combination, EvalSet, SpanTraining, change
from qa_helpers.experiment.store import run_experiment
from qa_helpers.experiment.sweep import environments, run_sweep

TINY = SpanTraining(
    name="tiny", train_size=16, trainable="last:1", epochs=1, probe_size=2, evaluations={"few": EvalSet(limit=8)}
)


def results(run):
    """All of a run that must be the same when it is run again on this machine."""
    return {name: value for name, value in run.model_dump().items() if name not in ("timing", "machine")}


def write_list(path, experiments):
    path.write_text(json.dumps([one if isinstance(one, str) else one.model_dump() for one in experiments]))
    return path


# ---- what a sweep does, with processes that only pretend ---------------------------------------------------------
PRETEND = """
import json, os, pathlib, shutil, signal, sys, time
description, folder, template = map(pathlib.Path, sys.argv[1:])
experiment = json.loads(description.read_text())
name, home = experiment["name"], folder / experiment["name"]
def log(what):
    with open(folder / "log", "a") as file:
        print(what, name, os.getpid(), os.environ["OMP_NUM_THREADS"], file=file)
home.mkdir(parents=True)
log("begin")
if name == "wrong":
    sys.exit(print("a warning\\nqa_helpers: it is wrong", file=sys.stderr) or 2)
if name == "crash":
    raise OSError("a crash")
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "silent":
    sys.exit(3)
if name == "nothing":
    sys.exit(0)
if name == "warned":
    print("a warning", file=sys.stderr)
if name == "until-b":  # has begun, however long its start takes on a busy machine
    late = time.time() + 60
    while "begin b " not in (folder / "log").read_text() and time.time() < late:
        time.sleep(0.02)
time.sleep(600 if name == "endless" else 0.4)
shutil.copy(template.parent / "answers.parquet", home)
record = json.loads(template.read_text()) | {"experiment": experiment}
if "epochs" not in experiment:
    record |= {"epochs": [], "fingerprints": record["fingerprints"] | {"train": None}}
(home / "run.json").write_text(json.dumps(record))
log("end")
"""


def pretend(template):
    """Let processes write the template as every experiment's record, or fail as their names say."""
    sweep._command = lambda experiment, folder: [
        sys.executable,
        "-c",
        PRETEND,
        *map(str, (experiment, folder, template)),
    ]


@pytest.fixture
def pretended(finished, monkeypatch):
    """Makes an experiment of a name whose run only pretends."""
    folder, run = finished
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sweep, "_command", None)  # is what it was after the test
    pretend(folder / "finished" / "run.json")
    return lambda name, start=None: change(run.experiment, name=name, start_from=start)


def log_of(folder):
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_runs_are_in_the_lists_order_one_at_a_time(tmp_path, pretended, capsys):
    experiments = [pretended("c"), pretended("a", "c"), pretended("b")]
    runs, failures = run_sweep(experiments, tmp_path, processes=1)
    assert list(runs) == ["c", "a", "b"]
    assert [run.experiment for run in runs.values()] == experiments
    assert failures == {}
    assert [words[:2] for words in log_of(tmp_path)] == [[what, n] for n in "cab" for what in ("begin", "end")]
    printed = capsys.readouterr()
    assert [line.split(": EM ")[0] for line in printed.out.splitlines()] == ["c", "a", "b"]
    assert printed.err == ""  # no progress bar under TQDM_DISABLE=1


def test_processes_run_side_by_side_but_after_what_they_start_from(tmp_path, pretended):
    experiments = [
        pretended("until-b"),
        pretended("warm", "until-b"),
        pretended("warmer", "warm"),
        pretended("b"),
        pretended("c"),
    ]
    runs, _ = run_sweep(experiments, tmp_path, processes=2)
    assert list(runs) == [one.name for one in experiments]
    log = [tuple(words[:2]) for words in log_of(tmp_path)]
    assert log.index(("begin", "b")) < log.index(("end", "until-b"))  # at the same time
    assert log.index(("end", "until-b")) < log.index(("begin", "warm"))
    assert log.index(("end", "warm")) < log.index(("begin", "warmer"))
    running = 0
    for what, _ in log:
        running += 1 if what == "begin" else -1
        assert running <= 2


def test_runs_are_combined_after_all_of_them_or_not_at_all(tmp_path, pretended):
    members = [pretended("a"), pretended("b"), pretended("wrong")]
    both = Combination(name="both", evaluations=members[0].evaluations, mean_of="answers", members=("a", "b"))
    runs, failures = run_sweep([*members, both, change(both, name="none", members=("a", "wrong"))], tmp_path)
    log = [tuple(words[:2]) for words in log_of(tmp_path)]
    assert max(log.index(("end", name)) for name in "ab") < log.index(("begin", "both"))
    assert list(runs) == ["a", "b", "both"]
    assert failures["none"] == "not run, since 'wrong' failed"


def test_one_that_fails_stops_only_those_that_start_from_it(tmp_path, pretended, capsys):
    names = ["wrong", "crash", "killed", "silent", "nothing", "warned"]
    experiments = [pretended(name) for name in names]
    experiments[1:1] = [pretended("after-wrong", "wrong"), pretended("after-that", "after-wrong")]
    path = write_list(tmp_path / "sweep.json", experiments)
    assert main(["sweep", str(path), "--folder", str(tmp_path / "runs"), "--processes", "3"]) == 1
    printed = capsys.readouterr()
    failures = [line for line in printed.err.splitlines() if line.startswith("qa_helpers: '")]
    record = tmp_path / "runs" / "nothing" / "run.json"
    assert failures == [
        "qa_helpers: 'wrong' failed: it is wrong",
        "qa_helpers: 'after-wrong' failed: not run, since 'wrong' failed",
        "qa_helpers: 'after-that' failed: not run, since 'after-wrong' failed",
        "qa_helpers: 'crash' failed: OSError: a crash",
        "qa_helpers: 'killed' failed: ended by signal 9, perhaps for want of memory",
        "qa_helpers: 'silent' failed: ended with exit code 3",
        f"qa_helpers: 'nothing' failed: {record}: cannot be read: No such file or directory",
    ]
    assert printed.err.count("a warning") == 1  # of the one that was run to its end
    assert "Traceback" in printed.err
    assert [line for line in printed.out.splitlines() if line.startswith("| warned |")]


def test_finished_runs_are_read_back_and_recorded(finished, tmp_path, pretended, capsys):
    folder, run = finished
    shutil.copytree(folder / "finished", tmp_path / "runs" / "finished")
    experiments = [run.experiment, pretended("warm", "finished")]
    runs, failures = run_sweep(experiments, tmp_path / "runs", records=tmp_path / "records")
    assert failures == {}
    assert runs["finished"] == run
    assert [words[1] for words in log_of(tmp_path / "runs")] == ["warm", "warm"]
    assert sorted(os.listdir(tmp_path / "records")) == ["finished", "warm"]
    assert {name: read_record(tmp_path / "records" / name) for name in runs} == runs
    assert [line.endswith("(read back)") for line in capsys.readouterr().out.splitlines()] == [True, False]


def test_another_experiment_of_a_finished_runs_name_is_a_failure(finished, pretended):
    folder, run = finished
    experiments = [change(run.experiment, seed=1), pretended("warm", "finished")]
    runs, failures = run_sweep(experiments, folder)
    assert runs == {}
    assert "holds another experiment of the name 'finished'" in failures["finished"]
    assert failures["warm"] == "not run, since 'finished' failed"


def test_a_folder_of_records_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "records").write_text("")
    with pytest.raises(CourseError, match=r"records/run\.json: cannot be written: Not a directory"):
        run_sweep([TINY], tmp_path / "runs", records=tmp_path / "records")
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_is_a_file_is_refused_before_a_process_is_started(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("mine")
    monkeypatch.setattr(sweep, "_start", lambda *_: pytest.fail("started"))
    with pytest.raises(CourseError, match=r"cannot be written: Not a directory"):
        run_sweep([TINY], tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "mine"


# ---- processes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        (None, 3, ["0", "1", "0"]),
        ("5,GPU-7", 2, ["5", "GPU-7"]),
        ("5,6,7", 1, ["5"]),
    ],
)
def test_processes_take_the_gpus_in_turn(monkeypatch, visible, processes, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments(processes)] == expected


def test_processes_share_the_cores_unless_threads_are_set(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    shares = {n: [one["OMP_NUM_THREADS"] for one in environments(n)] for n in (1, 3, 9)}
    assert shares == {1: ["8"], 3: ["2"] * 3, 9: ["1"] * 9}
    assert "CUDA_VISIBLE_DEVICES" not in environments(1)[0].keys() - os.environ.keys()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environments(2)[1]["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(number, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "sweep.json", "--processes", number])
    assert stop.value.code == 2
    assert "--processes" in capsys.readouterr().err


@pytest.mark.parametrize(("epochs", "expected"), [(None, 100 + 622 * 2), (3, 100 + 16 * 3)])
def test_progress_counts_questions_and_sees_how_far_each_training_is(tmp_path, epochs, expected):
    experiment = change(TINY, epochs=epochs or 2, train_size=16 if epochs else None)
    progress = sweep._Progress([experiment, change(TINY, name="absent", data="absent", train_size=None)], tmp_path)
    assert progress.totals == {"tiny": expected, "absent": 100}
    assert progress.done(()) == 0
    (tmp_path / "tiny" / "checkpoints").mkdir(parents=True)
    state = {"stage": "training", "step": 10, "steps": 40, "epoch": 0.5, "loss": None}
    (tmp_path / "tiny" / "checkpoints" / "progress.json").write_text(json.dumps(state))
    assert progress.done(()) == (expected - 100) // 4
    assert progress.done(["tiny"]) == expected
    assert progress.done(["tiny", "absent"]) == progress.bar.total


# ---- stopped and killed -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def forks():
    """Starts processes with the libraries imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qa_helpers.experiment.sweep"])
    first = context.Process(target=str)  # once it has ended, they are imported
    first.start()
    first.join()
    return context


def sweep_of_its_own(arguments, template=None):
    """Run the command in a process group of its own; with a template, its processes only pretend."""
    os.setpgid(0, 0)
    # Where a shell runs the tests in its background, they and their children would not hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if template:
        pretend(template)
    sys.exit(main(["sweep", *map(str, arguments)]))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "everyone"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_a_sweep_that_is_stopped_leaves_no_process_and_keeps_what_is_done(
    finished, tmp_path, pretended, forks, number, everyone
):
    template = finished[0] / "finished" / "run.json"
    path = write_list(tmp_path / "sweep.json", [pretended("a"), pretended("endless"), pretended("never")])
    folder = tmp_path / "runs"
    process = forks.Process(target=sweep_of_its_own, args=([path, "--folder", folder, "--processes", "1"], template))
    process.start()
    wait_for(lambda: (folder / "endless").exists())
    wait_for(lambda: len(log_of(folder)) == 3)
    if everyone:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 130
    child = int(log_of(folder)[-1][2])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert (folder / "a" / "run.json").exists()
    assert not (folder / "never").exists()


COLD, HEAD = change(TINY, name="cold", epochs=2), change(TINY, name="head", trainable="head")
WARM = change(TINY, name="warm", start_from="cold", epochs=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each experiment gives when it is run in this process, one after another."""
    folder = tmp_path_factory.mktemp("alone")
    return {one.name: results(run_experiment(one, folder)) for one in (COLD, HEAD, WARM)}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, alone, capsys):
    path = write_list(tmp_path / "sweep.json", [COLD, HEAD])
    arguments = ["--folder", str(tmp_path / "runs"), "--records", str(tmp_path / "records"), "--processes", "2"]
    assert main(["sweep", str(path), *arguments]) == 0
    for name in ("cold", "head"):
        assert results(read_record(tmp_path / "records" / name)) == alone[name]
    printed = capsys.readouterr()
    assert [line.split("|")[1].strip() for line in printed.out.splitlines()[-2:]] == ["cold", "head"]
    assert printed.err == ""


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_with_the_records_of_one_never_killed(tmp_path, alone, forks):
    path = write_list(tmp_path / "sweep.json", [COLD, WARM])
    folder, records = tmp_path / "runs", tmp_path / "records"

    def start():
        arguments = [path, "--folder", folder, "--records", records, "--processes", "2"]
        process = forks.Process(target=sweep_of_its_own, args=(arguments,))
        process.start()
        return process

    seed, begin = time.time_ns(), time.monotonic()
    print(f"seed of the moments: {seed}")
    moments, loading = random.Random(seed), 0.0
    for _ in range(5):
        process = start()
        if not loading:
            wait_for(lambda: (folder / "cold" / "experiment.json").exists())
            loading = time.monotonic() - begin
        else:
            time.sleep(0.8 * loading)  # most moments are to fall into work, not into imports
        time.sleep(moments.uniform(0, 2 + 0.2 * loading))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        print(f"ended by {process.exitcode}:", *sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")))
        assert process.exitcode in (-signal.SIGKILL, 0)  # 0: a fast machine was done before
    process = start()
    process.join(300)
    assert process.exitcode == 0
    for name in ("cold", "warm"):
        assert results(read_record(records / name)) == alone[name]
        assert not (folder / name / "checkpoints").exists()
