"""Where a run's model comes from: a model's name, another run's weights, or several runs combined.

Runs of one base model are combined, with nothing trained, in two ways:

- an *ensemble* answers by the mean of its members' logits (Lakshminarayanan et al. 2017, arXiv:1612.01474): every
  member is asked, so that an answer costs as much as all of theirs;
- an *average* is one model whose weights are the mean of its members' (Wortsman et al. 2022, arXiv:2203.05482): it
  costs as much as one.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qa_helpers.common.device import default_device, set_seed
from qa_helpers.evaluation import written_answers
from qa_helpers.experiment.record import Ancestor, Run
from qa_helpers.experiment.record_files import read_record
from qa_helpers.experiment.spec import Experiment, RecordError, read_experiment
from qa_helpers.model import load, trainable


def starting_point(experiment: Experiment, folder: Path) -> tuple[nn.Module, Any]:
    """The model before training, with its trainable weights chosen, and its tokenizer.

    Raises:
        CourseError: if a model or a run that it comes from is not there, or the runs cannot be combined.
    """
    if experiment.members:
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
    if experiment.task == "span":
        model, tokenizer = load.load_qa_model(source, experiment.seed), load.load_tokenizer(source)
    else:
        model, tokenizer = _load_language_model(source)
        if hasattr(model, "peft_config"):  # of another run: a part of the model from here on
            model = trainable.merge_adapter(model)
    if experiment.epochs:
        set_seed(experiment.seed)  # an adapter's weights are drawn at random, too
        model = trainable.set_trainable(model, experiment.trainable)
    return model.to(default_device()), tokenizer


def load_run(name: str, folder: Path) -> tuple[nn.Module, Any]:
    """The model that a finished run left, or an ensemble's models as one, on the default device; and its tokenizer.

    Raises:
        RecordError: if there is no such run in the runs folder.
    """
    home = folder / name
    experiment = read_experiment(home / "experiment.json") if (home / "experiment.json").is_file() else None
    if experiment and experiment.ensemble_of:
        return _combined(experiment, folder)
    if experiment is None or not (home / "model").is_dir():
        raise RecordError(f"{home / 'model'}: there is no trained model; run the experiment '{name}' first")
    source = str(home / "model")
    if experiment.task == "span":
        model, tokenizer = load.load_qa_model(source), load.load_tokenizer(source)
    else:
        model, tokenizer = _load_language_model(source)
    return model.eval().to(default_device()), tokenizer


def _load_language_model(source: str) -> tuple[nn.Module, Any]:
    return written_answers.load_language_model(source), written_answers.load_chat_tokenizer(source)


# ---- several runs combined -------------------------------------------------------------------------------------
class Ensemble(nn.Module):
    """Span models of one tokenizer as one, whose logits are the mean of theirs.

    Within a window that is the mean of their log probabilities (the geometric mean of their probabilities, where
    Lakshminarayanan et al. take the arithmetic one): a constant apart, which changes no choice. Between the windows
    of a question it compares what one model compares, its logits; so an ensemble of copies of a model answers as it.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        """Of these models, on one device."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The members' mean `start_logits` and `end_logits`, (batch, tokens), as one model gives them."""
        from transformers.modeling_outputs import QuestionAnsweringModelOutput

        outputs = [member(**inputs) for member in self.members]
        return QuestionAnsweringModelOutput(
            start_logits=torch.stack([output.start_logits for output in outputs]).mean(0),
            end_logits=torch.stack([output.end_logits for output in outputs]).mean(0),
        )


@torch.no_grad()
def average_weights(model: nn.Module, others: Iterable[nn.Module]) -> None:
    """Set each parameter of `model` to its mean over `others`, models of the same form, of which one is held at once.

    Of runs from one start: Wortsman et al. 2022; of the last epochs of one run: Izmailov et al. 2018,
    arXiv:1803.05407. Summed in float64, so that their order does not matter.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for other in others:
        count += 1
        for name, parameter in other.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.cpu().double()
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / count)


def _combined(experiment: Experiment, folder: Path) -> tuple[nn.Module, Any]:
    """An ensemble or the average of runs, on the default device, and their tokenizer."""
    names = experiment.members
    _check_alike(names, [_base_model(name, folder) for name in names], "base model")
    loaded = [load_run(name, folder) for name in names]
    _check_alike(names, [tokenizer.get_vocab() for _, tokenizer in loaded], "tokenizer")
    model, tokenizer = loaded[0]
    if experiment.ensemble_of:
        return Ensemble(member for member, _ in loaded).eval(), tokenizer
    average_weights(model, [member for member, _ in loaded])
    return model, tokenizer


def _check_alike(names: Sequence[str], values: Sequence[Any], what: str) -> None:
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise RecordError(f"the runs '{names[0]}' and '{name}' differ in their {what}, so they cannot be combined")


def _base_model(name: str, folder: Path) -> tuple[str, str]:
    """The model's name that a run goes back to, and the task, which says which head it has."""
    run = _finished(name, folder)
    experiment = run.experiment
    for _ in run.ancestors:  # no more steps than that, whatever the file says
        if experiment.parents and experiment.parents[0] in run.ancestors:
            experiment = run.ancestors[experiment.parents[0]].experiment
    return experiment.model, experiment.task


# ---- what a run rests on ---------------------------------------------------------------------------------------
def ancestors(experiment: Experiment, folder: Path) -> dict[str, Ancestor]:
    """The runs that an experiment starts from or combines, and theirs, by name.

    Raises:
        RecordError: if one of the former is not finished.
    """
    found: dict[str, Ancestor] = {}
    for name in experiment.parents:
        run = _finished(name, folder)
        found |= run.ancestors | {name: Ancestor(experiment=run.experiment, fingerprints=run.fingerprints)}
    return found


def changed_ancestors(run: Run, folder: Path) -> list[str]:
    """Those that were run again since, as another experiment or on other data; one that is gone is not looked at."""
    there = {name: one for name, one in run.ancestors.items() if (folder / name / "run.json").is_file()}
    now = {name: _finished(name, folder) for name in there}
    return [
        name
        for name, one in there.items()
        if (now[name].experiment, now[name].fingerprints) != (one.experiment, one.fingerprints)
    ]


def _finished(name: str, folder: Path) -> Run:
    path = folder / name / "run.json"
    if not path.is_file():
        raise RecordError(f"{path.parent}: holds no finished run; run '{name}' first")
    return read_record(path)
