"""The losses: cases by hand, gradients, and what they are on average over all that can be sampled."""

import itertools
import math

import pytest
import torch
from rlhf_toys import normal, random_policy

from qa_helpers.rlhf.losses import (
    dpo_loss,
    group_advantage,
    leave_one_out,
    penalised,
    ppo_loss,
    reinforce_loss,
    sampled_kl,
)
from qa_helpers.rlhf.policy import exact_kl, objective

BETA = 0.3


def row(*values, **options):
    return torch.tensor([values], dtype=torch.float64, **options)


# ---- by hand ---------------------------------------------------------------------------------------------------
def test_the_penalty_is_beta_times_the_log_ratio():
    assert penalised(row(1.0, 2.0), row(-1.0, -3.0), row(-2.0, -3.0), 0.5).tolist() == [[0.5, 2.0]]


def test_each_sample_is_held_against_the_others():
    torch.testing.assert_close(leave_one_out(row(1.0, 2.0, 6.0)), row(1 - 4, 2 - 3.5, 6 - 1.5))


def test_a_groups_advantage_is_in_standard_deviations_and_blind_to_scale():
    torch.testing.assert_close(group_advantage(row(1.0, 2.0, 3.0)), row(-1.0, 0.0, 1.0), atol=1e-3, rtol=0)
    rewards = normal(3, 5, seed=1)
    torch.testing.assert_close(group_advantage(10 * rewards + 7), group_advantage(rewards), atol=1e-3, rtol=0)
    assert group_advantage(row(2.0, 2.0)).tolist() == [[0, 0]]


def test_reinforce_weighs_log_probabilities():
    log_p = row(-1.0, -2.0, requires_grad=True)
    loss = reinforce_loss(log_p, row(3.0, -0.5))
    assert loss.tolist() == [[3.0, -1.0]]
    assert torch.autograd.grad(loss.sum(), log_p)[0].tolist() == [[-3.0, 0.5]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # nothing moved yet: REINFORCE
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # a good answer is likelier by enough
        (0.5, 2.0, -1.0, -1.0),  # a good answer became less likely: to be undone
        (0.5, -2.0, 1.6, 0.0),  # a bad answer is less likely by enough
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_ppo_gains_nothing_from_moving_further_than_its_clip(ratio, advantage, loss, gradient):
    log_p = row(math.log(ratio) - 1, requires_grad=True)
    found = ppo_loss(log_p, row(-1.0), row(advantage), 0.2)
    assert float(found.detach()) == pytest.approx(loss)
    assert float(torch.autograd.grad(found.sum(), log_p)[0]) == pytest.approx(gradient)


def test_grpos_penalty():
    difference = math.log(2)  # the reference finds it twice as likely
    assert float(sampled_kl(row(-2.0), row(-2.0 + difference))) == pytest.approx(2 - difference - 1)
    assert float(sampled_kl(row(-2.0), row(-2.0))) == 0
    assert (sampled_kl(normal(1, 100, seed=1), normal(1, 100, seed=2)) >= 0).all()


def test_dpo_is_the_pairs_likelihood_if_the_log_ratio_were_the_reward():
    found = dpo_loss(row(-1.0), row(-4.0), row(-2.0), row(-3.0), 0.5)
    assert float(found) == pytest.approx(-math.log(1 / (1 + math.exp(-0.5 * (1 - -1)))))
    assert float(dpo_loss(row(-1.0), row(-4.0), row(-1.0), row(-4.0), 0.5)) == pytest.approx(math.log(2))


# ---- gradients -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["reinforce", "ppo", "kl", "dpo"])
def test_gradients_are_autograds_numeric_ones(loss):
    log_p, other, third, fourth = (normal(2, 4, seed=seed) for seed in range(4))
    function = {
        "reinforce": lambda x: reinforce_loss(x, other),
        "ppo": lambda x: ppo_loss(x, log_p + 0.1 * third, other, 0.2),
        "kl": lambda x: sampled_kl(x, other),
        "dpo": lambda x: dpo_loss(x, other, third, fourth, BETA),
    }[loss]
    assert torch.autograd.gradcheck(function, log_p.clone().requires_grad_())


def test_what_is_constant_gets_no_gradient():
    log_p, old, advantage = (normal(1, 3, seed=seed).requires_grad_() for seed in range(3))
    for loss in (ppo_loss(log_p, old, advantage, 0.2), reinforce_loss(log_p, advantage), sampled_kl(log_p, old)):
        assert torch.autograd.grad(loss.sum(), [old, advantage], allow_unused=True) == (None, None)


# ---- on average over all samples -------------------------------------------------------------------------------
def mean_gradient(loss, scores, samples):
    """The mean of a sampled loss's gradient over everything that can be sampled, each as often as it is."""
    total = torch.zeros_like(scores)
    for drawn in itertools.product(range(scores.shape[1]), repeat=samples):
        actions = torch.tensor([drawn])
        log_p = scores.log_softmax(1)
        here = log_p.gather(1, actions)
        [gradient] = torch.autograd.grad(loss(here, actions).mean(), scores)
        total += gradient * here.detach().sum().exp()
    return total


@pytest.fixture
def toy():
    """(scores of a policy, the reference, rewards) of four actions."""
    return normal(1, 4, seed=1).requires_grad_(), random_policy(1, 4, 2), normal(1, 4, seed=3)


def objectives_gradient(scores, log_ref, reward):
    return torch.autograd.grad(-objective(scores.log_softmax(1), log_ref, reward, BETA).sum(), scores)[0]


@pytest.mark.parametrize("samples", [2, 3])
def test_reinforce_with_the_penalty_in_the_reward_follows_the_objectives_gradient(toy, samples):
    scores, log_ref, reward = toy

    def loss(here, actions):
        value = penalised(reward.gather(1, actions), here.detach(), log_ref.gather(1, actions), BETA)
        return reinforce_loss(here, leave_one_out(value))

    torch.testing.assert_close(mean_gradient(loss, scores, samples), objectives_gradient(*toy))


def test_so_does_ppo_before_anything_has_moved(toy):
    scores, log_ref, reward = toy

    def loss(here, actions):
        value = penalised(reward.gather(1, actions), here.detach(), log_ref.gather(1, actions), BETA)
        return ppo_loss(here, here.detach(), leave_one_out(value), 0.2)

    torch.testing.assert_close(mean_gradient(loss, scores, 2), objectives_gradient(*toy))


def test_the_advantage_must_not_count_the_sample_itself(toy):
    scores, log_ref, reward = toy

    def loss(here, actions):
        value = penalised(reward.gather(1, actions), here.detach(), log_ref.gather(1, actions), BETA)
        return reinforce_loss(here, value - value.mean(1, keepdim=True))

    torch.testing.assert_close(mean_gradient(loss, scores, 2), objectives_gradient(*toy) / 2)


def test_grpos_penalty_is_the_kl_on_average_but_its_gradient_that_of_the_other_direction(toy):
    scores, log_ref, _ = toy
    log_p = scores.log_softmax(1)
    torch.testing.assert_close((log_p.exp() * sampled_kl(log_p, log_ref)).sum(1), exact_kl(log_p, log_ref))
    found = mean_gradient(lambda here, actions: sampled_kl(here, log_ref.gather(1, actions)), scores, 1)
    [this], [other] = (
        torch.autograd.grad(kl.sum(), scores, retain_graph=True)
        for kl in (exact_kl(log_p, log_ref), exact_kl(log_ref, log_p))
    )
    torch.testing.assert_close(found, other)
    assert float((found - this).abs().max()) > 0.05
