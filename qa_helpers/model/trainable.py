"""Which weights of a model training changes, and how what was trained is stored: all of them, or an adapter beside.

An adapter is a `peft` one (LoRA or IA3), read from safetensors files only.
"""

import copy
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel

from qa_helpers.common.io import ModelError, read_json
from qa_helpers.common.quiet import quiet

if TYPE_CHECKING:  # importing peft takes long
    from peft import PeftModel

ADAPTER_FILE = "adapter_config.json"  # in a folder, says that its weights are a peft adapter's
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_RANK = 8  # columns of the low-rank matrices


# ---- what is trained -------------------------------------------------------------------------------------------
@quiet()
def set_trainable(model: nn.Module, what: str = "all") -> nn.Module:
    """Choose which weights training changes.

    Args:
        model: an encoder with a span head, or (for "all", "lora" and "ia3") a language model.
        what: "all"; "head" (the span head alone); "last:N" (the head and the N last layers); "lora" (the head and a
            low-rank correction to each linear layer, of a language model to those that peft chooses for its type:
            queries and values; Hu et al. 2021, arXiv:2106.09685); "ia3" (the head and a factor for each unit of the
            keys, the values, and what enters the layers that peft chooses for the model's type: of BERT both output
            layers, of Llama the feed-forward one; Liu et al. 2022, arXiv:2205.05638).

    Returns:
        The model, changed in place; for "lora" and "ia3" inside a `peft.PeftModel`.

    Raises:
        ModelError: for any other word, more layers than the encoder has, or a model that the method does not fit.
    """
    if what in ("lora", "ia3"):
        return _with_adapter(model, what)
    layers = encoder_layers(model)
    if not has_span_head(model) and what != "all":
        kind = type(model).__name__
        raise ModelError(f"'{what}' cannot be trained of a {kind}, which has no span head: use 'all', 'lora' or 'ia3'")
    last = re.fullmatch(r"last:([1-9]\d{0,2})", what)
    if what == "all":
        chosen: list[nn.Module] = [model.float()]  # small steps are lost in bfloat16
    elif what == "head":
        chosen = [*span_head(model).values()]
    elif last and int(last[1]) <= len(layers):
        chosen = [*span_head(model).values(), *layers[-int(last[1]) :]]
    else:
        raise ModelError(
            f"'{what}' cannot be trained: use 'all', 'head', 'lora', 'ia3', or 'last:N' with N from 1 to {len(layers)}"
        )
    model.requires_grad_(False)
    for module in chosen:
        module.requires_grad_(True)
    return model


def _with_adapter(model: nn.Module, what: str) -> nn.Module:
    import peft

    config: peft.PeftConfig
    if has_span_head(model):
        # No task type: with QUESTION_ANS, peft 0.21 hands no token_type_ids on to the model (see attach_adapter, too).
        head = span_head(model)
        common: dict[str, Any] = {"modules_to_save": list(head)}
    else:
        head, common = {}, {"task_type": peft.TaskType.CAUSAL_LM}
    if what == "ia3":
        config = peft.IA3Config(**common)  # peft knows which modules, by the model's type
    elif has_span_head(model):
        inside = [f"{name}.{inner}".rstrip(".") for name in head for inner, _ in head[name].named_modules()]
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", exclude_modules=inside, **common
        )
    else:
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, **common)
    try:
        return peft.get_peft_model(model, config)
    except ValueError as problem:
        raise ModelError(f"'{what}' does not fit a {type(model).__name__}: {str(problem).splitlines()[0]}") from problem


def _inner(model: nn.Module) -> nn.Module:
    """A model without what `peft` has put around it (what it has put into it stays)."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    return inner


def has_span_head(model: nn.Module) -> bool:
    """Whether a model is an encoder that points at answers (as opposed to a language model that writes them)."""
    return "ForQuestionAnswering" in type(_inner(model)).__name__  # transformers' name for it, of every family


def encoder(model: nn.Module) -> nn.Module:
    """A model without its head; what `peft` has put into the encoder stays in it."""
    without_head: nn.Module = _inner(model).base_model  # type: ignore[assignment]
    return without_head


def span_head(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a span model that are not its encoder's, by name: one layer, `qa_outputs`, in most families."""
    within = encoder(model)
    children = _inner(model).named_children()
    return {name: child for name, child in children if child is not within and any(True for _ in child.parameters())}


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, first to last: its longest list of like modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def depths(model: nn.Module) -> dict[str, int]:
    """How far below the head each parameter lies: 0 the head itself, 1 the last layer, and so on down.

    What belongs to no layer, the embeddings, lies below the first one.
    """
    layers = encoder_layers(model)
    depth = {id(p): len(layers) + 1 for p in encoder(model).parameters()}
    depth |= {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    return {name: depth.get(id(p), 0) for name, p in model.named_parameters()}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters of a model."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


# ---- adapters, and what is stored ------------------------------------------------------------------------------
def adapter_base(folder: Path | str) -> str | None:
    """The name of the model that a folder's adapter belongs to, or None where it holds no adapter.

    Raises:
        ModelError: if the adapter names none, or a folder that again holds an adapter.
    """
    file = os.path.join(folder, ADAPTER_FILE)
    if not os.path.isfile(file):
        return None
    config = read_json(file, ModelError)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base or os.path.isfile(os.path.join(base, ADAPTER_FILE)):
        raise ModelError(f"{file}: names no whole model that the adapter belongs to (base_model_name_or_path)")
    return base


@quiet()
def attach_adapter(base: nn.Module, folder: Path | str) -> "PeftModel":
    """A model of `base` and the adapter that `save_model` wrote into `folder`.

    Raises:
        ModelError: if the adapter cannot be loaded or does not fit.
    """
    import peft

    config, weights = read_json(Path(folder) / ADAPTER_FILE, ModelError), Path(folder) / ADAPTER_WEIGHTS
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "IA3"):
        raise ModelError(f"{folder}: its adapter is neither LoRA nor IA3 (peft_type in {ADAPTER_FILE})")
    if not weights.is_file():  # where it is missing, peft would read a pickle or ask the Hub
        raise ModelError(f"{folder}: its adapter lacks {ADAPTER_WEIGHTS}")
    try:
        with warnings.catch_warnings(), safe_open(weights, "pt") as file:
            warnings.simplefilter("ignore")  # of missing weights, which are an error below
            settings = peft.PeftConfig.from_pretrained(str(folder))
            if has_span_head(base):
                settings.task_type = None
            model = peft.PeftModel.from_pretrained(base, str(folder), config=settings)
            wanted = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
            differing = wanted.symmetric_difference(file.keys())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as problem:
        why = f"{type(problem).__name__}: {problem}"[:300]
        raise ModelError(f"{folder}: its adapter cannot be loaded ({' '.join(why.split())})") from problem
    if differing:  # peft would leave them as drawn at random, or out
        raise ModelError(f"{folder}: its adapter does not fit a {type(base).__name__} ({min(differing)})")
    return model


def merge_adapter(model: nn.Module) -> PreTrainedModel:
    """The model with its adapter's correction added into its own weights: the same answers, no `peft` around it.

    In float32: most of a small correction is lost when it is added to a bfloat16 weight.
    """
    merged: PreTrainedModel = model.float().merge_and_unload()  # type: ignore[operator]
    return merged


def save_model(model: nn.Module, folder: Path | str, base: str | None) -> None:
    """Save a trained model: all weights, or of a `peft.PeftModel` the adapter and the name of its base model.

    Where that has no name that loads it (`base` is None), all weights are saved, the adapter merged into them.
    """
    trained: Any = model
    if not hasattr(model, "peft_config"):
        trained.save_pretrained(folder)
        return
    if base is None:
        trained = merge_adapter(copy.deepcopy(model))
        trained.save_pretrained(folder)
        return
    for config in trained.peft_config.values():
        config.base_model_name_or_path = base  # a name, where peft would write this machine's path
    trained.save_pretrained(folder, save_embedding_layers=False)
    (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's form for a description, with this machine's path


def trained_bytes(model: nn.Module) -> int:
    """Size of the trained weights as one safetensors file: what a further task takes to store."""
    return len(save({name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}))
