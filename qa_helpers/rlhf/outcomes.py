"""What a policy is worth on questions that it was not changed on: exact reward and KL, and its answers' scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qa_helpers.evaluation.metrics import exact_match, f1
from qa_helpers.rlhf.policy import exact_kl, expectation, to_span
from qa_helpers.rlhf.preferences import agreement
from qa_helpers.rlhf.reference import Reference, ReferenceBatch, collate

BATCH_SIZE = 16  # questions; all spans' rewards of so many passages of 384 tokens take half a GiB

Reward = Callable[[ReferenceBatch], torch.Tensor]  # (batch, actions); a `RewardModel` is one
Policy = Callable[[ReferenceBatch], torch.Tensor]  # (batch, actions), log probabilities


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

    def objective(self, beta: float) -> np.ndarray:
        """Mean reward less beta * KL, a value a question."""
        value: np.ndarray = self.reward - beta * self.kl
        return value

    def means(self) -> dict[str, float]:
        """The mean of each over the questions; EM, F1 and agreement in percent."""
        percent = {"exact_match": 100.0, "f1": 100.0, "agreement": 100.0}
        names = ("reward", "kl", "exact_match", "f1", "agreement", "tokens")
        return {name: float(np.mean(getattr(self, name))) * percent.get(name, 1.0) for name in names}


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
    order = sorted(range(len(references)), key=lambda i: -references[i].question.tokens)  # little padding
    rewards, kls, actions = np.zeros(len(order)), np.zeros(len(order)), np.zeros(len(order), dtype=int)
    for at in range(0, len(order), BATCH_SIZE):
        places = order[at : at + BATCH_SIZE]
        batch = collate([references[i] for i in places], device)
        log_p = policy(batch)
        rewards[places] = expectation(log_p, reward(batch)).cpu()
        kls[places] = exact_kl(log_p, batch.log_ref).cpu()
        actions[places] = log_p.argmax(1).cpu()
    questions = [one.question for one in references]
    texts = [question.text(action) for question, action in zip(questions, actions.tolist(), strict=True)]
    pairs = [(text, question.row["answers"]["text"]) for text, question in zip(texts, questions, strict=True)]
    matches, overlaps, agreements = (
        np.array([float(score(*pair)) for pair in pairs]) for score in (exact_match, f1, agreement)
    )
    lengths = np.array([to_span(action)[1] for action in actions.tolist()])
    return Outcome(rewards, kls, texts, matches, overlaps, agreements, lengths)
