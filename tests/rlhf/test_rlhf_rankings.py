"""A reader's own rankings as pairs: spans where they are spans, and the preferred one first."""

from datetime import UTC, datetime

import pytest

from qa_helpers.rlhf.policy import one_window
from qa_helpers.rlhf.preferences import Pair
from qa_helpers.rlhf.ranking_store import Pair as Shown
from qa_helpers.rlhf.ranking_store import Ranking, RankingError, RankingSession, read_rankings
from qa_helpers.rlhf.rankings import ranking_pairs

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
    path = tmp_path / "rankings.jsonl"
    shown = Shown.of(**TEXTS, **PLACES)
    for user, button in (("ada", "A"), ("bob", "tie")):
        RankingSession([shown], path, user).choose(shown, button)
    [pair] = ranking_pairs(read_rankings(path), [question])
    letter = RankingSession([shown], tmp_path / "other.jsonl", "ada").shown(shown)["A"]
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
