"""The command line: python -m qa_helpers check | run | sweep | rerun | chain | report | counts | notebooks.

Each has its --help. Exit codes: 0 done and as expected; 1 done, but something is missing, off or failed; 2 bad input,
or a file that cannot be written, said in one sentence; 130 stopped by Ctrl-C; 141 whoever read the output, such as
`head`, wants no more.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from qa_helpers.common.io import CourseError, check_writable, refusal, user_path, write_atomically
from qa_helpers.course.first_cell import lacking

RUNS = "runs folder (default: $QA_RUNS_DIR, else runs/)"
INSTALL = "python -m pip install -r requirements.txt"
Plan = TypeVar("Plan")
Command = Callable[[argparse.Namespace], int]
Add = Callable[[Command], Callable[..., argparse.Action]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        code = _run_command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except CourseError as problem:
        return _fail(str(problem))
    except KeyboardInterrupt:
        return _fail("stopped; what is finished stays", 130)
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as problem:
        _drop_output()
        return _fail(refusal(problem, problem.filename or "the output"))
    except ImportError as problem:
        lacks = lacking()
        if not lacks and (not isinstance(problem, ModuleNotFoundError) or str(problem.name).startswith("qa_helpers")):
            raise  # nothing to install: a fault of the package's
        return _fail(f"this Python lacks {', '.join(lacks) or problem.name}; in the course's folder, run: {INSTALL}")


def _fail(sentence: str, code: int = 2) -> int:
    print(f"qa_helpers: {sentence}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Write out what was printed, or forget it where nobody takes it: else Python tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_command(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if getattr(options, "record", None):
        # Rather than after the training; a run's record is a folder.
        check_writable(options.record / "run.json" if options.command is run else options.record)
    return int(options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m qa_helpers", description="Fine-tuning for question answering.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Command) -> Callable[..., argparse.Action]:
        """A command of the function's name, with its docstring's first line as help; what gives it arguments."""
        text = str(function.__doc__).partition("\n")[0]
        command = commands.add_parser(function.__name__.replace("_", "-"), help=text, description=text)
        command.set_defaults(command=function)
        return command.add_argument

    add(check)
    _add_experiments(add)
    _add_chains(add)
    _add_reports(add)
    argument = add(notebooks)
    argument("files", nargs="*", type=user_path, metavar="FILE", help="default: notebooks/*.ipynb")
    argument("--refresh", action="store_true", help="store the outputs in the notebooks")
    argument("--out", type=user_path, default=Path("build"), help="folder of the HTML copies")
    return parser


def _add_experiments(add: Add) -> None:
    argument = add(run)
    argument("experiment", nargs="?", help="a name that --list shows, or a JSON file that describes one")
    argument("--list", action="store_true", help="list the experiments that have names")
    argument("--again", action="store_true", help="train again even if there is a result")
    argument("--folder", type=user_path, help=RUNS)
    argument("--record", type=user_path, metavar="DIR", help="also write the record into this folder")
    argument = add(sweep)
    words = "a JSON file: a list of experiments or their names; or a pattern of names, as 'class-size-*'"
    argument("lists", nargs="+", metavar="LIST", help=words)
    argument("--folder", type=user_path, help=RUNS)
    argument("--records", type=user_path, metavar="DIR", help="also write each run's record into this folder")
    argument("--processes", type=_positive, metavar="N", help="experiments at a time (default: one a GPU)")
    argument = add(rerun)
    argument("records", nargs="+", metavar="RECORD", type=user_path)
    argument("--folder", type=user_path, help="where to write (default: rerun/ in the runs folder)")


def _add_chains(add: Add) -> None:
    runs = "runs folder, which holds the reference's run, too"
    for function, name, text in ((chain, "class-rlhf-seed0", runs), (language_chain, "quick-language-seed0", RUNS)):
        argument = add(function)
        argument("chain", help=f"a chain that has a name, such as {name}, or a JSON file")
        argument("--folder", type=user_path, help=text)
        argument("--record", type=user_path, help="also write the record to this file")


def _add_reports(add: Add) -> None:
    argument = add(report)
    argument("records", nargs="+", metavar="RECORD", type=user_path)
    argument("--picture", type=user_path, help="also draw EM with intervals, a PNG file")
    argument("--into", type=user_path, help="replace the table between this file's report marks instead")
    argument("--by-recipe", action="store_true", help="a line a recipe: means over its seeds")
    argument = add(counts)
    argument("records", nargs="+", metavar="RECORD", type=user_path)
    argument("--data", default="squad", help="the validation set that they were asked (default: squad)")
    argument("--folder", type=user_path, help="where to write (default: the package's assets)")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


# ---- commands --------------------------------------------------------------------------------------------------
def check(options: argparse.Namespace) -> int:
    """Say what this machine can do, what is installed, and which scale suits it."""
    if lacks := lacking():  # without these, nothing else can be looked at
        print(f"{'Python':14} {sys.version.split()[0]}, {sys.executable}")
        print(f"{'lacking':14} {', '.join(lacks)}")
        print(f"{'to do':14} in the course's folder, run: {INSTALL}")
        return 1
    from qa_helpers.course.check import machine_report

    lines, complete = machine_report()
    for name, text in lines:
        print(f"{name:14} {text}")
    return int(not complete)


def run(options: argparse.Namespace) -> int:
    """Run an experiment: train, evaluate, record. A finished one is read back."""
    from qa_helpers.experiment.catalogue import named_experiments
    from qa_helpers.experiment.forms import RecordError
    from qa_helpers.experiment.record_files import write_record
    from qa_helpers.experiment.spec import read_experiment, training_in_words
    from qa_helpers.report.documents import format_report

    named = named_experiments()
    if options.list:
        for name, experiment in named.items():
            print(f"{name:28} {training_in_words(experiment)}")
        return 0
    from qa_helpers.experiment.store import run_experiment  # not above: torch takes seconds, and the list needs none

    if options.experiment is None:
        raise RecordError("name an experiment that --list shows, or a JSON file that describes one")
    if options.experiment in named:
        experiment = named[options.experiment]
    elif Path(options.experiment).suffix == ".json":
        experiment = read_experiment(options.experiment)
    else:
        raise RecordError(f"there is no experiment '{options.experiment}'; --list shows those that have names")
    result = run_experiment(experiment, options.folder, options.again)
    if options.record:
        write_record(result, options.record)
    print(format_report([result]))
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Run lists of experiments, several at a time; finished ones are read back."""
    from qa_helpers.experiment.lists import read_experiments
    from qa_helpers.experiment.sweep import run_sweep
    from qa_helpers.report.documents import format_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by another program: as by Ctrl-C
    runs, failures = run_sweep(read_experiments(options.lists), options.folder, options.records, options.processes)
    if runs:
        print(format_report(runs.values()))
    for name, reason in failures.items():
        print(f"qa_helpers: '{name}' failed: {reason}", file=sys.stderr)
    return int(bool(failures))


def rerun(options: argparse.Namespace) -> int:
    """Run recorded experiments again and compare every score with the recorded one."""
    from qa_helpers.experiment import rerun as again
    from qa_helpers.experiment.record_files import read_record, record_folder

    worst = 0
    for record, path in [(read_record(path), path) for path in options.records]:
        print(f"{record.experiment.name}: what is run")
        print(f"  {record.experiment.model_dump_json(exclude={'name'})}", flush=True)  # before it is trained
        now, comparisons = again.rerun(record, options.folder, beside=record_folder(path).parent)
        print(f"  {'figure':34} recorded     now  tolerance")
        for row in comparisons:
            print(f"  {row.figure:34} {row.recorded:8.2f} {row.now:7.2f} {row.tolerance:10.2f}  {row.verdict}")
            worst = max(worst, int(row.verdict == "off"))
        print(f"  {again.changed_in_words(again.changed_answers(record, now))}")
    return worst


def chain(options: argparse.Namespace) -> int:
    """Run a chain of RLHF: reward models, policies, record. What is done is read back."""
    from qa_helpers.experiment.once import read_as
    from qa_helpers.rlhf.chain import run_chain
    from qa_helpers.rlhf.chain_record import Chain, format_chain, named_chains

    plan = _named(options.chain, named_chains()) or read_as(Chain, options.chain)
    result = run_chain(plan, options.folder)
    return _finish(format_chain(result), result.model_dump_json(), options.record)


def language_chain(options: argparse.Namespace) -> int:
    """Run a chain of RLHF on a language model: answers, reward model, DPO, GRPO, record. Needs trl."""
    from qa_helpers.experiment.once import read_as
    from qa_helpers.rlhf.language.chain import run_language_chain
    from qa_helpers.rlhf.language.record import LanguageChain, format_language_chain, named_language_chains

    plan = _named(options.chain, named_language_chains()) or read_as(LanguageChain, options.chain)
    result = run_language_chain(plan, options.folder)
    return _finish(format_language_chain(result), result.model_dump_json(), options.record)


def _named(asked: str, named: Mapping[str, Plan]) -> Plan | None:
    """The chain of that name; None where a JSON file is asked for.

    Raises:
        RecordError: if it is neither.
    """
    from qa_helpers.experiment.forms import RecordError

    if asked not in named and Path(asked).suffix != ".json":
        raise RecordError(f"there is no chain '{asked}'; those that have names: {', '.join(named)}")
    return named.get(asked)


def _finish(words: str, record: str, path: Path | None) -> int:
    if path:
        write_atomically(path, record + "\n")
    print(words)
    return 0


def report(options: argparse.Namespace) -> int:
    """Print recorded runs as a Markdown table."""
    from qa_helpers.experiment.record_files import read_record
    from qa_helpers.report.documents import format_recipes, format_report, replace_report

    records = [read_record(path) for path in options.records]
    text = format_recipes(records) if options.by_recipe else format_report(records)
    if options.picture:
        from qa_helpers.report.documents import save_report_picture

        save_report_picture(records, options.picture)
    if options.into:
        replace_report(options.into, text)
    else:
        print(text)
    return 0


def counts(options: argparse.Namespace) -> int:
    """Count recorded answers as the homework's report may have; writes a file."""
    from qa_helpers.data.squad import ASSETS
    from qa_helpers.experiment.record_files import read_record, record_folder
    from qa_helpers.report.counts import count_records, write_counts

    counted = count_records({record_folder(path).name: read_record(path) for path in options.records}, options.data)
    print(f"{len(counted.runs)} runs counted: {write_counts(counted, options.data, options.folder or ASSETS)}")
    return 0


def notebooks(options: argparse.Namespace) -> int:
    """Execute notebooks and write an HTML copy of each; ends with a table of them."""
    from qa_helpers.course.notebooks import format_table, run_notebooks

    paths = options.files or sorted(Path("notebooks").glob("*.ipynb"))
    if not paths:
        raise CourseError("there are no notebooks in notebooks/; run this in the repository's root or name files")
    runs = run_notebooks(paths, options.out, refresh=options.refresh)
    print(format_table(runs))
    return int(any(run.error for run in runs))


if __name__ == "__main__":
    sys.exit(main())
