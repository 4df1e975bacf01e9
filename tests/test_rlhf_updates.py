"""Policy updates: on a toy, each method against the known optimum; on a small model, what must and must not happen."""

import pytest
import torch
from rlhf_toys import normal, random_policy

from qa_helpers.rlhf.losses import dpo_loss
from qa_helpers.rlhf.policy import closed_form, exact_kl, objective, optimum
from qa_helpers.rlhf.updates import (
    UpdateSettings,
    policy_loss,
    roll_out,
)

# ---- a policy that is a table of a dozen spans --------------------------------------------------------------------
BETA = 0.5


@pytest.fixture
def toy():
    """The reference of one question with twelve spans, and their rewards."""
    return random_policy(1, 12, seed=1), normal(1, 12, seed=2)


def share_of_the_gain(log_p, log_ref, reward, beta=BETA):
    """How much of what the objective can gain over the reference a policy has gained."""
    now, first = (objective(one, log_ref, reward, beta) for one in (log_p, log_ref))
    return float(((now - first) / (optimum(log_ref, reward, beta) - first)).detach())


def optimise(log_ref, reward, settings, rate=0.05):
    """The same updates as of a model, but of a free number for each span; the rate falls to 0."""
    scores = log_ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([scores], rate)
    generator = torch.Generator().manual_seed(settings.seed)
    passes = 1 if settings.method in ("reinforce", "exact") else settings.passes
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / settings.steps)
        if settings.method != "exact":
            rollout = roll_out(scores.log_softmax(1), log_ref, reward, settings, generator)
        for _ in range(passes):
            log_p = scores.log_softmax(1)
            if settings.method == "exact":
                loss = -objective(log_p, log_ref, reward, settings.beta).mean()
            else:
                loss = policy_loss(log_p, log_ref, rollout, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return scores.detach().log_softmax(1)


@pytest.mark.parametrize(
    ("method", "penalty"),
    [
        ("exact", "reward"),
        ("reinforce", "reward"),
        ("reinforce", "exact"),
        ("ppo", "reward"),
        ("ppo", "exact"),
        ("grpo", "reward"),
    ],
)
def test_each_method_ends_within_one_percent_of_the_optimum(toy, method, penalty):
    settings = UpdateSettings(method, penalty, BETA, steps=600, samples=16)
    found = optimise(*toy, settings)
    assert float(exact_kl(found, toy[0])) > 0.2  # there was a way to go
    assert 0.99 < share_of_the_gain(found, *toy) <= 1


def test_grpo_as_published_ends_elsewhere_and_does_not_see_the_rewards_scale(toy):
    log_ref, reward = toy
    settings = UpdateSettings("grpo", "sampled", BETA, steps=600, samples=16)
    one, ten = (optimise(log_ref, scale * reward, settings) for scale in (1, 10))
    assert float(exact_kl(one, ten)) < 0.01
    assert float(exact_kl(closed_form(log_ref, reward, BETA), closed_form(log_ref, 10 * reward, BETA))) > 0.2
    assert share_of_the_gain(ten, log_ref, 10 * reward) < 0.97


def test_with_a_very_large_beta_nothing_moves(toy):
    for method in ("exact", "reinforce"):
        settings = UpdateSettings(method, "reward", 1e4, steps=300)
        assert float(exact_kl(optimise(*toy, settings), toy[0])) < 1e-4


def test_dpo_on_all_pairs_ends_at_the_closed_form(toy):
    log_ref, reward = toy
    better, worse = torch.cartesian_prod(torch.arange(12), torch.arange(12)).unbind(1)
    weight = torch.sigmoid(reward[0, better] - reward[0, worse])  # how often people rank them so
    scores = log_ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([scores], max_iter=500, tolerance_grad=1e-9, tolerance_change=0)

    def loss():
        optimizer.zero_grad()
        log_p = scores.log_softmax(1)[0]
        value = dpo_loss(log_p[better], log_p[worse], log_ref[0, better], log_ref[0, worse], BETA)
        value = (weight * value).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(scores.detach().log_softmax(1), closed_form(log_ref, reward, BETA), atol=1e-3, rtol=0)
    assert float(exact_kl(closed_form(log_ref, reward, BETA), log_ref)) > 0.2
