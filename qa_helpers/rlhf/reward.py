"""A reward model: what people ranked, learned by a small head on the frozen reference's states, and what it learned.

Bradley and Terry 1952: the probability that one answer is ranked above another is sigmoid(reward - other reward).
As a reward model of language: Stiennon et al. 2020, "Learning to Summarize from Human Feedback", arXiv:2009.01325,
section 3.4. A pair says nothing about two questions, so that rewards compare only within a question.

What it simplifies: where theirs is a whole language model, only a head is trained here, so that the states of a
question are computed once, training takes seconds, and one call scores every span of a passage.
"""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid, pad

from qa_helpers.common.device import longest_first, progress_bar
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.evaluation.statistics import Calibration, bootstrap_mean, expected_calibration
from qa_helpers.experiment.scores import Score
from qa_helpers.rlhf.measure import Reference, ReferenceBatch, collate
from qa_helpers.rlhf.policy import expectation, to_span
from qa_helpers.rlhf.preferences import Pair, by_question

Ranked = tuple[Sequence[Reference], Sequence[Pair]]  # pairs of these questions, whose places they count
QUESTIONS_PER_STEP = 16  # whose pairs make one step
LOG_PROB_SCALE = 10.0  # nats: brings the reference's log probabilities to about the size of the states


# ---- the model -------------------------------------------------------------------------------------------------
class RewardModel(nn.Module):
    """One hidden layer on a span's first state, last state and mean state: a number for each span.

    The layer is linear in each of the three, and the mean comes from running sums, so that all spans of a passage
    cost hardly more than its tokens do.
    """

    def __init__(self, units: int, hidden: int = 64, length: bool = True, log_prob: bool = True, seed: int = 0) -> None:
        """Weights are drawn by `seed`.

        Args:
            units: of the reference's states.
            hidden: units of the hidden layer.
            length: whether it sees how many tokens the answer has; without, it can only guess from the states.
            log_prob: whether it sees the reference's log probability of the answer.
            seed: of its weights.
        """
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last, self.mean = (nn.Linear(units, hidden, bias=i == 0) for i in range(3))
            self.length = nn.Embedding(MAX_ANSWER_TOKENS, hidden) if length else None
            self.log_prob = nn.Linear(1, hidden, bias=False) if log_prob else None
            self.out = nn.Linear(hidden, 1, bias=False)  # a constant would cancel in every pair
        if self.length is not None:
            nn.init.zeros_(self.length.weight)  # a length that was never ranked is worth what the others are

    def forward(self, batch: ReferenceBatch) -> torch.Tensor:
        """The reward of every action, (batch, actions), less its mean under the reference; 0 where none is allowed.

        That mean is a constant of the question: it changes no ranking, no advantage and not the optimum, but keeps
        rewards of different questions, and of different reward models, comparable.
        """
        tokens = batch.states.shape[1]
        rows = torch.arange(len(batch), device=batch.states.device)[:, None]
        actions = torch.arange(tokens * MAX_ANSWER_TOKENS, device=batch.states.device)
        reward = self.score(batch, rows, actions[None])
        reward = reward - expectation(batch.log_ref, reward)[:, None]
        return reward.masked_fill(batch.log_ref.isneginf(), 0)

    def score(self, batch: ReferenceBatch, rows: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The reward of some actions, without its mean taken off.

        Args:
            batch: of questions.
            rows: which of them, of any shape.
            actions: of that question each, of a shape that broadcasts with `rows`.
        """
        start, rest = actions // MAX_ANSWER_TOKENS, actions % MAX_ANSWER_TOKENS
        end = (start + rest).clamp(max=batch.states.shape[1] - 1)  # past the passage: of no meaning, and masked
        sums = pad(self.mean(batch.states).cumsum(1), (0, 0, 1, 0))
        units = self.first(batch.states)[rows, start] + self.last(batch.states)[rows, end]
        units = units + (sums[rows, end + 1] - sums[rows, start]) / (rest + 1)[..., None]
        if self.length is not None:
            units = units + self.length(rest)
        if self.log_prob is not None:
            known = batch.log_ref[rows, actions].clamp(min=-100) / LOG_PROB_SCALE  # finite also where not allowed
            units = units + self.log_prob(known[..., None])
        scores: torch.Tensor = self.out(nn.functional.gelu(units))[..., 0]
        return scores


# ---- training --------------------------------------------------------------------------------------------------
def bradley_terry_loss(margin: torch.Tensor) -> torch.Tensor:
    """Minus the log likelihood of the rankings, given reward of the better minus reward of the worse answer: (pairs,).

    Stiennon et al. 2020, arXiv:2009.01325, section 3.4.
    """
    return -logsigmoid(margin)


@dataclass(frozen=True)
class RewardEpoch:
    """How far training has come."""

    epoch: int
    train_loss: float  # mean over the epoch's pairs, each before it was learned from
    loss: float  # of the held-out pairs
    accuracy: float  # of the held-out pairs, from 0 to 1

    def recorded(self) -> tuple[int, float, float]:
        """As a record keeps it: its number, and loss and accuracy on the held-out pairs."""
        return self.epoch, round(self.loss, 4), round(self.accuracy, 4)


def train_reward_model(
    model: RewardModel,
    learned: Ranked,
    held_out: Ranked,
    epochs: int = 20,
    patience: int = 3,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[RewardEpoch]:
    """Train a reward model in place, and leave it as it was when the held-out pairs were likeliest.

    A reward model that is trained on goes on to learn its pairs by heart; a policy optimised against such a one gets
    worse. Because the stopping looks at the held-out pairs, what the model is worth must be measured on others.

    Args:
        model: on any device.
        learned, held_out: questions and their pairs, of different articles, see `preferences.split_by_article`.
        epochs: at most.
        patience: epochs without a better held-out loss after which it stops.
        learning_rate: of Adam.
        seed: of the order.

    Returns:
        What each epoch came to, the first entry before training.

    Raises:
        ValueError: if there are no pairs of one kind.
    """
    references, pairs = learned
    if not pairs or not held_out[1]:
        raise ValueError(f"training takes pairs and held-out pairs; got {len(pairs)} and {len(held_out[1])}")
    groups = by_question(pairs)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)

    def learn() -> float:
        losses = []
        order = rng.permutation(list(groups)).tolist()
        for at in range(0, len(order), QUESTIONS_PER_STEP):
            chosen = [pair for i in order[at : at + QUESTIONS_PER_STEP] for pair in groups[i]]
            loss = bradley_terry_loss(_margins(model, references, chosen))
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses += loss.tolist()
        return float(np.mean(losses))

    return keep_best(model, learn, lambda: margins(model, *held_out), epochs, patience)


def keep_best(
    model: nn.Module, learn: Callable[[], float], judge: Callable[[], np.ndarray], epochs: int, patience: int
) -> list[RewardEpoch]:
    """Train a reward model, and leave it as it was when the held-out pairs were likeliest.

    Args:
        model: what is trained.
        learn: an epoch of it; gives the mean loss of the pairs, each before it was learned from.
        judge: by how much the model as it is now prefers the better answer of the held-out pairs: (pairs,).
        epochs: at most.
        patience: epochs without a better held-out loss after which it stops.

    Returns:
        What each epoch came to, the first entry before training.
    """
    history: list[RewardEpoch] = []
    best, weights = 0, copy.deepcopy(model.state_dict())
    for epoch in progress_bar(range(epochs + 1), desc="reward model", unit="epoch"):
        train_loss = learn() if epoch else float("nan")
        margin = judge()
        loss = float(bradley_terry_loss(torch.from_numpy(margin)).mean())
        history.append(RewardEpoch(epoch, train_loss, loss, accuracy(margin)))
        if loss < history[best].loss:
            best, weights = epoch, copy.deepcopy(model.state_dict())
        if epoch - best >= patience:
            break
    model.load_state_dict(weights)
    return history


def _margins(model: RewardModel, references: Sequence[Reference], pairs: Sequence[Pair]) -> torch.Tensor:
    """Reward of the better minus reward of the worse answer, with its gradient: (pairs,)."""
    numbers = list(dict.fromkeys(pair.question for pair in pairs))
    device = next(model.parameters()).device
    batch = collate([references[number] for number in numbers], device)
    row = {number: row for row, number in enumerate(numbers)}
    table = torch.tensor([(row[pair.question], pair.better, pair.worse) for pair in pairs], device=device)
    scores = model.score(batch, table[:, :1], table[:, 1:])
    return scores[:, 0] - scores[:, 1]


# ---- what it learned -------------------------------------------------------------------------------------------
@torch.no_grad()
def margins(model: RewardModel, references: Sequence[Reference], pairs: Sequence[Pair]) -> np.ndarray:
    """By how much a reward model prefers each pair's better answer: (pairs,), negative where it ranks them wrongly."""
    preferred = np.zeros(len(pairs))
    lengths = [references[pair.question].question.tokens for pair in pairs]
    for chosen in longest_first(lengths, 256):  # pairs at once: at most so many passages in memory
        preferred[chosen] = _margins(model, references, [pairs[i] for i in chosen]).cpu().numpy()
    return preferred


def log_prob_margins(references: Sequence[Reference], pairs: Sequence[Pair]) -> np.ndarray:
    """By how much the reference itself finds each pair's better answer likelier, in nats: (pairs,)."""

    def score(question: int, action: int) -> float:
        start, length = to_span(action)
        return float(references[question].start_logits[start] + references[question].end_logits[start + length - 1])

    return np.array([score(question, better) - score(question, worse) for question, better, worse in pairs])


def accuracy(margin: np.ndarray) -> float:
    """The share of pairs that margins rank as people do, from 0 to 1; where a margin is 0, half a pair."""
    return float((np.sign(margin) + 1).mean() / 2)


def ranked_rightly(preferred: Mapping[str, np.ndarray], clusters: Sequence[Hashable]) -> dict[str, Score]:
    """How often rankers rank pairs as people do, in percent, with intervals over clusters; none of fewer than two.

    Args:
        preferred: of each ranker, by how much it prefers the better answers: (pairs,).
        clusters: of each pair its question or article, since pairs of one hang together.
    """
    if len(set(clusters)) < 2:
        return {}
    right = {name: 50 * (np.sign(margin) + 1) for name, margin in preferred.items()}
    return {name: Score.of(bootstrap_mean(percent, clusters=clusters)) for name, percent in right.items()}


def ranking_calibration(margin: np.ndarray) -> Calibration:
    """Whether pairs that the reward model ranks with 80 % confidence are ranked as people do 80 % of the time.

    Its confidence is sigmoid(|margin|), so from 0.5 on; the five bins are equal parts of 0 to 1.
    """
    sure = 1 / (1 + np.exp(-np.abs(margin)))
    return expected_calibration(sure, (np.sign(margin) + 1) / 2, 5)


@torch.no_grad()
def length_correlation(log_p: torch.Tensor, reward: torch.Tensor) -> float:
    """Pearson's correlation of reward and length in tokens within questions, under a policy's own answers: -1 to 1.

    NaN where reward or length do not vary.

    Args:
        log_p, reward: (batch, actions).
    """
    length = (torch.arange(log_p.shape[1], device=log_p.device) % MAX_ANSWER_TOKENS + 1.0).expand_as(log_p)
    reward, length = (values - expectation(log_p, values)[:, None] for values in (reward, length))
    products = (reward * length, reward**2, length**2)
    both, rewards, lengths = (float(expectation(log_p, product).sum()) for product in products)
    return both / (rewards * lengths) ** 0.5 if rewards * lengths > 0 else float("nan")
