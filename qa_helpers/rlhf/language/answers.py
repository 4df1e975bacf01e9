"""A language model's own words: several answers to a question, people's agreement with them, pairs as trl takes them.

A written answer is a list of tokens, and all of them cannot be listed as a passage's spans can: what was exact there
is estimated from samples here.

What it simplifies: the answers are as short as the spans are (`MAX_NEW_TOKENS`), and one that was cut there counts as
if it ended.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerFast

from qa_helpers.common.device import evaluation_mode, longest_first, progress_bar
from qa_helpers.data.rows import Row
from qa_helpers.evaluation.written_answers import TEMPLATE_OPTIONS, Written, generate, prompt_messages, prompt_tokens
from qa_helpers.rlhf.preferences import Candidate, Pair, agreement, make_pairs
from qa_helpers.rlhf.ranking_store import Ranking

if TYPE_CHECKING:
    from datasets import Dataset

TEMPERATURE = 0.7  # of the policy, but in trl's DPO, which has none; at 1, a model this small writes nonsense
Texts = tuple[Row, str, str]  # a row with `question` and `context`, the answer ranked higher, the other one
BATCH_SIZE = 8  # prompts at once; each is read once, however many answers it gets


@dataclass(frozen=True)
class Asked:
    """A question, answers to it, and what the frozen model makes of each."""

    row: Row
    answers: list[Written]
    agreement: np.ndarray  # (answers,) with people, from 0 to 1, see `preferences.agreement`
    log_probability: np.ndarray  # (answers,) by the frozen model, in nats
    states: torch.Tensor  # (answers, units), the frozen model's, at each answer's last token


# ---- writing and reading ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model as it was before any adapter: what is the reference of an update."""
    with getattr(model, "disable_adapter", contextlib.nullcontext)():
        yield


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    count: int,
    seed: int = 0,
    greedy: bool = False,
) -> list[list[Written]]:
    """Several answers to each question, drawn from the model's own distribution at `TEMPERATURE`, nothing cut off.

    Args:
        model: a language model, on any device.
        tokenizer: from `load_chat_tokenizer`.
        rows: questions with `question` and `context`.
        count: samples of each question.
        seed: of the draws, which also depend on the order of the questions.
        greedy: whether the likeliest answer (the likeliest token each time) is put before the samples.

    Returns:
        A list of `count` answers (one more with `greedy`) for each question, in order.

    Raises:
        DataError: if a passage is too long.
    """
    prompts = [prompt_tokens(tokenizer, row) for row in rows]
    answers: list[list[Written]] = [[] for _ in rows]
    with (
        torch.random.fork_rng(),
        evaluation_mode(model),
        progress_bar(total=len(rows), desc="writing", unit="question") as bar,
    ):
        torch.manual_seed(seed)
        for chosen in longest_first([len(prompt) for prompt in prompts], BATCH_SIZE):
            together = [prompts[i] for i in chosen]
            likeliest = _write(model, tokenizer, together, 1, sample=False) if greedy else []
            samples = _write(model, tokenizer, together, count)
            for row, i in enumerate(chosen):
                answers[i] = likeliest[row : row + 1] + samples[row * count : (row + 1) * count]
            bar.update(len(chosen))
    return answers


@torch.inference_mode()
def _write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    count: int,
    sample: bool = True,
) -> list[Written]:
    """`count` answers to each prompt, those of one prompt together."""
    read = _read_prompts(model, prompts, torch.full((len(prompts),), count))
    read.cache.crop(-1)  # `generate` reads the last token itself
    inputs = {"input_ids": read.ids, "attention_mask": read.mask, "past_key_values": read.cache}
    return generate(model, tokenizer, inputs, sample, TEMPERATURE)


class _Read(NamedTuple):
    """What a model holds of some prompts, repeated for each of their answers, padded on the left."""

    ids: torch.Tensor  # (answers, tokens)
    mask: torch.Tensor  # (answers, tokens)
    cache: DynamicCache
    logits: torch.Tensor  # (answers, vocabulary), of the answer's first token


def _read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], repeats: torch.Tensor) -> _Read:
    device = next(model.parameters()).device
    read = [torch.tensor(prompt) for prompt in prompts]
    ids, mask = (
        nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left").to(device)
        for rows in (read, [torch.ones_like(prompt) for prompt in read])
    )
    places = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(repeats.to(device))
    output.past_key_values.batch_select_indices(rows)
    return _Read(ids[rows], mask[rows], output.past_key_values, output.logits[rows, -1].float())


@torch.inference_mode()
def read_answers(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[np.ndarray, torch.Tensor]]:
    """What a model makes of given answers: their log probabilities and the states at their last tokens.

    Args:
        model: a language model, on any device; an adapter counts unless it is called within `frozen`.
        prompts: tokens, see `prompt_tokens`.
        answers: of each prompt, the tokens of one or more answers, each of at least one token.

    Returns:
        For each prompt (answers,) log probabilities in nats, and (answers, units) float32 states on the CPU.
    """
    readings: list[tuple[np.ndarray, torch.Tensor]] = []
    with evaluation_mode(model):
        for at in range(0, len(prompts), BATCH_SIZE):
            here = answers[at : at + BATCH_SIZE]
            counts = [len(some) for some in here]
            read = _read_prompts(model, prompts[at : at + BATCH_SIZE], torch.tensor(counts))
            log_ps, states = _read_on(model, read, [ids for some in here for ids in some])
            readings += list(zip((part.numpy() for part in log_ps.split(counts)), states.split(counts), strict=True))
    return readings


def _read_on(model: nn.Module, read: _Read, answers: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    device, width = read.mask.device, max(map(len, answers))
    lengths = torch.tensor([len(ids) for ids in answers], device=device)
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in answers], device=device)
    inside = torch.arange(width, device=device) < lengths[:, None]
    output = model(
        ids,
        attention_mask=torch.cat([read.mask, inside.to(read.mask)], 1),
        position_ids=read.mask.sum(1, keepdim=True) + torch.arange(width, device=device),
        past_key_values=read.cache,
        output_hidden_states=True,
    )
    log_ps = []
    for i, tokens in enumerate(answers):  # one at a time: of all together, the vocabulary's floats would fill a GiB
        logits = torch.cat([read.logits[i, None], output.logits[i, : len(tokens) - 1].float()])
        log_ps.append((logits / TEMPERATURE).log_softmax(1).gather(1, ids[i, : len(tokens), None]).sum())
    last = output.hidden_states[-1][torch.arange(len(answers), device=device), lengths - 1]
    return torch.stack(log_ps).cpu(), last.float().cpu()


def ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    count: int,
    seed: int = 0,
    greedy: bool = False,
) -> list[Asked]:
    """The model's own answers to each question, ranked by people's agreement and read by the frozen model.

    Args: as `sample_answers`; the rows with several people's `answers`.
    """
    written = sample_answers(model, tokenizer, rows, count, seed, greedy)
    prompts = [prompt_tokens(tokenizer, row) for row in rows]
    with frozen(model):
        readings = read_answers(model, prompts, [[answer.ids for answer in answers] for answers in written])
    return [
        Asked(row, answers, np.array([agreement(each.text, row["answers"]["text"]) for each in answers]), *reading)
        for row, answers, reading in zip(rows, written, readings, strict=True)
    ]


# ---- pairs -----------------------------------------------------------------------------------------------------
def answer_pairs(asked: Sequence[Asked], seed: int = 0) -> list[Pair]:
    """The pairs of answers to one question with which people agree differently, see `preferences.make_pairs`.

    A pair's actions are the answers' places among the question's.
    """
    candidates = [
        [Candidate(i, answer.text, float(each.agreement[i])) for i, answer in enumerate(each.answers)] for each in asked
    ]
    return make_pairs(candidates, seed=seed)


def preference_dataset(pairs: Iterable[Texts]) -> "Dataset":
    """Pairs in trl's conversational preference format: prompt, chosen, rejected.

    The column `chat_template_kwargs` has trl read control tokens in a passage as text, as `prompt_tokens` does, so that
    the prompt's tokens are the same. (After an answer's end token, trl trains the line end of the chat template, too.)
    """
    from datasets import Dataset

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return Dataset.from_list(
        [
            {
                "prompt": prompt_messages(row),
                "chosen": said(chosen),
                "rejected": said(rejected),
                "chat_template_kwargs": TEMPLATE_OPTIONS,
            }
            for row, chosen, rejected in pairs
        ]
    )


def ranked_texts(rankings: Iterable[Ranking]) -> list[Texts]:
    """What people ranked by hand, from `ranking_store.read_rankings`, for `preference_dataset`.

    A pair for each user that preferred one answer; ties and skipped ones make none.
    """
    pairs = []
    for ranking in rankings:
        if ranking.choice in ("first", "second"):
            row = Row(question=ranking.question, context=ranking.context)
            texts = (ranking.first, ranking.second)
            pairs.append((row, *texts) if ranking.choice == "first" else (row, *texts[::-1]))
    return pairs


def paired_texts(asked: Sequence[Asked], pairs: Iterable[Pair]) -> list[Texts]:
    """The pairs of `answer_pairs` for `preference_dataset`."""
    return [(asked[q].row, asked[q].answers[better].text, asked[q].answers[worse].text) for q, better, worse in pairs]
