"""What the frozen reference says of each question, asked once; what a policy is worth beside it, over seeds, too.

The reference is the fine-tuned model as it was before any update: KL is measured against it, candidates come from it,
and the reward model reads its states. As it never changes, it need not be there any more when its copy is changed.

All seeds ask the same questions. For an interval over questions or articles a question's values are averaged over the
seeds first: it says what other questions would give, with these seeds. One over seeds says what other seeds would give,
with these questions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import evaluation_mode, longest_first, progress_bar
from qa_helpers.evaluation.comparisons import gains_over_blocks, paired_difference
from qa_helpers.evaluation.metrics import exact_match, f1
from qa_helpers.evaluation.span_answers import BATCH_SIZE
from qa_helpers.evaluation.statistics import PERCENT_BOUNDS, UNBOUNDED, Interval
from qa_helpers.experiment.forms import RecordError
from qa_helpers.rlhf.chain_record import ChainRun, Columns
from qa_helpers.rlhf.policy import Question, exact_kl, expectation, forward, passage_mask, span_log_probs, to_span
from qa_helpers.rlhf.preferences import agreement

MEASURED_AT_ONCE = 16  # questions; all spans' rewards of so many passages of 384 tokens take half a GiB
PERCENT = ("exact_match", "f1", "agreement")  # columns whose means are given in percent


# ---- the reference ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reference:
    """What the frozen reference says of one question: of each token of its passage. On the CPU."""

    question: Question
    states: torch.Tensor  # (tokens, units) of the last layer, float16 to halve the memory
    start_logits: torch.Tensor  # (tokens,)
    end_logits: torch.Tensor  # (tokens,)


@dataclass(frozen=True)
class ReferenceBatch:
    """The same of several questions, padded to the longest passage, on one device."""

    questions: list[Question]
    states: torch.Tensor  # (batch, tokens, units), float32; 0 past a passage's end
    log_ref: torch.Tensor  # (batch, actions): the reference's policy

    def __len__(self) -> int:
        """Questions in it."""
        return len(self.questions)


Reward = Callable[[ReferenceBatch], torch.Tensor]  # (batch, actions); a `RewardModel` is one
Policy = Callable[[ReferenceBatch], torch.Tensor]  # (batch, actions), log probabilities


def ask_reference(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> list[Reference]:
    """What a model says of questions now, kept while the model itself is changed: so no second model is needed.

    Takes 2 bytes a unit and token: of MiniLM and a passage of 130 tokens, 100 kB a question.
    """
    said: dict[int, Reference] = {}
    with evaluation_mode(model), torch.no_grad(), progress_bar(total=len(questions), desc="reference") as bar:
        for chosen in longest_first([len(question.window) for question in questions], BATCH_SIZE):
            output = forward(model, tokenizer, [questions[i] for i in chosen])
            start, end, states = (part.cpu() for part in output)
            for row, i in enumerate(chosen):
                n = questions[i].tokens  # clones, or a view would keep the padded batch
                said[i] = Reference(questions[i], states[row, :n].half(), start[row, :n].clone(), end[row, :n].clone())
            bar.update(len(chosen))
    return [said[i] for i in range(len(questions))]


def collate(references: Sequence[Reference], device: torch.device | str = "cpu") -> ReferenceBatch:
    """A batch of them."""
    questions = [reference.question for reference in references]
    parts = zip(*((each.states, each.start_logits, each.end_logits) for each in references), strict=True)
    states, start_logits, end_logits = (
        nn.utils.rnn.pad_sequence([tensor.float() for tensor in part], batch_first=True).to(device) for part in parts
    )
    log_ref = span_log_probs(start_logits, end_logits, passage_mask(questions).to(device))
    return ReferenceBatch(questions, states, log_ref)


# ---- what a policy is worth ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """A policy on some questions, a value each, in their order. Answers are the likeliest ones, not sampled."""

    reward: np.ndarray  # mean over the policy's own answers, exactly
    kl: np.ndarray  # to the reference, in nats, exactly
    answers: list[str]
    exact_match: np.ndarray  # 0 or 1
    f1: np.ndarray  # from 0 to 1
    agreement: np.ndarray  # with all annotators, from 0 to 1, see `preferences.agreement`
    tokens: np.ndarray  # of the answers

    def means(self) -> dict[str, float]:
        """The mean of each over the questions; EM, F1 and agreement in percent."""
        names = ("reward", "kl", "exact_match", "f1", "agreement", "tokens")
        return {name: float(np.mean(getattr(self, name))) * (100.0 if name in PERCENT else 1.0) for name in names}

    def columns(self) -> Columns:
        """As a record keeps it."""
        rounded = {name: np.round(getattr(self, name), 4).tolist() for name in ("reward", "kl", "f1", "agreement")}
        whole = {name: getattr(self, name).astype(int).tolist() for name in ("exact_match", "tokens")}
        return Columns(**rounded, **whole)


@torch.no_grad()
def outcome(
    policy: Policy, references: Sequence[Reference], reward: Reward, device: torch.device | str = "cpu"
) -> Outcome:
    """Measure a policy against its reference.

    Args:
        policy: such as `lambda batch: batch.log_ref`, the reference itself; or
            `lambda batch: closed_form(batch.log_ref, reward(batch), beta)`, the optimum.
        references: of the questions.
        reward: what to measure its answers with.
        device: on which policy and reward compute.
    """
    questions = [reference.question for reference in references]
    rewards, kls = np.zeros((2, len(questions)))
    actions = np.zeros(len(questions), dtype=int)
    for chosen in longest_first([question.tokens for question in questions], MEASURED_AT_ONCE):
        batch = collate([references[i] for i in chosen], device)
        log_p = policy(batch)
        rewards[chosen] = expectation(log_p, reward(batch)).cpu()
        kls[chosen] = exact_kl(log_p, batch.log_ref).cpu()
        actions[chosen] = log_p.argmax(1).cpu()
    texts = [question.text(action) for question, action in zip(questions, actions.tolist(), strict=True)]
    pairs = [(text, question.row["answers"]["text"]) for text, question in zip(texts, questions, strict=True)]
    matches, overlaps, agreed = (
        np.array([float(score(*pair)) for pair in pairs]) for score in (exact_match, f1, agreement)
    )
    lengths = np.array([to_span(action)[1] for action in actions.tolist()])
    return Outcome(rewards, kls, texts, matches, overlaps, agreed, lengths)


# ---- several seeds ---------------------------------------------------------------------------------------------
def held_out(runs: Iterable[ChainRun]) -> list[str]:
    """The ids of the held-out questions, which all runs must share.

    Raises:
        RecordError: if there is no run, or two asked other questions.
    """
    asked = {run.chain.name: run.ids for run in runs}
    if not asked:
        raise RecordError("there is no record of a chain; `python -m qa_helpers chain class-rlhf-seed0` makes one")
    (first, ids), *others = asked.items()
    for name, other_ids in others:
        if other_ids != ids:
            raise RecordError(f"the chains '{first}' and '{name}' were measured on other questions; compare them apart")
    return ids


def having(runs: Iterable[ChainRun], *names: str) -> list[ChainRun]:
    """Those of the runs that have all of these policies, so that what is compared rests on the same seeds.

    Raises:
        RecordError: if none has.
    """
    complete = [run for run in runs if run.everything.keys() >= set(names)]
    if not complete:
        raise RecordError(f"no chain has all of {', '.join(names)}; run one whose plan names them")
    return complete


def gain(
    runs: Sequence[ChainRun], policy: str, column: str, against: str = "reference", over_articles: bool = False
) -> Interval:
    """By how much a policy is better than another, paired by question and averaged over the seeds.

    Args:
        runs: of the same questions, one a seed.
        policy, against: keys of `ChainRun.everything`.
        column: a field of `Columns`; EM, F1 and agreement in percent.
        over_articles: draw whole articles for the interval instead of questions.

    Raises:
        RecordError: if the runs do not share their questions, or one lacks the policy.
    """
    held_out(runs)
    scale, bounds = (100.0, PERCENT_BOUNDS) if column in PERCENT else (1.0, UNBOUNDED)
    before, after = (
        scale * np.mean([run.columns(name).array(column) for run in runs], axis=0) for name in (against, policy)
    )
    return paired_difference(before, after, clusters=runs[0].titles if over_articles else None, bounds=bounds)


def gains_over_seeds(runs: Sequence[ChainRun], column: str, against: str = "reference") -> dict[str, Interval]:
    """By how much each policy that all runs have is better than another, with its interval over seeds.

    The seeds are the blocks of `statistics.gains_over_blocks`. All policies that the runs share are its treatments, so
    that an interval does not depend on which of them are shown.

    Raises:
        RecordError: if the runs do not share their questions, are fewer than two, or lack `against`.
    """
    held_out(runs)
    if len(runs) < 2:
        raise RecordError("an interval over seeds takes two chains or more; `gain` gives one over questions")
    shared = set.intersection(*(set(run.policies) for run in runs)) | {"reference", against}
    scale = 100.0 if column in PERCENT else 1.0
    scores = {name: [scale * run.columns(name).array(column).mean() for run in runs] for name in sorted(shared)}
    return gains_over_blocks(scores.pop(against), scores)


def share_of_optimum(run: ChainRun, policy: str, beta: float) -> float:
    """How much of what reward - beta * KL can gain over the reference a policy has gained, at most 1; by means."""
    names = (policy, f"optimum, beta {beta:g}", "reference")
    gained, best, first = (float(run.columns(name).objective(beta).mean()) for name in names)
    return (gained - first) / (best - first)
