"""Answers from a language model: it writes them, token by token, where an encoder with a span head points at them.

The prompt is the model's own chat template around passage, question and a request to answer briefly. Fine-tuning
shows it the prompt followed by the answer and trains *on the answer's tokens only*.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from qa_helpers.common.device import evaluation_mode, has_native_bf16, longest_first, progress_bar
from qa_helpers.common.io import ModelError
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import DataError, Row, check_rows, given_answers, row_id
from qa_helpers.evaluation.span_answers import Answers, Prediction, Span
from qa_helpers.model import load, trainable
from qa_helpers.model.packaged import PACKAGED

REQUEST = "{context}\n\nQuestion: {question}\nAnswer with a few words from the text above, nothing else."
# What a passage says is text, also where it spells a control token.
TEMPLATE_OPTIONS: dict[str, Any] = {"sanitize_control_tokens": True}
IGNORED = -100  # the label that the loss leaves out
MAX_PROMPT = 2048  # tokens; SQuAD's longest passages take about 900
MAX_NEW_TOKENS = 32  # as many as an answer span may have, and the end
BATCH_SIZE = 16


# ---- loading ---------------------------------------------------------------------------------------------------
@quiet()
def load_language_model(name: str = "smollm2") -> nn.Module:
    """A causal language model: the packaged SmolLM2, a Hub id or a folder, in bfloat16 where that is native.

    Of a folder that holds a `peft` adapter, the model that it belongs to with the adapter beside its weights.

    Raises:
        ModelError: if it cannot be loaded or is no language model.
    """
    base = trainable.adapter_base(name)
    if base is not None:
        return trainable.attach_adapter(load_language_model(base), name).eval()
    options: dict[str, Any] = {"use_safetensors": True}
    if _is_gguf(name):  # as plain weights, which can be trained and saved
        options = {"gguf_file": PACKAGED[name].file, "quantization_config": GgufConfig(dequantize=True)}
    dtype = torch.bfloat16 if has_native_bf16() else torch.float32
    loaded, info = load.from_pretrained(AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ModelError(f"'{name}' lacks a language model's weights ({min(info['missing_keys'])}); choose another")
    # Of a slice of the hidden states and frozen weights, torch makes a batch of products and copies the weights for
    # each of its rows: 54 MiB a question here.
    model: PreTrainedModel = loaded
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    model.eval()
    return model


@quiet()
def load_chat_tokenizer(name: str = "smollm2") -> PreTrainedTokenizerFast:
    """The tokenizer of a language model, padding on the left so that what is generated follows the prompt.

    Raises:
        ModelError: if there is none, or it has no chat template.
    """
    options = {"gguf_file": PACKAGED[name].file} if _is_gguf(name) else {}
    tokenizer: PreTrainedTokenizerFast = load.from_pretrained(AutoTokenizer, name, padding_side="left", **options)
    if not tokenizer.chat_template:
        raise ModelError(f"'{name}' has no chat template, so it was not trained to take requests; choose another")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_gguf(name: str) -> bool:
    return name in PACKAGED and PACKAGED[name].file.endswith(".gguf")


# ---- what it has learned from text -----------------------------------------------------------------------------
class NextToken(NamedTuple):
    """A token that may come next, and its probability."""

    text: str
    probability: float


@torch.inference_mode()
def next_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerFast, text: str, count: int = 5) -> list[NextToken]:
    """The likeliest next tokens of a text, the best first."""
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=_device(model))
    probabilities = model(ids).logits[0, -1].float().softmax(0)
    best = probabilities.topk(count)
    return [NextToken(str(tokenizer.decode(int(i))), float(p)) for p, i in zip(*best, strict=True)]


@torch.inference_mode()
def continuation_probability(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, text: str, continuation: str
) -> float:
    """The probability that `text` goes on with just this continuation: the product over its tokens."""
    start, rest = (tokenizer.encode(part, add_special_tokens=False) for part in (text, continuation))
    ids = torch.tensor([start + rest], device=_device(model))
    log_probabilities = model(ids).logits[0, len(start) - 1 : -1].float().log_softmax(1)
    return math.exp(log_probabilities.gather(1, ids[0, len(start) :, None]).sum())


# ---- answering -------------------------------------------------------------------------------------------------
class Written(NamedTuple):
    """An answer that a language model wrote."""

    ids: list[int]  # its tokens, with the end token unless it was cut
    text: str  # white space at the ends apart
    log_probability: float  # of all its tokens together, by the model that wrote it, in nats


def prompt_messages(row: Row) -> list[dict[str, str]]:
    """A question and its passage as the messages that the chat template takes: one, the user's."""
    return [{"role": "user", "content": REQUEST.format(context=row["context"], question=row["question"])}]


def prompt_tokens(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[int]:
    """A question and its passage as the tokens after which the model's answer begins.

    Text in them that spells one of the template's control tokens is read as text.

    Raises:
        DataError: if they take more than `MAX_PROMPT` tokens.
    """
    encoded: Any = tokenizer.apply_chat_template(
        prompt_messages(row), add_generation_prompt=True, return_dict=False, **TEMPLATE_OPTIONS
    )
    ids: list[int] = encoded
    if len(ids) > MAX_PROMPT:
        raise DataError(
            f"question '{row.get('id', row['question'][:40])}' and its passage take {len(ids)} tokens, more than the "
            f"{MAX_PROMPT} that are read; shorten them"
        )
    return ids


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterable[Row],
    batch_size: int = BATCH_SIZE,
    progress: str = "answering",
) -> Answers:
    """Answer questions by greedy decoding: the likeliest token each time, so the same answer every time.

    A prediction's one span holds the text as the model wrote it (white space at the ends apart), the product of its
    tokens' probabilities, and where the passage has this text, or -1. `loss` is not computed (NaN), see `answer_loss`.

    Args:
        model: a language model, on any device.
        tokenizer: its tokenizer, from `load_chat_tokenizer`.
        rows: questions with `question` and `context`, and optionally `id`.
        batch_size: questions at once, those of like length together.
        progress: the progress bar's label.

    Raises:
        DataError: if a passage is too long, or a row lacks a text (see `rows.check_rows`).
    """
    rows = check_rows(rows)
    prompts = [prompt_tokens(tokenizer, row) for row in rows]
    predictions: list[Prediction | None] = [None] * len(rows)
    with evaluation_mode(model), progress_bar(total=len(rows), desc=progress, unit="question") as bar:
        for chosen in longest_first([len(prompt) for prompt in prompts], batch_size):
            batch = tokenizer.pad({"input_ids": [prompts[i] for i in chosen]}, return_tensors="pt")
            written = generate(model, tokenizer, batch.to(_device(model)))
            for i, (_, text, log_probability) in zip(chosen, written, strict=True):
                start = rows[i]["context"].find(text)
                span = Span(text, start, log_probability, math.exp(log_probability))
                predictions[i] = Prediction(row_id(rows[i], i), [span])
            bar.update(len(chosen))
    return Answers([p for p in predictions if p is not None], float("nan"))


@quiet()
@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    inputs: Mapping[str, Any],
    sample: bool = False,
    temperature: float = 1.0,
) -> list[Written]:
    """What the model writes after each prompt up to its end token, at most `MAX_NEW_TOKENS`.

    Args:
        model: a language model, on any device.
        tokenizer: its tokenizer.
        inputs: `input_ids` and `attention_mask` of the prompts, padded on the left, (prompts, tokens); and, as
            `past_key_values`, what the model holds of them already.
        sample: whether tokens are drawn, by torch's own generator, nothing cut off; else each is the likeliest.
        temperature: of the draws, and of the log probabilities.
    """
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {}
    output = model.generate(
        **inputs,
        **sampling,
        do_sample=sample,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = output.sequences[:, inputs["input_ids"].shape[1] :]
    chosen = [
        (logits.float() / temperature).log_softmax(1).gather(1, ids[:, None])
        for logits, ids in zip(output.logits, written.T, strict=True)
    ]
    answers = []
    for ids, values in zip(written.tolist(), torch.cat(chosen, dim=1).tolist(), strict=True):
        length = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
        text = str(tokenizer.decode(ids[:length], skip_special_tokens=True)).strip()
        answers.append(Written(ids[:length], text, sum(values[:length])))
    return answers


# ---- supervised fine-tuning ------------------------------------------------------------------------------------
def training_features(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Questions as a model's training inputs: `input_ids` and `labels`, one dictionary of lists a question.

    The input is the prompt, the first given answer, and the end token; the labels are the same tokens, with the
    prompt's replaced by `IGNORED`, so that the loss is the answer's (and its end's) alone. As in the prompt, an answer
    that spells a control token is read as text.

    Raises:
        DataError: if a passage is too long, or a row lacks a text or has no answer.
    """
    features = []
    for number, row in enumerate(check_rows(rows)):
        prompt = prompt_tokens(tokenizer, row)
        answer_text = given_answers(row, f"question '{row_id(row, number)}'")[0]
        reply = [*_answer_tokens(tokenizer, answer_text), tokenizer.eos_token_id]
        features.append({"input_ids": prompt + reply, "labels": [IGNORED] * len(prompt) + reply})
    return features


def _answer_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def out_of_reach(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast) -> int:
    """How many questions have no given answer that `MAX_NEW_TOKENS` tokens, the end token among them, can write."""
    long = [row for row in rows if min(len(text.encode()) for text in row["answers"]["text"]) >= MAX_NEW_TOKENS]
    return sum(
        min(len(_answer_tokens(tokenizer, text)) for text in row["answers"]["text"]) >= MAX_NEW_TOKENS for row in long
    )


@dataclass(frozen=True)
class AnswerCollator:
    """Makes batches of training features, padded on the left, so that all answers end in the last column.

    Only the last columns then need the product with the vocabulary, a fifth of a small model's work: `logits_to_keep`
    says how many, and `labels` are cut to them.
    """

    tokenizer: PreTrainedTokenizerFast

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A model's arguments: input_ids and attention_mask (batch, tokens), labels (batch, logits_to_keep)."""
        inputs = [feature["input_ids"] for feature in features]
        batch = dict(self.tokenizer.pad({"input_ids": inputs}, padding_side="left", return_tensors="pt"))
        # One column more than the longest answer: its first token is predicted in the column before it.
        keep = 1 + max(sum(label != IGNORED for label in feature["labels"]) for feature in features)
        cut = [feature["labels"][-keep:] for feature in features]
        batch["labels"] = torch.tensor([[IGNORED] * (keep - len(labels)) + labels for labels in cut])
        batch["logits_to_keep"] = keep
        return batch


@torch.inference_mode()
def answer_loss(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Iterable[Row], batch_size: int = 8
) -> float:
    """Mean training loss over the tokens of all answers: what supervised fine-tuning makes smaller."""
    features = training_features(rows, tokenizer)
    collate, total, count = AnswerCollator(tokenizer), 0.0, 0
    for chosen in longest_first([len(feature["input_ids"]) for feature in features], batch_size):
        batch = collate([features[i] for i in chosen])
        on_device = {name: v.to(_device(model)) if torch.is_tensor(v) else v for name, v in batch.items()}
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += float(model(**on_device).loss) * tokens
        count += tokens
    return total / count


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
