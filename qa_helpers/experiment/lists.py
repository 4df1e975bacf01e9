"""Lists of experiments, from files or as patterns of names; what each starts from comes before it."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_helpers.common.io import read_json
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.spec import AsItComes, Experiment, parse_experiment


def read_experiments(paths: Sequence[Path | str]) -> list[Experiment]:
    """The experiments of JSON files that each hold a list: of objects, or of names that `run --list` shows.

    What does not end in .json is no file but a pattern of such names, as `class-experiment*`.

    Raises:
        RecordError: naming the file, the place in its list (counted from 1) and, where there is one, the field; or a
            pattern that no name matches.
    """
    listed: dict[str, tuple[Experiment, str]] = {}
    for path in paths:
        for number, item in enumerate(_items(str(path)), start=1):
            source = f"{path}: no. {number}"
            experiment = _experiment(item, source)
            if experiment.name in listed:
                raise RecordError(f"{source}: name: '{experiment.name}' is taken ({listed[experiment.name][1]})")
            listed[experiment.name] = experiment, source
    return [experiment for experiment, _ in listed.values()]


def _items(path: str) -> list[Any]:
    """What a file lists, or the names that a pattern matches."""
    if path.endswith(".json"):
        items = read_json(path, RecordError)
        if not isinstance(items, list) or not items:
            raise RecordError(f"{path}: is no list of experiments, [{{…}}, …]")
        return items
    if names := fnmatch.filter(named_experiments(), path):
        return names
    raise RecordError(f"no experiment has a name like '{path}'; run --list shows the names; a list ends in .json")


def _experiment(item: Any, source: str) -> Experiment:
    if isinstance(item, dict):
        return parse_experiment(item, source)
    if not isinstance(item, str):
        raise RecordError(f"{source}: is neither an experiment, {{…}}, nor the name of one")
    named = named_experiments()
    if item not in named:
        raise RecordError(f"{source}: there is no experiment '{item}'; run --list shows those that have names")
    return named[item]


def check_starts(experiments: Sequence[Experiment], folder: Path) -> None:
    """See that every run which another starts from comes earlier in the list, or is finished.

    Raises:
        RecordError: naming the first that does not.
    """
    earlier: dict[str, Experiment] = {}
    for number, experiment in enumerate(experiments, start=1):
        for start in experiment.parents:
            words = f"no. {number} of the list: '{experiment.name}' starts from '{start}', which"
            if start in earlier:
                if isinstance(earlier[start], AsItComes):
                    raise RecordError(f"{words} trains nothing to start from")
            elif not is_finished(start, folder):
                raise RecordError(f"{words} is neither earlier in the list nor finished in {folder}")
        earlier[experiment.name] = experiment


def is_finished(name: str, folder: Path) -> bool:
    """Whether a runs folder holds the record of a run."""
    return (folder / name / "run.json").exists()
