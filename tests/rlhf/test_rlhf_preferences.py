"""Candidates, agreement, pairs; what is held out, turned round or balanced; what a reader ranked by hand."""

from datetime import UTC, datetime
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rlhf_toys import made_up_question, spans_of

from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.rlhf import preferences
from qa_helpers.rlhf.policy import one_window, span_log_probs, to_action, to_span
from qa_helpers.rlhf.preferences import (
    Candidate,
    Pair,
    agreement,
    answer_actions,
    balance_lengths,
    chain_parts,
    flip,
    human_candidates,
    longer_by,
    make_pairs,
    policy_candidates,
    ranking_pairs,
    split_by_article,
)
from qa_helpers.rlhf.ranking_store import Pair as Shown
from qa_helpers.rlhf.ranking_store import Ranking, RankingError, RankingSession, read_rankings


def some_policy(questions, seed=0):
    tokens = max(question.tokens for question in questions)
    passage = torch.arange(tokens) < torch.tensor([[question.tokens] for question in questions])
    logits = torch.randn(2, len(questions), tokens, generator=torch.Generator().manual_seed(seed))
    return span_log_probs(*logits, passage)


def propose(questions, seed=0):
    return policy_candidates(questions, some_policy(questions), torch.Generator().manual_seed(seed))


# ---- agreement and candidates ----------------------------------------------------------------------------------
def test_agreement_is_the_mean_over_annotators():
    answers = ["the blue whale", "blue whale", "whale"]
    assert agreement("Blue whale!", answers) == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert agreement("whale", answers) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert agreement("a shark", answers) == 0
    assert agreement("x", ["x"]) == 1


def test_candidates_are_the_policys_best_its_samples_and_others():
    questions = [made_up_question("a", 40), made_up_question("b", 9)]
    log_p = some_policy(questions)
    for question, found, row in zip(questions, propose(questions), log_p, strict=True):
        actions = [one.action for one in found]
        assert len(set(actions)) == len(actions) <= 14
        assert set(actions) <= set(spans_of(question.tokens))
        assert actions[:8] == row.topk(8).indices.tolist()
        for one in found:
            assert one.text == question.text(one.action)
            assert one.agreement == pytest.approx(agreement(one.text, question.row["answers"]["text"]))
    assert max(len(found) for found in propose(questions)) > 8  # samples and others, too


def test_candidates_are_drawn_by_seed_and_no_more_than_there_are():
    questions = [made_up_question("a", 40)]
    assert propose(questions) == propose(questions)
    assert propose(questions) != propose(questions, seed=1)
    [tiny] = propose([made_up_question("a", 2)])
    assert sorted(one.text for one in tiny) == ["a", "a b", "b"]


def test_peoples_own_answers_are_ranked_by_the_others(tokenizer):
    context = "The blue whale is the largest animal."
    answers = {"text": ["blue whale", "whale", "The blue whale"], "answer_start": [4, 9, 0]}
    [question], _ = one_window([{"question": "What?", "context": context, "answers": answers}], tokenizer)
    assert [question.text(action) for action in answer_actions(question)] == answers["text"]
    [found] = human_candidates([question])
    assert [one.text for one in found] == answers["text"]
    assert [one.agreement for one in found] == pytest.approx([(2 / 3 + 1) / 2, 2 / 3, (1 + 2 / 3) / 2])


def test_an_answer_that_is_no_action_is_no_candidate(tokenizer):
    context = " ".join(["word"] * 50)
    answers = {"text": [context[: 5 * 31 - 1], context[: 5 * 30 - 1]], "answer_start": [0, 0]}
    [question], _ = one_window([{"question": "What?", "context": context, "answers": answers}], tokenizer)
    assert answer_actions(question) == [None, to_action(0, MAX_ANSWER_TOKENS)]
    assert [one.text for one in human_candidates([question])[0]] == answers["text"][1:]


# ---- pairs -----------------------------------------------------------------------------------------------------
agreements = st.lists(st.lists(st.integers(0, 10).map(lambda n: n / 10), max_size=6), max_size=5)


def ranked(values):
    return [[Candidate(i, str(i), value) for i, value in enumerate(row)] for row in values]


@given(agreements, st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.integers(0, 9))
def test_pairs_are_those_that_differ_by_the_margin(values, margin, seed):
    everything = {
        Pair(place, i, j)
        for place, row in enumerate(values)
        for i, one in enumerate(row)
        for j, other in enumerate(row)
        if round(10 * one) - round(10 * other) >= round(10 * margin)
    }
    made = []
    for most in (30, 3):
        with patch.multiple(preferences, MARGIN=margin, MOST_PAIRS=most):
            made.append(make_pairs(ranked(values), seed))
    pairs, few = made
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == everything
    assert set(few) <= everything
    for place in range(len(values)):
        here = sum(pair.question == place for pair in everything)
        assert sum(pair.question == place for pair in few) == min(3, here)


def test_equal_agreement_makes_no_pair():
    assert make_pairs(ranked([[0.5, 0.5, 0.5]])) == []
    assert preferences.MARGIN > 0


def test_which_pairs_are_left_out_is_drawn_by_seed():
    values = ranked([[i / 10 for i in range(10)]])
    assert make_pairs(values, seed=1) == make_pairs(values, seed=1) != make_pairs(values, seed=2)


def rows_of(titles):
    return [{"id": number, "title": title} for number, title in enumerate(titles)]


@given(st.lists(st.integers(0, 6), min_size=2).filter(lambda titles: len(set(titles)) > 1), st.integers(0, 9))
def test_no_article_is_on_both_sides(titles, seed):
    train, held_out = split_by_article(rows_of(titles), 0.25, seed)
    assert all(side == sorted(side, key=lambda row: row["id"]) for side in (train, held_out))
    assert sorted(row["id"] for row in train + held_out) == list(range(len(titles)))
    assert {row["title"] for row in train}.isdisjoint(row["title"] for row in held_out)
    assert len({row["title"] for row in held_out}) == max(1, round(0.25 * len(set(titles))))
    assert train


def test_articles_are_held_out_by_seed_and_never_all():
    rows = rows_of(range(20))
    assert split_by_article(rows, seed=1) == split_by_article(rows, seed=1) != split_by_article(rows, seed=2)
    with pytest.raises(ValueError, match="cannot be held out"):
        split_by_article(rows_of(["one", "one"]))


@given(st.lists(st.integers(0, 6), min_size=2).filter(lambda titles: len(set(titles)) > 1), st.integers(1, 9))
def test_the_parts_of_a_chain_are_as_long_as_allowed_and_learn_and_stop_share_no_article(titles, limit):
    rows, held_out = rows_of(titles), rows_of(range(100, 105))
    parts = chain_parts(rows, held_out, (limit, limit, limit))
    sides = dict(zip(("learn", "stop", "held out"), (*split_by_article(rows, 0.2), held_out), strict=True))
    assert list(parts) == list(sides)
    for part, chosen in parts.items():
        assert len(chosen) == min(limit, len(sides[part]))
        assert chosen == [row for row in sides[part] if row in chosen]


some_pairs = st.lists(st.tuples(*[st.integers(0, 200)] * 3).map(lambda numbers: Pair(*numbers)), max_size=30)


@given(some_pairs, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(0, 9))
def test_flipping_turns_as_many_pairs_as_asked(pairs, share, seed):
    found = flip(pairs, share, seed)
    turned = [
        (one.question, one.better, one.worse) == (other.question, other.worse, other.better)
        for one, other in zip(pairs, found, strict=True)
    ]
    alike = [one == other for one, other in zip(pairs, found, strict=True)]
    assert all(a or b for a, b in zip(turned, alike, strict=True))
    assert sum(not same for same in alike) <= round(share * len(pairs)) <= sum(turned)
    if share == 1:
        assert flip(found, 1, seed) == pairs


@given(some_pairs, st.integers(0, 9))
def test_balanced_pairs_say_nothing_about_length(pairs, seed):
    found = balance_lengths(pairs, seed)
    signs, before = (np.sign(longer_by(some)) for some in (found, pairs))
    assert signs.sum() == 0
    assert (signs > 0).sum() == min((before > 0).sum(), (before < 0).sum())
    assert (signs == 0).sum() == (before == 0).sum()
    assert [pair for pair in pairs if pair in found] == [pair for pair in pairs if pair in set(found)]


def test_length_differences_by_hand():
    pairs = [Pair(0, to_action(3, 5), to_action(9, 2)), Pair(0, to_action(0, 1), to_action(0, 30))]
    assert longer_by(pairs).tolist() == [3, -29]
    assert [to_span(pairs[0].better), to_span(pairs[1].worse)] == [(3, 5), (0, 30)]
    assert balance_lengths(pairs) == pairs
    assert balance_lengths(pairs[:1]) == []


# ---- what a reader ranked by hand ------------------------------------------------------------------------------
CONTEXT = "Ada Lovelace wrote the first program in 1843, for a machine that was never built."
TEXTS = {"question": "Who wrote it?", "context": CONTEXT, "first": "Ada Lovelace", "second": "the first program"}
PLACES = {"question_id": "q", "first_start": 0, "second_start": 19}


def ranking(choice="first", user="ada", **changes):
    fields = TEXTS | PLACES | changes
    return Ranking(id="pair", **fields, choice=choice, user=user, time=datetime(2026, 1, 31, tzinfo=UTC))


@pytest.fixture
def question(tokenizer):
    row = {"id": "q", "question": "Who wrote it?", "context": CONTEXT}
    return one_window([row], tokenizer)[0][0]


def test_the_preferred_answer_is_the_better_one(question):
    [pair] = ranking_pairs([ranking()], [question])
    assert pair == Pair(0, pair.better, pair.worse)
    assert (question.text(pair.better), question.text(pair.worse)) == ("Ada Lovelace", "the first program")
    [turned] = ranking_pairs([ranking("second")], [question])
    assert turned == Pair(0, pair.worse, pair.better)


def test_ties_skips_and_what_was_taken_back_make_no_pair(question):
    assert ranking_pairs([ranking("tie"), ranking("skip"), ranking("undo")], [question]) == []


def test_what_was_ranked_in_a_session_and_read_back_makes_pairs(question, tmp_path):
    path = tmp_path / "rankings.sqlite"
    shown = Shown.of(**TEXTS, **PLACES)
    for user, button in (("ada", "A"), ("bob", "tie")):
        RankingSession([shown], path, user).choose(shown, button)
    [pair] = ranking_pairs(read_rankings(path), [question])
    letter = RankingSession([shown], tmp_path / "other.sqlite", "ada").shown(shown)["A"]
    assert question.text(pair.better) == letter


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"question_id": "other"}, "'other' of the rankings is not among"),
        ({"question_id": None}, "'None' of the rankings is not among"),
        ({"context": CONTEXT + "!"}, "'q' of the rankings is not among"),
        ({"first_start": None}, "has no start"),
        ({"first": "da Lovelace", "first_start": 1}, "no span of at most 30 whole tokens"),
        ({"first": "Ada Lov"}, "no span of at most 30 whole tokens"),
    ],
)
def test_what_is_no_span_of_the_questions_is_refused(question, changes, sentence):
    with pytest.raises(RankingError, match=sentence):
        ranking_pairs([ranking(**changes)], [question])
