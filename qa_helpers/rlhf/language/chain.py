"""RLHF on a language model from end to end, with a record: answers, a reward model, DPO and GRPO, what they are worth.

What each method came to is kept as soon as it is there: a chain that was killed goes on with the next one. What it
simplifies: the changed models are not kept, and the answers to learn on are written again when a chain goes on.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import default_device, describe_machine, peak_memory_mib
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import DataError, Row
from qa_helpers.data.squad import fingerprint, load_qa
from qa_helpers.evaluation.metrics import exact_match, f1
from qa_helpers.evaluation.written_answers import load_chat_tokenizer, load_language_model, prompt_tokens
from qa_helpers.experiment.once import kept, run_once
from qa_helpers.experiment.record import Machine
from qa_helpers.experiment.store import runs_folder
from qa_helpers.rlhf.language.answers import answer_pairs, ask, paired_texts, preference_dataset
from qa_helpers.rlhf.language.record import (
    LanguageChain,
    LanguageChainRun,
    LanguageColumns,
    LanguageMethod,
    LanguageResult,
    LanguageReward,
)
from qa_helpers.rlhf.language.reward import AnswerReward, Ranked, ranker_margins, reward_function, train_answer_reward
from qa_helpers.rlhf.language.updates import (
    LanguageUpdate,
    import_trl,
    train_language_dpo,
    train_language_grpo,
    with_adapter,
    without_adapter,
)
from qa_helpers.rlhf.preferences import chain_parts, split_by_article
from qa_helpers.rlhf.reward import ranked_rightly

if TYPE_CHECKING:
    from datasets import Dataset

RECORD = "language-run.json"  # not `run.json`, which marks a run with a model of its own


# ---- running it -------------------------------------------------------------------------------------------------
@quiet()
def run_language_chain(chain: LanguageChain, folder: Path | str | None = None) -> LanguageChainRun:
    """Run a chain, or read its result back if it has been run in this folder.

    Args:
        chain: what to run.
        folder: the runs folder; `runs_folder()` if None.

    Raises:
        CourseError: if trl, the model or the data cannot be had, the folder holds another chain of this name, or
            another process is running it.
    """
    home = runs_folder(folder) / chain.name
    other = f"holds another chain of the name '{chain.name}'; give this one another name"
    result = partial(kept, home / RECORD, LanguageChainRun, lambda: _run(chain, home))
    return run_once(chain, home / "language-chain.json", home / RECORD, result, other)


def _run(chain: LanguageChain, home: Path) -> LanguageChainRun:
    import_trl()  # first of all: without it, nothing below is worth its time
    model, tokenizer = load_language_model(chain.model).to(default_device()), load_chat_tokenizer(chain.model)
    parts, left_out = _questions(chain, tokenizer)
    learn, stop = (ask(model, tokenizer, parts[name], chain.samples, chain.seed) for name in ("learn", "stop"))
    pairs, tested = answer_pairs(learn, chain.seed), parts["held out"]
    held_out = ask(model, tokenizer, tested, chain.samples, chain.seed + 1)
    reward, learned = _reward((learn, pairs), (stop, answer_pairs(stop)), (held_out, answer_pairs(held_out)))
    before = language_outcome(model, tokenizer, tested, reward, chain.samples, chain.seed + 2)
    preferences = preference_dataset(paired_texts(learn, pairs))
    methods = {}
    for plan in chain.methods:
        change = partial(_change, chain, plan, model, tokenizer, parts, preferences, reward)
        methods[plan.name] = kept(home / "methods" / f"{plan.name}.json", LanguageResult, change)
    machine = describe_machine()
    machine["versions"]["trl"] = metadata.version("trl")
    return LanguageChainRun(
        chain=chain,
        machine=Machine.model_validate(machine),
        peak_memory_mib=round(peak_memory_mib(), 1),
        fingerprint=fingerprint(row for rows in parts.values() for row in rows),
        questions={part: len(rows) for part, rows in parts.items()} | {"left out": left_out},
        ids=[row["id"] for row in tested],
        titles=[row["title"] for row in tested],
        reward=learned,
        before=before,
        methods=methods,
    )


def _questions(chain: LanguageChain, tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, list[Row]], int]:
    """The questions of each part, no two of which share an article, and how many have too long a prompt."""
    everything = list(load_qa(chain.data, "validation"))  # several people answered these
    short = [row for row in everything if len(prompt_tokens(tokenizer, row)) <= chain.longest_prompt]
    if len({row["title"] for row in short}) < 3:
        raise DataError(f"fewer than three articles of {chain.data} have prompts of {chain.longest_prompt} tokens")
    pool, held_out = split_by_article(short, 0.25)
    limits = (chain.learn, max(4, chain.learn // 4), chain.held_out)
    return chain_parts(pool, held_out, limits), len(everything) - len(short)


def _reward(learn: Ranked, stop: Ranked, held_out: Ranked) -> tuple[AnswerReward, LanguageReward]:
    reward, history = train_answer_reward(learn, stop)
    asked, pairs = held_out
    articles = [asked[pair.question].row["title"] for pair in pairs]
    return reward, LanguageReward(
        pairs={"learn": len(learn[1]), "stop": len(stop[1]), "held out": len(pairs)},
        epochs=[epoch.recorded() for epoch in history[::10]],
        best_epoch=min(history, key=lambda epoch: epoch.loss).epoch,
        accuracy=ranked_rightly(ranker_margins(reward, asked, pairs), articles) if pairs else {},
    )


def _change(
    chain: LanguageChain,
    plan: LanguageMethod,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, list[Row]],
    preferences: "Dataset",
    reward: AnswerReward,
) -> LanguageResult:
    adapted = with_adapter(model, chain.seed)
    update = LanguageUpdate(plan.steps, plan.batch, chain.samples, plan.beta, plan.learning_rate, chain.seed)
    begin = time.perf_counter()
    if plan.method == "dpo":
        steps = train_language_dpo(adapted, tokenizer, preferences, update)
    else:
        judge = reward_function(reward, adapted, tokenizer)
        steps = train_language_grpo(adapted, tokenizer, parts["learn"], judge, update)
    seconds = round(time.perf_counter() - begin, 1)
    final = language_outcome(adapted, tokenizer, parts["held out"], reward, chain.samples, chain.seed + 2)
    without_adapter(adapted)
    return LanguageResult(
        steps=[{name: round(value, 4) for name, value in step.items()} for step in steps], final=final, seconds=seconds
    )


def language_outcome(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    reward: AnswerReward,
    samples: int = 4,
    seed: int = 0,
) -> LanguageColumns:
    """Measure a language model, with its adapter if it has one, on questions that it was not changed on.

    Args:
        model: on any device; without its adapter it is the reference.
        tokenizer: its tokenizer.
        rows: questions with several people's `answers`.
        reward: trained on states of the reference.
        samples: of each question, beside the greedy answer.
        seed: of the samples.
    """
    asked = ask(model, tokenizer, rows, samples, seed, greedy=True)
    greedy = [each.answers[0] for each in asked]
    scored = [(answer.text, row["answers"]["text"]) for answer, row in zip(greedy, rows, strict=True)]
    ratios = [np.array([w.log_probability for w in each.answers]) - each.log_probability for each in asked]
    return LanguageColumns(
        answers=[answer.text for answer in greedy],
        exact_match=[1 if exact_match(*pair) else 0 for pair in scored],
        tokens=[len(answer.ids) for answer in greedy],
        f1=_rounded(f1(*pair) for pair in scored),
        agreement=_rounded(each.agreement[0] for each in asked),
        sampled_agreement=_rounded(each.agreement[1:].mean() for each in asked),
        reward=_rounded(float(reward(each.states[1:]).mean().detach()) for each in asked),
        kl=_rounded(ratio[1:].mean() for ratio in ratios),
    )


def _rounded(values: Iterable[float]) -> list[float]:
    rounded: list[float] = np.round(list(values), 4).tolist()
    return rounded
