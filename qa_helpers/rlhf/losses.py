"""The losses of a policy update: small pure functions, each with its paper.

All take log probabilities of what was sampled and give a loss for each sample; the caller takes the mean. Rewards,
advantages and the log probabilities of the reference and of the policy that sampled are constants to them.

What they simplify: an answer is one action, so that there is one ratio an answer where language models have one a
token; no value network is learned, the samples of one question are each other's baseline instead.
"""

import torch
from torch.nn.functional import logsigmoid

EPSILON = 1e-4  # added to a group's standard deviation, so that equal rewards give no advantage instead of NaN


# ---- from rewards to advantages --------------------------------------------------------------------------------
def penalised(reward: torch.Tensor, log_p: torch.Tensor, log_ref: torch.Tensor, beta: float) -> torch.Tensor:
    """A sample's reward less its KL penalty, reward - beta * (log pi - log ref): (batch, samples).

    Its mean over samples is the objective. Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, equation 2.
    """
    return reward - beta * (log_p - log_ref)


def leave_one_out(reward: torch.Tensor) -> torch.Tensor:
    """Each reward less the mean of the other samples' of its question: (batch, samples), at least two samples.

    A baseline that does not depend on the sample itself leaves the gradient unbiased and makes it less noisy.
    Kool et al. 2019; for RLHF Ahmadian et al. 2024 (RLOO), arXiv:2402.14740.
    """
    samples = reward.shape[1]
    return (reward - reward.mean(1, keepdim=True)) * samples / (samples - 1)


def group_advantage(reward: torch.Tensor) -> torch.Tensor:
    """GRPO's advantage: a reward's distance from its question's mean in standard deviations. (batch, samples).

    Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, section 4.1.2; it goes into `ppo_loss`. Dividing makes it blind
    to the reward's scale. With the KL penalty in the reward that changes only the steps' length; with the penalty
    beside it, as published (`sampled_kl`), a reward ten times as large leads to the same policy, which is then not
    the optimum of the objective for that beta.
    """
    return (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + EPSILON)


# ---- from advantages to losses ---------------------------------------------------------------------------------
def reinforce_loss(log_p: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Minus advantage times log probability: its gradient is the policy gradient's (Williams 1992)."""
    return -advantage.detach() * log_p


def ppo_loss(log_p: torch.Tensor, old_log_p: torch.Tensor, advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """PPO's clipped objective, negated: no gain from moving a probability by more than `clip` of it in one update.

    Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    ratio = (log_p - old_log_p.detach()).exp()
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def sampled_kl(log_p: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    """GRPO's KL penalty, ref / pi - log(ref / pi) - 1 of each sample, for adding to the loss beta times.

    Schulman 2020, "Approximating KL Divergence"; arXiv:2402.03300, equation 4. Never negative, and its mean over
    samples from pi is KL(pi || ref); but the mean of its *gradient* is that of KL(ref || pi), because which samples
    are drawn changes with pi, too, and no gradient goes through that (Tang and Munos 2025, arXiv:2506.09477).
    """
    difference = log_ref.detach() - log_p
    return difference.exp() - difference - 1


def dpo_loss(
    better: torch.Tensor, worse: torch.Tensor, ref_better: torch.Tensor, ref_worse: torch.Tensor, beta: float
) -> torch.Tensor:
    """Minus the log likelihood of the pairs' ranking if beta * log(pi / ref) were the reward: (pairs,).

    Rafailov et al. 2023, arXiv:2305.18290, equation 7. No reward model, no sampling.

    Args:
        better, worse: the policy's log probabilities of the answer ranked higher and of the other, (pairs,).
        ref_better, ref_worse: the reference's.
        beta: as in the objective.
    """
    return -logsigmoid(beta * ((better - ref_better) - (worse - ref_worse)))
