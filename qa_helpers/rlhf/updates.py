"""The loops that change a policy: by a reward, by pairs, or by people's answers themselves.

What they simplify: the learning rate is constant; one seed decides which questions are drawn and what is sampled.
Dropout is off throughout: with it, the policy that is changed would be another one than the policy that sampled (so
that PPO's ratio would be noise before the first step), and the KL to the reference would not begin at 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import evaluation_mode, progress_bar
from qa_helpers.rlhf.losses import (
    dpo_loss,
    group_advantage,
    leave_one_out,
    penalised,
    ppo_loss,
    reinforce_loss,
    sampled_kl,
)
from qa_helpers.rlhf.measure import Outcome, Reference, ReferenceBatch, Reward, collate, outcome
from qa_helpers.rlhf.policy import exact_kl, expectation, objective, policy, sample
from qa_helpers.rlhf.preferences import Pair, answer_actions, by_question

Method = Literal["reinforce", "ppo", "grpo", "exact"]
Penalty = Literal["reward", "exact", "sampled"]
CLIP_NORM = 1.0  # of the gradient, as in fine-tuning


@dataclass(frozen=True)
class UpdateSettings:
    """How to change a policy; what a method has no use for, it does not look at.

    `method`: "reinforce" (leave-one-out baseline), "ppo" (the same advantage, clipped ratio), "grpo" (group
    advantage, clipped ratio), or "exact", the objective's own gradient over all actions: the control that has no
    sampling noise.

    `penalty` is how the first three pay for KL: "reward", as part of each sample's reward (InstructGPT); "exact", as
    the KL over all actions beside it; "sampled", as GRPO has it, see `losses.sampled_kl`. In the reward, noise
    vanishes towards the optimum: there reward - beta * log(pi / ref) is the same for every answer.
    """

    method: Method = "ppo"
    penalty: Penalty = "reward"
    beta: float = 0.1  # what a nat of KL costs, in the reward's unit
    steps: int = 40
    questions_per_step: int = 16
    samples: int = 8  # answers a question
    passes: int = 2  # updates from the same samples; of PPO and GRPO, whose clipping is for this
    clip: float = 0.2
    learning_rate: float = 3e-5
    evaluate_every: int = 10  # steps; before the first and after the last step it is done anyway
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One step, on its own questions and before the update."""

    step: int  # from 1
    loss: float  # of the last update
    kl: float  # to the reference, in nats, exactly
    reward: float  # mean over the policy's answers, exactly


@dataclass
class History:
    """What happened."""

    steps: list[Step] = field(default_factory=list)
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)  # (steps done, on the held-out questions)


# ---- one policy-gradient step, of any policy whose actions are listed -------------------------------------------
@dataclass(frozen=True)
class Rollout:
    """What a policy did: (batch, samples) each."""

    actions: torch.Tensor
    log_p: torch.Tensor  # of them, under the policy that sampled
    log_ref: torch.Tensor
    advantage: torch.Tensor


@torch.no_grad()
def roll_out(
    log_p: torch.Tensor,
    log_ref: torch.Tensor,
    reward: torch.Tensor,
    settings: UpdateSettings,
    generator: torch.Generator,
) -> Rollout:
    """Sample answers and say how much better than its question's others each is.

    Args:
        log_p, log_ref, reward: (batch, actions).
        settings: method, penalty, beta and samples.
        generator: of the CPU.
    """
    actions = sample(log_p, settings.samples, generator)
    here, there, value = (table.gather(1, actions) for table in (log_p, log_ref, reward))
    if settings.penalty == "reward":
        value = penalised(value, here, there, settings.beta)
    advantage = group_advantage(value) if settings.method == "grpo" else leave_one_out(value)
    return Rollout(actions, here, there, advantage)


def policy_loss(log_p: torch.Tensor, log_ref: torch.Tensor, rollout: Rollout, settings: UpdateSettings) -> torch.Tensor:
    """The loss of a sampled method: a scalar.

    Args:
        log_p: of the policy as it is now, (batch, actions).
        log_ref: (batch, actions).
        rollout: what an earlier policy did.
        settings: method, penalty, beta and clip.
    """
    here = log_p.gather(1, rollout.actions)
    if settings.method == "reinforce":
        loss = reinforce_loss(here, rollout.advantage)
    else:
        loss = ppo_loss(here, rollout.log_p, rollout.advantage, settings.clip)
    if settings.penalty == "exact":
        return loss.mean() + settings.beta * exact_kl(log_p, log_ref).mean()
    if settings.penalty == "sampled":
        return loss.mean() + settings.beta * sampled_kl(here, rollout.log_ref).mean()
    return loss.mean()


# ---- the loops -------------------------------------------------------------------------------------------------
# Of a step: its questions' places among the references, their batch, and, (batch, actions) each, the policy's log
# probabilities before the update, with their gradient, and the rewards.
_Turn = tuple[list[int], ReferenceBatch, torch.Tensor, torch.Tensor]


@dataclass
class Learner:
    """A policy under way, and what all loops do alike around the loss that each has of its own."""

    model: nn.Module  # changed in place, on any device
    tokenizer: PreTrainedTokenizerFast
    # Of the questions to learn on: what `measure.ask_reference` kept of the model as it was fine-tuned, which is what
    # KL is measured against.
    references: Sequence[Reference]
    # Of every action of a batch, such as a `reward.RewardModel` on the model's device; where a loop does not learn from
    # it, the policy is measured with it all the same.
    reward: Reward
    settings: UpdateSettings
    held_out: Sequence[Reference] = ()  # of the questions to measure it on, every few steps
    history: History = field(default_factory=History)
    loss: float = float("nan")  # of the last update

    def __post_init__(self) -> None:
        """Make an optimizer of the weights that may change."""
        self.weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, self.settings.learning_rate, weight_decay=0)
        self.device = next(self.model.parameters()).device

    def steps(self, candidates: Sequence[int]) -> Iterator[_Turn]:
        """Each step's turn, of questions drawn from these places; what it came to is kept when the next begins."""
        draws, settings = _draws(candidates, self.settings), self.settings
        with evaluation_mode(self.model), progress_bar(total=settings.steps, desc="policy update", unit="step") as bar:
            for step in range(1, settings.steps + 1):
                if (step - 1) % settings.evaluate_every == 0:
                    self.measure(step - 1)
                chosen = next(draws)
                batch = collate([self.references[i] for i in chosen], self.device)
                log_p = self.policy(batch)
                with torch.no_grad():
                    value = self.reward(batch)
                yield chosen, batch, log_p, value
                before = log_p.detach()
                kl, earned = exact_kl(before, batch.log_ref).mean(), expectation(before, value).mean()
                self.history.steps.append(Step(step, self.loss, float(kl), float(earned)))
                bar.update()
            self.measure(settings.steps)

    def policy(self, batch: ReferenceBatch) -> torch.Tensor:
        """The log probabilities as they are now, (batch, actions)."""
        return policy(self.model, self.tokenizer, batch.questions)

    def learn(self, loss: torch.Tensor) -> None:
        """One update of the weights."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP_NORM)
        self.optimizer.step()
        self.loss = float(loss.detach())

    def measure(self, step: int) -> None:
        """See what the policy is worth after so many steps."""
        if self.held_out:
            self.history.outcomes.append((step, outcome(self.policy, self.held_out, self.reward, self.device)))


def update_policy(learner: Learner) -> History:
    """Change a span model so that its answers earn more reward: REINFORCE, PPO, GRPO, or the exact gradient."""
    settings, generator = learner.settings, torch.Generator().manual_seed(learner.settings.seed)
    passes = settings.passes if settings.method in ("ppo", "grpo") else 1
    for _, batch, log_p, value in learner.steps(range(len(learner.references))):
        if settings.method != "exact":
            rollout = roll_out(log_p, batch.log_ref, value, settings, generator)
        for again in range(passes):
            now = learner.policy(batch) if again else log_p
            if settings.method == "exact":
                loss = -objective(now, batch.log_ref, value, settings.beta).mean()
            else:
                loss = policy_loss(now, batch.log_ref, rollout, settings)
            learner.learn(loss)
    return learner.history


def train_dpo(learner: Learner, pairs: Sequence[Pair]) -> History:
    """Change a span model so that it prefers what people prefer, without a reward model or sampling (DPO).

    Args:
        learner: what its settings say of methods and samples has no use here.
        pairs: of its questions; a step takes all pairs of its questions.
    """
    ranked = by_question(pairs)
    for chosen, batch, log_p, _ in learner.steps(list(ranked)):
        table = [(row, *pair[1:]) for row, i in enumerate(chosen) for pair in ranked[i]]
        rows, better, worse = torch.tensor(table, device=log_p.device).unbind(1)
        policy_says, reference_says = ((p[rows, better], p[rows, worse]) for p in (log_p, batch.log_ref))
        learner.learn(dpo_loss(*policy_says, *reference_says, learner.settings.beta).mean())
    return learner.history


def train_supervised(learner: Learner) -> History:
    """Change a span model by the likelihood of people's answers: what the same data give as ordinary labels.

    Every annotator's answer counts; a question none of whose answers is an action is left out.
    """
    given = [[action for action in answer_actions(each.question) if action is not None] for each in learner.references]
    for chosen, _, log_p, _ in learner.steps([i for i, actions in enumerate(given) if actions]):
        likelihoods = [log_p[row, given[i]].mean() for row, i in enumerate(chosen)]
        learner.learn(-torch.stack(likelihoods).mean())
    return learner.history


def _draws(candidates: Sequence[int], settings: UpdateSettings) -> Iterator[list[int]]:
    """The questions of each step: all in random order, then all again in another; no question twice in a step."""
    rng = np.random.default_rng(settings.seed)
    count = min(settings.questions_per_step, len(candidates))
    if not count:
        raise ValueError("there is no question to learn on")
    while True:
        order = rng.permutation(np.asarray(candidates)).tolist()
        yield from (order[at : at + count] for at in range(0, len(order) - count + 1, count))
