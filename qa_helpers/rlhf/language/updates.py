"""Changing a language model by preferences or by a reward, through trl.

DPO (Rafailov et al. 2023, arXiv:2305.18290) learns from pairs; GRPO (Shao et al. 2024, arXiv:2402.03300) from the
reward of what the model itself writes. Both train a LoRA adapter; the model without it is the reference.

What it simplifies: constant learning rate, one update on each batch of samples, no checkpoints; GRPO's batches are of
a few answers, so that its steps are noisy.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainingArguments

from qa_helpers.common.device import default_device, set_seed
from qa_helpers.common.io import ModelError
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import DataError, Row
from qa_helpers.evaluation.written_answers import (
    MAX_NEW_TOKENS,
    MAX_PROMPT,
    TEMPLATE_OPTIONS,
    prompt_messages,
    prompt_tokens,
)
from qa_helpers.model.trainable import set_trainable
from qa_helpers.rlhf.language.answers import TEMPERATURE
from qa_helpers.training.trainer import PROGRESS, ShowProgress

if TYPE_CHECKING:  # importing these takes long
    from datasets import Dataset
    from peft import PeftModel

TRL = "trl==1.16.0"
LONGEST = MAX_PROMPT + MAX_NEW_TOKENS + 2  # tokens of a prompt and an answer, with its end and the template's line end
AT_ONCE = 2  # answers in one forward and backward pass, for memory; a step adds up as many passes as it takes
LOGGED = ("loss", "reward", "kl", "completions/mean_length", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True)
class LanguageUpdate:
    """How a language model is changed."""

    steps: int | None = None  # of the optimizer; None: once through all pairs, or all questions
    batch: int = 4  # pairs (DPO) or questions (GRPO) a step
    samples: int = 4  # answers to each of GRPO's questions
    beta: float = 0.1  # weight of the KL to the reference
    learning_rate: float = 1e-4
    seed: int = 0


# ---- training --------------------------------------------------------------------------------------------------
@quiet()
def import_trl() -> ModuleType:
    """The trl package, imported only here, since that takes seconds.

    Raises:
        ModelError: if it is not installed.
    """
    try:
        import trl
    except ImportError as problem:
        raise ModelError(f"trl, which trains the language model here, is not installed; run: pip install {TRL}") from (
            problem
        )
    return trl


def with_adapter(model: nn.Module, seed: int = 0) -> "PeftModel":
    """The model inside a LoRA adapter that changes nothing yet, its weights drawn by `seed`; see `set_trainable`."""
    from peft import PeftModel

    set_seed(seed)
    adapted = set_trainable(model, "lora")
    assert isinstance(adapted, PeftModel)
    return adapted


def without_adapter(model: "PeftModel") -> nn.Module:
    """The model as it was before `with_adapter`: all adapters are taken off, not merged."""
    base: nn.Module = model.unload()
    return base.requires_grad_(True)


@quiet()
def train_language_dpo(
    model: "PeftModel", tokenizer: PreTrainedTokenizerFast, preferences: "Dataset", update: LanguageUpdate
) -> list[dict[str, float]]:
    """DPO on preference pairs: the adapter of a model is changed in place.

    Args:
        model: from `with_adapter`.
        tokenizer: from `load_chat_tokenizer`.
        preferences: from `answers.preference_dataset`.
        update: how.

    Returns:
        trl's figures of each step, with those of `LOGGED` that it has: loss, and of the pairs before the step how
        often and by how much beta * log(policy / reference) ranks the chosen one first.

    Raises:
        ModelError: if trl is not installed, or there are no pairs.
        DataError: if pairs are longer than `LONGEST`: nothing is left out or cut.
    """
    trl = import_trl()
    if not len(preferences):
        raise ModelError("there are no preference pairs to train on; rank some, or ask more questions")
    _refuse_long(tokenizer, preferences)
    per_pass = math.gcd(AT_ONCE // 2, update.batch)  # pairs, of two answers each
    options = _options(model, update) | {
        "max_steps": update.steps or math.ceil(len(preferences) / update.batch),
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": update.batch // per_pass,
        "max_length": None,  # by default, trl drops a pair with a longer prompt and cuts a longer answer, silently
    }
    data = {"train_dataset": preferences, "processing_class": tokenizer}
    return _train(trl.DPOTrainer, trl.DPOConfig, model, options, **data)


@quiet()
def train_language_grpo(
    model: "PeftModel",
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    reward: Callable[..., list[float]],
    update: LanguageUpdate,
) -> list[dict[str, float]]:
    """GRPO on questions: the adapter of a model is changed in place towards answers of higher reward.

    Args:
        model: from `with_adapter`.
        tokenizer: from `load_chat_tokenizer`.
        rows: questions with `question` and `context`.
        reward: of trl's form, such as `reward.reward_function` makes; takes `prompts`, `completions` and
            `completion_ids` and gives a number for each.
        update: how.

    Returns:
        trl's figures of each step, with those of `LOGGED` that it has: loss, mean reward, KL, answers' length.

    Raises:
        ModelError: if trl is not installed, or there are fewer questions than a step takes.
        DataError: if a question and its passage are longer than `MAX_PROMPT` tokens.
    """
    trl = import_trl()
    from datasets import Dataset

    if len(rows) < update.batch:
        raise ModelError(f"a step takes {update.batch} questions; got {len(rows)}")
    for row in rows:
        prompt_tokens(tokenizer, row)  # refuses one that is too long
    per_pass = math.gcd(AT_ONCE, update.samples)
    options = _options(model, update) | {
        "max_steps": update.steps or len(rows) // update.batch,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": update.batch * update.samples // per_pass,
        "num_generations": update.samples,
        "max_completion_length": MAX_NEW_TOKENS,
        "temperature": TEMPERATURE,
        "chat_template_kwargs": TEMPLATE_OPTIONS,
    }
    questions = Dataset.from_dict({"prompt": [prompt_messages(row) for row in rows]})
    data = {"train_dataset": questions, "processing_class": tokenizer, "reward_funcs": reward}
    return _train(trl.GRPOTrainer, trl.GRPOConfig, model, options, **data)


def _refuse_long(tokenizer: PreTrainedTokenizerFast, preferences: "Dataset") -> None:
    lengths = [
        max(
            len(tokenizer.apply_chat_template(pair["prompt"] + pair[answer], return_dict=False, **TEMPLATE_OPTIONS))
            for answer in ("chosen", "rejected")
        )
        for pair in preferences
    ]
    long = [number for number, length in enumerate(lengths, 1) if length > LONGEST]
    if long:
        raise DataError(
            f"{len(long)} of {len(lengths)} preference pairs take more than {LONGEST:,} tokens with their passage, the "
            f"first of them (no. {long[0]}) {lengths[long[0] - 1]:,}; leave them out, or shorten passage or answer"
        )


def _options(model: nn.Module, update: LanguageUpdate) -> dict[str, Any]:
    """What both trainers are told."""
    device = default_device()
    return {
        "learning_rate": update.learning_rate,
        "lr_scheduler_type": "constant",
        "beta": update.beta,
        "seed": update.seed,
        "optim": "adamw_torch_fused",
        "bf16": str(next(model.parameters()).dtype) == "torch.bfloat16",  # trl's default is True on any machine
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": False,  # trl's default is True
        "dataloader_pin_memory": device.type == "cuda",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _train(
    kind: type[Trainer], configure: type[TrainingArguments], model: "PeftModel", options: dict[str, Any], **data: Any
) -> list[dict[str, float]]:
    """Run one of trl's trainers on its data; its figures of each step."""
    with tempfile.TemporaryDirectory() as folder:
        bar = ShowProgress(Path(folder) / PROGRESS)
        trainer = kind(model=model, args=configure(output_dir=folder, **options), callbacks=[bar], **data)
        trainer.remove_callback(PrinterCallback)  # it prints each log entry when the Trainer's own bar is off
        trainer.train()
    model.delete_adapter("ref")  # trl's copy of the adapter as it was, its reference
    model.eval()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{"step": entry["step"]} | {name: entry[name] for name in LOGGED if name in entry} for entry in log]
