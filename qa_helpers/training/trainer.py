"""Fine-tuning: `transformers.Trainer`, with what makes it fast and repeatable on a small data set.

Against the Trainer's defaults: batches of windows of like length, padded to their longest instead of to 384;
bfloat16 autocast where the processor has it; fused AdamW; one checkpoint an epoch from which a killed run goes on
with the same numbers. (The model does its part: a head that computes in float32, see `load.load_qa_model`.)
Everything else (linear decay of the learning rate unless another schedule is asked, clipping at 1.0, AdamW's betas,
dropout, and the model's own loss unless another is given) is stock.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from qa_helpers.common.device import default_device, has_native_bf16, progress_bar
from qa_helpers.common.io import CourseError, write_atomically
from qa_helpers.common.quiet import quiet
from qa_helpers.model.trainable import depths

COMPLETE = "complete"  # the file that marks a checkpoint as written to its end
PROGRESS = "progress.json"  # the file beside the checkpoints that says how far the training is
PROGRESS_SECONDS = 0.4  # between two writings of it, at least
EPOCH_KEY = "epoch_scores"  # under which per-epoch scores stand in the Trainer's log, and so in its checkpoints


@dataclass(frozen=True)
class Settings:
    """How to train.

    `log_every` is in optimizer steps. With `recompute`, a layer's activations are computed again in the backward pass
    instead of kept (Chen et al. 2016, arXiv:1604.06174): the same numbers in less memory and more time. Not every model
    can do that; with `windows_at_once`, a batch goes through the model in parts of at most so many windows, whose
    gradients add up to the batch's: less memory in the same time, but dropout draws other units.

    The learning rate of step t (from 0) of T is `learning_rate` times, after `warmup` * T steps (rounded up) in which
    it grows evenly from 0: "linear", the share of the remaining steps that is left, (T - t) / (T - warm-up steps);
    "cosine", (1 + cos(pi * s)) / 2 with s the share of them that is done (Loshchilov and Hutter 2016,
    arXiv:1608.03983, without restarts); "constant", 1. With `layer_decay`, it is further multiplied by
    `layer_decay` ** depth, see `trainable.depths`: what lies lower is more general and is to change less (Howard and
    Ruder 2018, arXiv:1801.06146; for BERT, Zhang et al. 2020, arXiv:2006.05987).

    Of the newest `checkpoints` epochs, the checkpoint is kept.
    """

    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 1e-4
    seed: int = 0
    log_every: int = 10
    recompute: bool = False
    windows_at_once: int | None = None
    schedule: str = "linear"
    warmup: float = 0.0
    layer_decay: float = 1.0
    checkpoints: int = 2  # at least two: one is complete at any moment, also while the next is being written


SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}  # the Trainer's names


@dataclass(frozen=True)
class History:
    """What happened: (optimizer step, mean training loss since the last entry), and the scores after each epoch."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)


@quiet()
def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    features: Sequence[dict[str, Any]],
    settings: Settings,
    folder: Path | str,
    after_epoch: Callable[[nn.Module], dict[str, Any]] | None = None,
    collator: Callable[..., dict[str, Any]] | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
) -> History:
    """Fine-tune `model` in place, on the accelerator if there is one.

    A run that was killed goes on from its last whole epoch when called again with the same arguments and folder,
    and on the same machine ends with the same numbers as one never killed.

    Args:
        model: the model; only its parameters that require gradients are trained.
        tokenizer: its tokenizer.
        features: the training data, from the `training_features` of `windows`, `labels` or `written_answers`.
        settings: how to train.
        folder: for checkpoints, a subfolder an epoch, and how far the training is, see `read_progress`; the caller
            removes it when nothing is to be resumed.
        after_epoch: called with the model after each epoch; what it returns is kept in the history.
        collator: makes batches of features; if None, they are padded to the longest of each batch.
        loss: of the model's outputs and a batch's `labels`, such as `labels.soft_loss`; if None, the model's own.
    """
    folder = Path(folder)
    arguments = _arguments(settings, folder)
    make = partial(_InParts, settings.windows_at_once) if settings.windows_at_once else Trainer
    trainer = make(
        model=model,
        args=arguments,
        train_dataset=features,  # a list serves as a map-style data set
        data_collator=collator or DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[_Recorder(after_epoch), ShowProgress(folder / PROGRESS), _MarkComplete()],
        compute_loss_func=loss,
        optimizers=(None if settings.layer_decay == 1 else _layer_wise(model, arguments, settings.layer_decay), None),
    )
    trainer.remove_callback(PrinterCallback)  # it prints each log entry when the Trainer's own bar is off
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    model.eval()
    log: list[dict[str, Any]] = trainer.state.log_history
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    return History(losses, [entry[EPOCH_KEY] for entry in log if EPOCH_KEY in entry])


class _InParts(Trainer):
    """Takes a batch through the model in parts of at most `most` windows: the activations of one part are kept at once.

    A part's loss, which is a mean over its windows, counts by its share of the batch.
    """

    def __init__(self, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most, self.share = most, 1.0

    def training_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        whole = len(inputs["input_ids"])
        losses = []
        for begin in range(0, whole, self.most):
            part = {name: values[begin : begin + self.most] for name, values in inputs.items()}
            self.share = len(part["input_ids"]) / whole
            losses.append(super().training_step(model, part, *rest))
        return torch.stack(losses).sum()

    def compute_loss(self, *given: Any, **options: Any) -> Any:
        loss: Any = super().compute_loss(*given, **options)
        return self.share * loss


def _layer_wise(model: nn.Module, arguments: TrainingArguments, decay: float) -> torch.optim.Optimizer:
    """The Trainer's optimizer, but with a group of parameters and a learning rate for each depth in the model."""
    depth = depths(model)
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(depth[name], []).append(parameter)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    rate = options.pop("lr")
    weight_decay = arguments.weight_decay  # 0, as in the Trainer's own groups; AdamW's default is another
    optimizer: torch.optim.Optimizer = kind(
        [{"params": groups[n], "lr": rate * decay**n, "weight_decay": weight_decay} for n in sorted(groups)], **options
    )
    return optimizer


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    device = default_device()
    # The Trainer's newer name for it, and the older one, which goes with transformers 6.
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, n))
    recompute: dict[str, Any] = {name: settings.recompute}
    return TrainingArguments(
        **recompute,
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULERS[settings.schedule],
        warmup_steps=settings.warmup,  # below 1, it is a share
        seed=settings.seed,
        optim="adamw_torch_fused",
        bf16=has_native_bf16(device),
        use_cpu=device.type == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # a diverged run must not look like one that learned nothing
        save_strategy="epoch",
        save_total_limit=settings.checkpoints,
        report_to="none",
        disable_tqdm=True,  # the bar below shows the same in notebooks and scripts, and obeys TQDM_DISABLE
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None; unfinished ones are removed."""
    paths = complete_checkpoints(folder)
    return str(paths[-1]) if paths else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, oldest first; unfinished ones are removed."""
    complete = []
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
        if (path / COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return complete


class _Recorder(TrainerCallback):
    """Scores the model after each epoch and keeps the result in the Trainer's log, which checkpoints carry along."""

    def __init__(self, after_epoch: Callable[[nn.Module], dict[str, Any]] | None) -> None:
        self.after_epoch = after_epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        control.should_log = True  # no mean loss spans two epochs: a run resumed between them logs the same
        if self.after_epoch is None:
            return
        with torch.random.fork_rng():  # scoring must not change what is drawn next
            scores = self.after_epoch(rest["model"])
        state.log_history.append({"step": state.global_step, EPOCH_KEY: {"epoch": round(state.epoch), **scores}})


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint once all its files are written."""

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class TrainingProgress(BaseModel):
    """How far a training is, as `progress.json` holds it."""

    stage: Literal["training", "trained"]
    step: int  # optimizer steps that are done, of `steps`
    steps: int
    epoch: float  # epochs that are done; 0.5 is half of the first
    loss: float | None  # the latest in the history; None before the first, and where it is no number


def read_progress(folder: Path) -> TrainingProgress | None:
    """How far the training with this folder of checkpoints is; None where none has begun, or the folder is gone."""
    try:
        return TrainingProgress.model_validate_json((folder / PROGRESS).read_bytes())
    except FileNotFoundError:
        return None


class ShowProgress(TrainerCallback):
    """One bar over all steps with the latest loss; and the same in a file, for other processes to read."""

    def __init__(self, path: Path) -> None:
        """Write to the file `path`."""
        self.path = path
        self.loss: float | None = None
        self.written = -math.inf  # when, by `time.monotonic`

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Begin where training goes on."""
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        self._write(state, "training")

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Move the bar on; write when the last time is long enough ago."""
        self.bar.update(state.global_step - self.bar.n)
        if time.monotonic() - self.written >= PROGRESS_SECONDS:
            self._write(state, "training")

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Show the latest loss."""
        if "loss" in rest["logs"]:
            self.loss = rest["logs"]["loss"]
            self.bar.set_postfix(epoch=f"{state.epoch:.1f}/{args.num_train_epochs}", loss=f"{self.loss:.2f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Remove the bar and say that training is over."""
        self.bar.close()
        self._write(state, "trained")

    def _write(self, state: Any, stage: Literal["training", "trained"]) -> None:
        if state.is_world_process_zero:
            progress = TrainingProgress(
                stage=stage, step=state.global_step, steps=state.max_steps, epoch=state.epoch or 0, loss=self.loss
            )
            with contextlib.suppress(CourseError):  # of a full disk the next checkpoint tells; no reason to end here
                write_atomically(self.path, progress.model_dump_json())
            self.written = time.monotonic()
