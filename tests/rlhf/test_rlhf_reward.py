"""The reward model: each span scored as it would be alone; what is planted is learned, shuffled rankings are not."""

import math

import numpy as np
import pytest
import torch
from rlhf_toys import made_up_references, normal, random_policy, spans_of

from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.rlhf.measure import ask_reference, collate
from qa_helpers.rlhf.policy import exact_kl, expectation, one_window, policy, to_span
from qa_helpers.rlhf.preferences import Candidate, Pair, flip, longer_by, make_pairs, split_by_article
from qa_helpers.rlhf.reward import (
    RewardModel,
    accuracy,
    bradley_terry_loss,
    length_correlation,
    log_prob_margins,
    margins,
    ranking_calibration,
    train_reward_model,
)

UNITS = 8
OPTIONS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(scope="module")
def references():
    return made_up_references(120, UNITS)


def plant(references, worth):
    """Pairs ranked by `worth(reference, start, length)`, among twelve spans of each question."""
    rng = np.random.default_rng(0)
    candidates = []
    for reference in references:
        actions = rng.permutation(spans_of(reference.question.tokens))[:12].tolist()
        candidates.append([Candidate(a, "", float(worth(reference, *to_span(a)))) for a in actions])
    return make_pairs(candidates)


def by_state(reference, start, length):
    return reference.states[start, 0] - reference.states[start + length - 1, 1]


def divide(references, pairs):
    sides = split_by_article([one.question.row for one in references], 0.4)
    titles = [{row["title"] for row in side} for side in sides]
    return [[pair for pair in pairs if references[pair.question].question.row["title"] in side] for side in titles]


def fresh(seed=0, length=True, log_prob=True):
    model = RewardModel(UNITS, 16, length, log_prob, seed)
    if length:
        torch.nn.init.normal_(model.length.weight, generator=torch.Generator().manual_seed(seed))  # as if trained
    return model


# ---- the reference ---------------------------------------------------------------------------------------------
def test_what_the_reference_said_is_its_policy(tokenizer, course, tiny_model, monkeypatch):
    monkeypatch.setattr("qa_helpers.rlhf.measure.BATCH_SIZE", 2)
    model = tiny_model().train()
    questions, _ = one_window(course[:40:8], tokenizer)
    references = ask_reference(model, tokenizer, questions)
    assert model.training
    assert [one.question for one in references] == questions
    batch = collate(references)
    expected = policy(model.eval(), tokenizer, questions).detach()
    torch.testing.assert_close(batch.log_ref, expected, atol=5e-3, rtol=1e-3)
    assert float(exact_kl(batch.log_ref, expected).abs().max()) < 1e-4
    for reference, question in zip(references, questions, strict=True):
        assert reference.states.shape == (question.tokens, 16)
        assert reference.states.dtype == torch.float16
        assert reference.states.untyped_storage().nbytes() == 2 * 16 * question.tokens  # no view of a padded batch


# ---- scores ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("length", "log_prob"), OPTIONS)
def test_a_span_scores_what_its_states_say(references, length, log_prob):
    model, batch = fresh(1, length, log_prob), collate(references[:3])
    for row, reference in enumerate(references[:3]):
        states = reference.states.float()
        actions = spans_of(len(states))
        found = model.score(batch, torch.tensor(row), torch.tensor(actions))
        for action, score in zip(actions, found, strict=True):
            start, count = to_span(action)
            span = states[start : start + count]
            units = model.first(span[0]) + model.last(span[-1]) + model.mean(span.mean(0))
            if length:
                units = units + model.length.weight[count - 1]
            if log_prob:
                units = units + model.log_prob(batch.log_ref[row, action][None] / 10)
            torch.testing.assert_close(score, model.out(torch.nn.functional.gelu(units))[0], atol=1e-4, rtol=1e-4)


def test_rewards_of_all_spans_are_the_scores_less_their_mean_under_the_reference(references):
    model, batch = fresh(1), collate(references[:5])
    reward = model(batch).detach()
    assert reward.shape == batch.log_ref.shape
    torch.testing.assert_close(expectation(batch.log_ref, reward), torch.zeros(5), atol=1e-5, rtol=0)
    assert torch.equal(reward[batch.log_ref.isneginf()], torch.zeros(int(batch.log_ref.isneginf().sum())))
    for row, reference in enumerate(references[:5]):
        actions = torch.tensor(spans_of(reference.question.tokens))
        difference = reward[row, actions] - model.score(batch, torch.tensor(row), actions)
        assert float(difference.detach().std()) < 1e-5
        alone = model(collate([reference])).detach()[0]
        torch.testing.assert_close(reward[row, : len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_weights_are_drawn_by_seed_and_nothing_else_is_disturbed():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = RewardModel(UNITS, seed=1), RewardModel(UNITS, seed=1), RewardModel(UNITS, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.first.weight, same.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


def test_bradley_terry_by_hand():
    margin = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64, requires_grad=True)
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert bradley_terry_loss(margin).tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(bradley_terry_loss, margin)


# ---- learning --------------------------------------------------------------------------------------------------
def test_a_planted_preference_is_learned_and_measured_against_the_others(references):
    train, held_out = divide(references, plant(references, by_state))
    model = RewardModel(UNITS, 32)
    history = train_reward_model(model, (references, train), (references, held_out), learning_rate=3e-3)
    learned = accuracy(margins(model, references, held_out))
    assert learned > 0.85
    assert abs(accuracy(-longer_by(held_out)) - 0.5) < 0.1
    assert abs(accuracy(log_prob_margins(references, held_out)) - 0.5) < 0.1
    assert learned > history[0].accuracy + 0.1
    assert ranking_calibration(margins(model, references, held_out)).error < 0.15


def test_from_shuffled_rankings_nothing_is_learned(references):
    train, held_out = divide(references, plant(references, by_state))
    model = RewardModel(UNITS, 32)
    shuffled = ((references, flip(pairs, 0.5)) for pairs in (train, held_out))
    train_reward_model(model, *shuffled, learning_rate=3e-3)
    assert len(held_out) > 400
    assert abs(accuracy(margins(model, references, held_out)) - 0.5) < 0.1


def test_it_stops_early_and_keeps_the_weights_that_were_best_on_the_held_out_pairs(references):
    train, held_out = divide(references, plant(references, by_state))
    model = RewardModel(UNITS, 64)
    noise = flip(train, 0.5)  # to be learned by heart
    history = train_reward_model(model, (references, noise), (references, held_out), 50, patience=2, learning_rate=1e-2)
    losses = [epoch.loss for epoch in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 3 < 51
    now = bradley_terry_loss(torch.from_numpy(margins(model, references, held_out))).mean()
    assert float(now) == pytest.approx(losses[best], rel=1e-5)
    assert history[-1].train_loss < history[1].train_loss
    assert losses[-1] > losses[best]


def test_training_is_repeatable(references):
    train, held_out = divide(references[:40], plant(references[:40], by_state))
    ranked = ((references, train), (references, held_out))
    one, same, other = (train_reward_model(RewardModel(UNITS), *ranked, epochs=2, seed=seed)[1:] for seed in (3, 3, 4))
    assert one == same != other


def test_without_pairs_there_is_nothing_to_learn(references):
    with pytest.raises(ValueError, match="0 and 1"):
        train_reward_model(RewardModel(UNITS), (references, []), (references, [Pair(0, 0, 1)]))


def test_a_model_that_sees_the_length_learns_it_and_its_rewards_go_with_it(references):
    train, held_out = divide(references, plant(references, lambda _, __, length: -length))
    model = RewardModel(UNITS, 16, log_prob=False)
    train_reward_model(model, (references, train), (references, held_out), learning_rate=1e-2)
    assert accuracy(-longer_by(held_out)) == 1
    assert accuracy(margins(model, references, held_out)) > 0.95
    batch = collate(references[:20])
    assert length_correlation(batch.log_ref, model(batch)) < -0.8


# ---- what it learned -------------------------------------------------------------------------------------------
def test_accuracy_counts_a_draw_as_half():
    assert accuracy(np.array([1.0, -2.0, 0.0, 0.5])) == (2 + 0.5) / 4


def test_the_references_own_margins_are_differences_of_log_probability(references):
    pairs = plant(references[:10], by_state)
    log_ref = collate(references[:10]).log_ref
    expected = [float(log_ref[pair.question, pair.better] - log_ref[pair.question, pair.worse]) for pair in pairs]
    assert log_prob_margins(references, pairs).tolist() == pytest.approx(expected, abs=1e-4)


def test_margins_are_those_of_each_pair_alone_in_any_order(references):
    model = fresh(2)
    pairs = plant(references[:60], by_state)[::-1]
    assert len(pairs) > 300
    found = margins(model, references, pairs)
    for i in range(0, len(pairs), 50):
        assert margins(model, references, pairs[i : i + 1])[0] == pytest.approx(found[i], abs=1e-4)


def test_true_probabilities_are_calibrated_and_exaggerated_ones_are_not():
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 2, 20_000))
    signed = np.where(rng.random(20_000) < 1 / (1 + np.exp(-size)), size, -size)  # as often as it says, people agree
    assert ranking_calibration(signed).error < 0.01
    assert ranking_calibration(5 * signed).error > 0.1
    assert int(ranking_calibration(signed).questions[:2].sum()) == 0


def test_length_correlation_is_one_of_length_itself_and_blind_to_the_question():
    log_p = random_policy(3, 4 * MAX_ANSWER_TOKENS, 1)
    length = (torch.arange(4 * MAX_ANSWER_TOKENS) % MAX_ANSWER_TOKENS + 1.0).expand_as(log_p).double()
    constant = torch.tensor([[100.0], [-50.0], [0.0]])
    assert length_correlation(log_p, length + constant) == pytest.approx(1)
    assert length_correlation(log_p, constant - 3 * length) == pytest.approx(-1)
    assert abs(length_correlation(log_p, normal(3, 4 * MAX_ANSWER_TOKENS, seed=3))) < 0.3
    assert math.isnan(length_correlation(log_p, torch.zeros_like(log_p)))
