"""Policy updates: on a toy, each method against the known optimum; on a small model, what must and must not happen."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import pytest
import torch
from rlhf_toys import early, normal, random_policy

from qa_helpers.rlhf import preferences, updates
from qa_helpers.rlhf.losses import dpo_loss
from qa_helpers.rlhf.measure import collate, outcome
from qa_helpers.rlhf.policy import closed_form, exact_kl, expectation, objective, optimum, policy, to_span
from qa_helpers.rlhf.preferences import answer_actions, flip, make_pairs, policy_candidates, split_by_article
from qa_helpers.rlhf.reward import RewardModel, accuracy, margins, train_reward_model
from qa_helpers.rlhf.updates import (
    Learner,
    UpdateSettings,
    policy_loss,
    roll_out,
    train_dpo,
    train_supervised,
    update_policy,
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
    settings = UpdateSettings(method, penalty, BETA, steps=400, samples=16)
    found = optimise(*toy, settings)
    assert float(exact_kl(found, toy[0])) > 0.2  # there was a way to go
    assert 0.99 < share_of_the_gain(found, *toy) <= 1


def test_grpo_as_published_ends_elsewhere_and_does_not_see_the_rewards_scale(toy):
    log_ref, reward = toy
    settings = UpdateSettings("grpo", "sampled", BETA, steps=400, samples=16)
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


# ---- a small model ----------------------------------------------------------------------------------------------
SETTINGS = UpdateSettings("ppo", steps=15, questions_per_step=8, learning_rate=5e-3, evaluate_every=100)


@pytest.fixture(scope="module")
def pairs(references):
    """Rankings by people who prefer answers that begin early."""
    batch = collate(references)
    with patch.multiple(preferences, BEST=4, SAMPLES=8, RANDOM=4, MARGIN=0.05, MOST_PAIRS=20):
        proposed = policy_candidates(batch.questions, batch.log_ref, torch.Generator().manual_seed(0))
        liked = [[replace(one, agreement=1 - to_span(one.action)[0] / 200) for one in row] for row in proposed]
        return make_pairs(liked)


def gain(model, tokenizer, references, reward=early):
    """By how much the model's mean reward is above the reference's."""
    found = outcome(lambda batch: policy(model, tokenizer, batch.questions), references, reward)
    return float((found.reward - outcome(lambda batch: batch.log_ref, references, reward).reward).mean())


@pytest.mark.parametrize("method", ["exact", "reinforce", "ppo", "grpo"])
def test_each_method_earns_more_reward_also_on_questions_it_did_not_learn_on(method, references, tokenizer, tiny_model):
    model = tiny_model()
    settings = replace(SETTINGS, method=method)
    history = update_policy(Learner(model, tokenizer, references[:32], early, settings, references[32:]))
    [(first, before), (last, after)] = history.outcomes
    assert (first, last) == (0, SETTINGS.steps)
    assert after.reward.mean() > before.reward.mean() + 0.3
    first_value, last_value = ((one.reward - SETTINGS.beta * one.kl).mean() for one in (before, after))
    assert last_value > first_value + 0.2
    assert history.steps[0].kl == pytest.approx(0, abs=1e-4)  # dropout is off, and the reference is the model itself
    assert history.steps[-1].kl > 0.01
    assert history.steps[-1].reward > history.steps[0].reward


def test_with_a_very_large_beta_the_policy_does_not_move(references, tokenizer, tiny_model):
    kl = {}
    for beta in (1e4, 0.1):
        settings = replace(SETTINGS, method="reinforce", beta=beta, learning_rate=1e-3)
        kl[beta] = update_policy(Learner(tiny_model(), tokenizer, references, early, settings)).steps[-1].kl
    assert kl[1e4] < 0.005
    assert kl[0.1] > 10 * kl[1e4]


def test_shuffled_rankings_teach_nothing_and_honest_ones_do(references, pairs, tokenizer, tiny_model):
    titles = [one.question.row["title"] for one in references]
    sides = ({row["title"] for row in side} for side in split_by_article([one.question.row for one in references], 0.4))
    train, held = ({i for i, title in enumerate(titles) if title in side} for side in sides)
    found = {}
    for share in (0.0, 0.5):
        parts = ([pair for pair in pairs if pair.question in part] for part in (train, held))
        ranked = [(references, flip(part, share)) for part in parts]
        judge, model = RewardModel(16, 16), tiny_model()
        train_reward_model(judge, *ranked, learning_rate=1e-2)
        right = accuracy(margins(judge, references, [pair for pair in pairs if pair.question in held]))
        update_policy(Learner(model, tokenizer, [references[i] for i in sorted(train)], judge, SETTINGS))
        found[share] = right, gain(model, tokenizer, [references[i] for i in sorted(held)])
    assert found[0.0][0] > 0.65
    assert found[0.0][1] > 0.6
    assert abs(found[0.5][0] - 0.5) < 0.1
    assert found[0.5][1] < 0.3


def test_dpo_learns_the_rankings_and_from_shuffled_ones_nothing(references, pairs, tokenizer, tiny_model):
    gains = []
    for share in (0.0, 0.5):
        model = tiny_model()
        train_dpo(Learner(model, tokenizer, references, early, SETTINGS), flip(pairs, share))
        gains.append(gain(model, tokenizer, references))
    assert gains[0] > 0.6
    assert gains[1] < 0.3


def test_supervised_updates_make_peoples_answers_likelier(references, tokenizer, tiny_model):
    model = tiny_model()
    history = train_supervised(Learner(model, tokenizer, references, early, replace(SETTINGS, steps=30)))
    batch = collate(references)
    target = torch.zeros_like(batch.log_ref)
    for row, question in enumerate(batch.questions):
        for action in answer_actions(question):
            if action is not None:
                target[row, action] = 1
    now = policy(model.eval(), tokenizer, batch.questions).detach()
    before, after = (expectation(log_p, target).log().mean() for log_p in (batch.log_ref, now))
    assert float(after - before) > 0.3
    assert history.steps[-1].loss < history.steps[0].loss


def test_supervised_loss_is_the_mean_over_annotators(references, tokenizer, tiny_model):
    settings = replace(SETTINGS, steps=1, questions_per_step=1)
    question = references[0].question
    actions = torch.tensor([action for action in answer_actions(question) if action is not None])
    history = train_supervised(Learner(tiny_model(), tokenizer, references[:1], early, settings))
    expected = -float(collate(references[:1]).log_ref[0, actions].mean())
    assert history.steps[0].loss == pytest.approx(expected, rel=1e-2)


def test_the_same_seed_gives_the_same_policy_and_the_model_is_left_as_it_was(references, tokenizer, tiny_model):
    def run(seed):
        model = tiny_model().train()
        settings = replace(SETTINGS, steps=2, seed=seed)
        history = update_policy(Learner(model, tokenizer, references, early, settings))
        assert model.training
        return history.steps

    assert run(1) == run(1) != run(2)


def test_frozen_weights_stay(references, tokenizer, tiny_model):
    model = tiny_model()
    model.bert.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update_policy(Learner(model, tokenizer, references, early, replace(SETTINGS, steps=2)))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["qa_outputs.weight", "qa_outputs.bias"]


def test_every_question_has_its_turn_before_any_has_a_second():
    steps = list(islice(updates._draws(range(10, 30), replace(SETTINGS, questions_per_step=5)), 8))
    assert [len(set(step)) for step in steps] == [5] * 8
    assert Counter(place for step in steps[:4] for place in step) == Counter(range(10, 30))
    assert steps[:4] != steps[4:]
    [both] = islice(updates._draws([3, 4], SETTINGS), 1)
    assert sorted(both) == [3, 4]
    with pytest.raises(ValueError, match="no question"):
        next(updates._draws([], SETTINGS))
