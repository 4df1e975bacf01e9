"""Where a run's model comes from: a model's name, another run's weights, or several runs combined."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from qa_helpers.common.device import default_device, set_seed
from qa_helpers.experiment.answering import ANSWERING, Loaded
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Ancestor, Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import Combination, Experiment, Task, Training, read_experiment
from qa_helpers.model import load, trainable
from qa_helpers.model.combine import Ensemble, average_weights


def starting_point(experiment: Experiment, folder: Path) -> Loaded:
    """The model before training, with its trainable weights chosen, and its tokenizer.

    Raises:
        CourseError: if a model or a run that it comes from is not there, or the runs cannot be combined.
    """
    if isinstance(experiment, Combination):
        return _combined(experiment, folder)
    source = experiment.model
    if experiment.start_from:
        source = str(folder / experiment.start_from / "model")
        if not Path(source).is_dir():
            raise RecordError(
                f"{source}: there is no such model to start from; run '{experiment.start_from}' first (a run without "
                "training leaves none, nor does an ensemble)"
            )
    elif load.has_seen_squad(source):
        warnings.warn(f"'{source}' was already fine-tuned on SQuAD: what it scores is no baseline", stacklevel=2)
    model, tokenizer = ANSWERING[experiment.task].load(source, experiment.seed)
    if hasattr(model, "peft_config"):  # of another run: a part of the model from here on
        model = trainable.merge_adapter(model)
    if isinstance(experiment, Training):
        set_seed(experiment.seed)  # an adapter's weights are drawn at random, too
        model = trainable.set_trainable(model, experiment.trainable)
    return model.to(default_device()), tokenizer


def load_run(name: str, folder: Path) -> Loaded:
    """The model that a finished run left, or an ensemble's models as one, on the default device; and its tokenizer.

    Raises:
        RecordError: if there is no such run in the runs folder.
    """
    home = folder / name
    experiment = read_experiment(home / "experiment.json") if (home / "experiment.json").is_file() else None
    if isinstance(experiment, Combination) and experiment.mean_of == "answers":
        return _combined(experiment, folder)
    if experiment is None or not (home / "model").is_dir():
        raise RecordError(f"{home / 'model'}: there is no trained model; run the experiment '{name}' first")
    model, tokenizer = ANSWERING[experiment.task].load(str(home / "model"))
    return model.eval().to(default_device()), tokenizer


# ---- several runs combined -------------------------------------------------------------------------------------
def _combined(experiment: Combination, folder: Path) -> Loaded:
    """An ensemble or the average of runs, on the default device, and their tokenizer."""
    names = experiment.members
    _check_alike(names, [_base_model(name, folder) for name in names], "base model")
    loaded = [load_run(name, folder) for name in names]
    _check_alike(names, [tokenizer.get_vocab() for _, tokenizer in loaded], "tokenizer")
    model, tokenizer = loaded[0]
    if experiment.mean_of == "answers":
        return Ensemble(member for member, _ in loaded).eval(), tokenizer
    average_weights(model, [member for member, _ in loaded])
    return model, tokenizer


def _check_alike(names: Sequence[str], values: Sequence[object], what: str) -> None:
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise RecordError(f"the runs '{names[0]}' and '{name}' differ in their {what}, so they cannot be combined")


def _base_model(name: str, folder: Path) -> tuple[str, Task]:
    """The model's name that a run goes back to, and the task, which says which head it has."""
    run = _finished(name, folder)
    experiment = run.experiment
    for _ in run.ancestors:  # no more steps than that, whatever the file says
        if experiment.parents and experiment.parents[0] in run.ancestors:
            experiment = run.ancestors[experiment.parents[0]].experiment
    return experiment.name if isinstance(experiment, Combination) else experiment.model, experiment.task


# ---- what a run rests on ---------------------------------------------------------------------------------------
def ancestors(parents: Iterable[str], folder: Path) -> dict[str, Ancestor]:
    """The runs that one with these parents rests on, by name: these, and theirs.

    Raises:
        RecordError: if one of the parents is not finished.
    """
    known: dict[str, Ancestor] = {}
    for name in parents:
        run = _finished(name, folder)
        known |= run.ancestors | {name: Ancestor(experiment=run.experiment, fingerprints=run.fingerprints)}
    return known


def changed_ancestors(run: Run, folder: Path) -> list[str]:
    """Those that were run again since, as another experiment or on other data; one that is gone is not looked at."""
    changed = []
    for name, recorded in run.ancestors.items():
        if (folder / name / "run.json").is_file():
            now = _finished(name, folder)
            if (now.experiment, now.fingerprints) != (recorded.experiment, recorded.fingerprints):
                changed.append(name)
    return changed


def _finished(name: str, folder: Path) -> Run:
    path = folder / name / "run.json"
    if not path.is_file():
        raise RecordError(f"{path.parent}: holds no finished run; run '{name}' first")
    return read_record(path)
