"""The span model as a policy: every span once and none outside the passage; what listing makes exact, by other ways."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_toys import made_up_question, normal, random_policy, spans_of

from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS, answer, best_spans
from qa_helpers.rlhf.policy import (
    best_of_n,
    closed_form,
    entropy,
    exact_kl,
    expectation,
    objective,
    one_window,
    optimum,
    policy,
    sample,
    span_log_probs,
    to_action,
    to_span,
)

seeds = st.integers(0, 10_000)


@st.composite
def bands(draw):
    """(start logits, end logits, passage mask, longest span), passages of any form but an empty one."""
    tokens, batch = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    rows = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    mask = torch.tensor([draw(rows) for _ in range(batch)])
    start, end = normal(2, batch, tokens, seed=draw(seeds), scale=draw(st.sampled_from([0.1, 3.0, 300.0])))
    return start, end, mask, draw(st.integers(1, 5))


def listed(start, end, mask, longest):
    """The spans of one row by nested loops: {(start, length): score}."""
    tokens = len(mask)
    return {
        (i, j - i + 1): float(start[i] + end[j])
        for i in range(tokens)
        for j in range(i, min(tokens, i + longest))
        if mask[i] and mask[j]
    }


# ---- the distribution ------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(bands())
def test_each_span_has_its_share_and_all_else_none(band):
    start, end, mask, longest = band
    log_p = span_log_probs(start, end, mask, longest)
    assert log_p.shape == (len(mask), mask.shape[1] * longest)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(mask), dtype=torch.float64))
    for row in range(len(mask)):
        scores = listed(start[row], end[row], mask[row], longest)
        total = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0)
        for action, found in enumerate(log_p[row].tolist()):
            span = (action // longest, action % longest + 1)
            expected = scores[span] - float(total) if span in scores else -math.inf
            assert found == pytest.approx(expected, abs=1e-9)


@given(bands(), seeds)
def test_no_sample_lies_outside_of_the_passage(band, seed):
    start, end, mask, longest = band
    actions = sample(span_log_probs(start, end, mask, longest), 40, torch.Generator().manual_seed(seed))
    assert actions.shape == (len(mask), 40)
    for row in range(len(mask)):
        scores = listed(start[row], end[row], mask[row], longest)
        assert {(action // longest, action % longest + 1) for action in actions[row].tolist()} <= set(scores)


@settings(max_examples=30)
@given(bands())
def test_it_is_the_distribution_of_the_span_search(band):
    start, end, mask, longest = band
    found = best_spans(start, end, mask, 1, longest)
    log_p = span_log_probs(start.float(), end.float(), mask, longest)
    torch.testing.assert_close(log_p.amax(1), found.scores[:, 0] - found.log_total, atol=1e-3, rtol=1e-4)


def test_samples_come_as_often_as_they_should():
    log_p = random_policy(2, 7, seed=1, forbidden=2)
    actions = sample(log_p, 20_000, torch.Generator().manual_seed(0))
    shares = torch.stack([row.bincount(minlength=7) / 20_000 for row in actions])
    error = (log_p.exp() * (1 - log_p.exp()) / 20_000).sqrt()
    assert ((shares - log_p.exp()).abs() <= 4.5 * error).all()


def test_actions_and_spans_are_the_same_thing():
    question = made_up_question("q", 40)
    actions = spans_of(40)
    assert [to_action(*to_span(action)) for action in actions] == actions
    for action in actions:
        start, length = to_span(action)
        assert question.text(action).split() == question.row["context"].split()[start : start + length]
    with pytest.raises(ValueError, match="longest is 30"):
        to_action(0, MAX_ANSWER_TOKENS + 1)


# ---- of a model ------------------------------------------------------------------------------------------------
def test_questions_whose_passage_needs_two_windows_are_left_out_and_counted(tokenizer, course):
    answers = {"text": ["word"], "answer_start": [0]}
    long = course[1] | {"id": "long", "context": " ".join(["word"] * 400), "answers": answers}
    questions, left_out = one_window([course[0], long, course[2]], tokenizer)
    assert [question.row["id"] for question in questions] == [course[0]["id"], course[2]["id"]]
    assert left_out == 1


def test_the_policys_likeliest_action_is_the_models_answer(tokenizer, course, tiny_model):
    model = tiny_model().eval()
    rows = course[:9]
    questions, left_out = one_window(rows, tokenizer)
    log_p = policy(model, tokenizer, questions).detach()
    answers = answer(model, tokenizer, rows).predictions
    assert not left_out
    for i, question in enumerate(questions):
        assert question.text(int(log_p[i].argmax())) == answers[i].text
        assert float(log_p[i].max().exp()) == pytest.approx(answers[i].confidence, rel=1e-2)
        assert set((~log_p[i].isneginf()).nonzero()[:, 0].tolist()) == set(spans_of(question.tokens))


def test_a_question_has_the_same_policy_alone_as_in_a_batch(tokenizer, course, tiny_model):
    model = tiny_model().eval()
    questions, _ = one_window(course[:40:10], tokenizer)
    assert len({question.tokens for question in questions}) > 1
    together = policy(model, tokenizer, questions)
    for i, question in enumerate(questions):
        alone = policy(model, tokenizer, [question])[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=5e-3, rtol=1e-3)
        assert together[i, len(alone) :].isneginf().all()


def test_windows_of_one_question_are_as_make_windows_cuts_them(tokenizer, course):
    questions, _ = one_window(course[:3], tokenizer)
    windows = make_windows(course[:3], tokenizer)
    assert [question.window.inputs for question in questions] == [window.inputs for window in windows]


# ---- what listing the actions makes exact ----------------------------------------------------------------------
@given(seeds, seeds, st.integers(2, 12), st.integers(0, 1))
def test_kl_is_never_negative_and_zero_only_for_the_same_policy(one, other, actions, forbidden):
    log_p, log_ref = random_policy(2, actions, one, forbidden), random_policy(2, actions, other, forbidden)
    assert (exact_kl(log_p, log_ref) > -1e-12).all()
    assert exact_kl(log_p, log_p).tolist() == [0, 0]
    one, other = (torch.distributions.Categorical(logits=logits.clamp(min=-1e6)) for logits in (log_p, log_ref))
    torch.testing.assert_close(exact_kl(log_p, log_ref), torch.distributions.kl_divergence(one, other))


def test_kl_equals_its_estimate_from_samples():
    log_p, log_ref = random_policy(1, 50, 1, forbidden=5), random_policy(1, 50, 2, forbidden=5)
    actions = sample(log_p, 40_000, torch.Generator().manual_seed(0))
    estimates = (log_p - log_ref)[0, actions[0]]
    error = float(estimates.std()) / 200
    assert float(exact_kl(log_p, log_ref)) == pytest.approx(float(estimates.mean()), abs=4 * error)
    assert float(exact_kl(log_p, log_ref)) > 20 * error


def test_kl_is_infinite_where_the_reference_never_goes():
    log_p, log_ref = random_policy(1, 4, 1), random_policy(1, 4, 2, forbidden=1)
    assert exact_kl(log_p, log_ref).tolist() == [math.inf]
    assert math.isfinite(exact_kl(log_ref, log_p))


def test_entropy_of_the_even_policy_is_the_log_of_its_actions():
    log_p = torch.tensor([[0.0, 0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf, -torch.inf]]).log_softmax(1)
    torch.testing.assert_close(entropy(log_p), torch.tensor([math.log(3), 0.0]))


@pytest.mark.parametrize("what", ["kl", "entropy", "objective", "optimum", "closed form"])
def test_gradients_are_right_and_finite_also_beside_forbidden_spans(what):
    start, end = (normal(2, 4, seed=seed).requires_grad_() for seed in (1, 2))
    mask = torch.tensor([[True, True, True, False], [False, True, True, False]])
    log_ref = span_log_probs(*normal(2, 2, 4, seed=3), mask, 3)
    reward = normal(2, 12, seed=4)

    def value(start, end):
        log_p = span_log_probs(start, end, mask, 3)
        return {
            "kl": lambda: exact_kl(log_p, log_ref),
            "entropy": lambda: entropy(log_p),
            "objective": lambda: objective(log_p, log_ref, reward, 0.3),
            "optimum": lambda: optimum(log_p, reward, 0.3),
            "closed form": lambda: closed_form(log_p, reward, 0.3).exp(),
        }[what]()

    assert torch.autograd.gradcheck(value, (start, end))


@given(seeds, st.sampled_from([0.05, 0.3, 2.0]), st.integers(0, 2))
def test_the_closed_form_is_the_optimum_and_every_other_policy_falls_short_by_its_kl(seed, beta, forbidden):
    log_ref = random_policy(3, 9, seed, forbidden)
    reward, other = normal(3, 9, seed=seed + 1), random_policy(3, 9, seed + 2, forbidden)
    best = closed_form(log_ref, reward, beta)
    torch.testing.assert_close(best.exp().sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(objective(best, log_ref, reward, beta), optimum(log_ref, reward, beta))
    short = optimum(log_ref, reward, beta) - objective(other, log_ref, reward, beta)
    assert (short > 0).all()
    torch.testing.assert_close(short, beta * exact_kl(other, best))


def test_a_constant_of_the_question_changes_no_optimum_and_a_large_beta_leaves_the_reference():
    log_ref, reward = random_policy(2, 9, 1), normal(2, 9, seed=2)
    constant = torch.tensor([[5.0], [-7.0]])
    torch.testing.assert_close(closed_form(log_ref, reward, 0.1), closed_form(log_ref, reward + constant, 0.1))
    assert float(exact_kl(closed_form(log_ref, reward, 1e4), log_ref).max()) < 1e-8
    assert float(exact_kl(closed_form(log_ref, reward, 0.1), log_ref).min()) > 0.5


# ---- best of n -------------------------------------------------------------------------------------------------
@given(seeds, st.integers(1, 4), st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 1))
def test_best_of_n_is_what_trying_all_samples_gives(seed, n, reward, forbidden):
    log_ref = random_policy(1, 4, seed, forbidden)
    expected = torch.zeros(4, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=n):
        best = [action for action in drawn if reward[action] == max(reward[other] for other in drawn)]
        for action in best:  # each of the equally good samples as often
            expected[action] += log_ref[0, list(drawn)].sum().exp() / len(best)
    found = best_of_n(log_ref, torch.tensor([reward]).double(), n)
    torch.testing.assert_close(found[0].exp(), expected)


@given(seeds, st.sampled_from([1, 2, 8, 64]), st.sampled_from([1.0, 20.0]))
def test_best_of_n_is_a_distribution_within_its_bound_and_better_with_n(seed, n, scale):
    log_ref, reward = random_policy(2, 60, seed, 10, scale), normal(2, 60, seed=seed + 1)
    found = best_of_n(log_ref, reward, n)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, dtype=torch.float64))
    assert found[:, 50:].isneginf().all()
    assert (exact_kl(found, log_ref) <= math.log(n) - (n - 1) / n + 1e-9).all()
    assert (expectation(best_of_n(log_ref, reward, 2 * n), reward) >= expectation(found, reward) - 1e-9).all()
    if n == 1:
        torch.testing.assert_close(found, log_ref)
