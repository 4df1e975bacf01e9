"""A reward model for a language model's own words: what people ranked, learned from the frozen model's states.

It is linear in the last hidden state at the answer's last token and trained on pairs (Bradley and Terry 1952; Stiennon
et al. 2020, arXiv:2009.01325, section 3.4).

What it simplifies: where theirs is a whole language model, fine-tuned, this one has a weight for each unit of one
state, so that training takes a fraction of a second and can do no more than that state tells.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.evaluation.written_answers import TEMPLATE_OPTIONS
from qa_helpers.rlhf.language.answers import Asked, frozen, read_answers
from qa_helpers.rlhf.preferences import Pair
from qa_helpers.rlhf.ranking_store import RankingError
from qa_helpers.rlhf.reward import RewardEpoch, bradley_terry_loss, keep_best

Ranked = tuple[Sequence[Asked], Sequence[Pair]]  # questions with their answers, and pairs of these


class AnswerReward(nn.Module):
    """A reward that is linear in the frozen model's state at an answer's last token.

    Within a question it means something, between questions nothing: pairs are of one question.
    """

    def __init__(self, states: torch.Tensor) -> None:
        """Rewards are 0 at first; states are brought to mean 0 and standard deviation 1 of those given here.

        Args:
            states: (answers, units), of the answers to learn on.
        """
        super().__init__()
        self.out = nn.Linear(states.shape[1], 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", states.mean(0))
        self.register_buffer("scale", states.std(0).clamp(min=1e-3))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(answers, units) -> (answers,)."""
        reward: torch.Tensor = self.out((states - self.mean) / self.scale)[:, 0]
        return reward


def answer_margins(reward: AnswerReward, asked: Sequence[Asked], pairs: Sequence[Pair]) -> torch.Tensor:
    """Reward of the better minus reward of the worse answer: (pairs,)."""
    better, worse = (torch.stack([asked[pair[0]].states[pair[side]] for pair in pairs]) for side in (1, 2))
    margins: torch.Tensor = reward(better) - reward(worse)
    return margins


def train_answer_reward(
    learn: Ranked, stop: Ranked, epochs: int = 300, learning_rate: float = 1e-3
) -> tuple[AnswerReward, list[RewardEpoch]]:
    """Train a reward model on pairs; it is left as it was when the pairs that it does not learn were likeliest.

    All pairs make one step, and nothing is drawn at random, so there is no seed.

    Args:
        learn, stop: questions and their pairs; of different articles, see `preferences.split_by_article`.
        epochs: at most; it takes a fraction of a second.
        learning_rate: of AdamW.

    Raises:
        RankingError: if there are no pairs of one kind.
    """
    if not learn[1] or not stop[1]:
        raise RankingError(
            f"a reward model takes pairs to learn and pairs to stop on; got {len(learn[1])} and {len(stop[1])}: "
            "ask more questions, or sample more answers"
        )
    model = AnswerReward(torch.cat([each.states for each in learn[0]]))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.1)

    def learn_all() -> float:
        loss = bradley_terry_loss(answer_margins(model, *learn)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return model, keep_best(model, learn_all, lambda: answer_margins(model, *stop).detach().numpy(), epochs, epochs)


@torch.no_grad()
def ranker_margins(reward: AnswerReward, asked: Sequence[Asked], pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """By how much the reward model, and what it must beat, prefer each pair's better answer: (pairs,) each."""

    def difference(value: Callable[[Asked, int], float]) -> np.ndarray:
        return np.array([value(asked[q], better) - value(asked[q], worse) for q, better, worse in pairs])

    return {
        "reward model": answer_margins(reward, asked, pairs).numpy(),
        "shorter answer": difference(lambda it, i: -len(it.answers[i].ids)),
        "own probability": difference(lambda it, i: float(it.log_probability[i])),
        "own probability a token": difference(lambda it, i: float(it.log_probability[i]) / len(it.answers[i].ids)),
    }


def reward_function(
    reward: AnswerReward, model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., list[float]]:
    """A reward model as trl's trainers take it, for `reward_funcs`.

    Args:
        reward: trained on states of the same frozen model.
        model: the language model, with or without the adapter that is being trained; its adapter is off here.
        tokenizer: its tokenizer.
    """

    def learned_reward(prompts: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """A reward for each completion; answers to one prompt that stand together share its reading."""
        options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False, **TEMPLATE_OPTIONS}
        grouped = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]
        ends = np.cumsum([count for _, count in grouped])
        answers = [completion_ids[end - count : end] for (_, count), end in zip(grouped, ends, strict=True)]
        ids: list[Any] = [tokenizer.apply_chat_template(prompt, **options) for prompt, _ in grouped]
        with frozen(model):
            states = torch.cat([states for _, states in read_answers(model, ids, answers)])
        with torch.no_grad():
            rewards: list[float] = reward(states).tolist()
        return rewards

    return learned_reward
