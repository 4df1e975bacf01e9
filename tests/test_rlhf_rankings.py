"""A reader's own rankings: read whole or refused by line, the last word counts, spans where they are spans."""

import json
import math

import pytest

from qa_helpers.rlhf.policy import one_window
from qa_helpers.rlhf.preferences import Pair
from qa_helpers.rlhf.rankings import RankingError, last_rankings, ranking_pairs, read_rankings, user_agreement

CONTEXT = "Ada Lovelace wrote the first program in 1843, for a machine that was never built."


def line(**changes):
    return {
        "id": "q",
        "question": "Who wrote it?",
        "context": CONTEXT,
        "first": "Ada Lovelace",
        "second": "the first program",
        "first_start": 0,
        "second_start": 19,
        "choice": "first",
        "user": "ada",
        "time": "2026-01-31T12:00:00+00:00",
    } | changes


SWAPPED = {"first": "the first program", "second": "Ada Lovelace", "first_start": 19, "second_start": 0}


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "rankings.jsonl"

    def write(*lines):
        path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n", "utf-8")
        return path

    return write


@pytest.fixture
def question(tokenizer):
    row = {"id": "q", "question": "Who wrote it?", "context": CONTEXT}
    return one_window([row], tokenizer)[0][0]


def test_what_was_written_is_read(write):
    [one, other] = read_rankings(write(line(), "", line(choice="tie", user="é")))
    assert (one.id, one.choice, one.user, one.time.hour) == ("q", "first", "ada", 12)
    assert other.user == "é"
    assert read_rankings(write("")) == []


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ('{"id": "q", "question"', "Invalid JSON"),
        (line(choice="third"), "choice: Input should be 'first', 'second', 'tie' or 'skip'"),
        ({name: value for name, value in line().items() if name != "user"}, "user: Field required"),
        (line(time="yesterday"), "time: "),
        (line(time="2026-01-31T12:00:00"), "time: "),
        (line(first=""), "first: "),
        (line(first_start=-1), "first_start: "),
        (line(first_start="0"), "first_start: "),
        (line(first_start=3), "first_start: the context does not read 'Ada Lovelace' at character 3"),
        (line(second_start=len(CONTEXT)), "second_start: the context does not read"),
        (line(second="Ada Lovelace", second_start=0), "second: is the same answer as the first"),
        (line(colour="red"), "colour: "),
        ("[]", "the line: "),
    ],
)
def test_a_bad_line_is_named(write, bad, sentence):
    with pytest.raises(RankingError) as problem:
        read_rankings(write(line(), bad, line()))
    text = str(problem.value)
    assert "rankings.jsonl, line 2: " in text
    assert sentence in text
    assert "\n" not in text


def test_every_bad_line_has_its_sentence_but_not_without_end(write):
    with pytest.raises(RankingError) as problem:
        read_rankings(write("{", line(), line(choice="x")))
    assert [one.split(": ")[0][-6:] for one in str(problem.value).split("\n")] == ["line 1", "line 3"]
    with pytest.raises(RankingError) as problem:
        read_rankings(write(*["{"] * 50))
    assert str(problem.value).endswith("\nand 40 more such lines")


def test_a_file_that_is_none_is_said_so(tmp_path):
    with pytest.raises(RankingError, match="cannot be read: No such file"):
        read_rankings(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(RankingError, match="not UTF-8"):
        read_rankings(tmp_path / "bytes")


def test_the_last_word_counts_whichever_was_shown_first(write, question):
    path = write(line(), line(), line(user="bob"), line(**SWAPPED, choice="first"))
    assert [(one.user, one.first) for one in last_rankings(read_rankings(path))] == [
        ("ada", "the first program"),
        ("bob", "Ada Lovelace"),
    ]
    ada, bob = ranking_pairs(read_rankings(path), [question])
    assert question.text(ada.better) == question.text(bob.worse) == "the first program"


def test_ties_and_skips_make_no_pair_and_take_an_earlier_choice_back(write, question):
    rankings = read_rankings(write(line(), line(choice="skip"), line(user="bob", choice="tie"), line(user="eve")))
    [pair] = ranking_pairs(rankings, [question])
    assert pair == Pair(0, pair.better, pair.worse)
    assert (question.text(pair.better), question.text(pair.worse)) == ("Ada Lovelace", "the first program")
    [pair] = ranking_pairs(read_rankings(write(line(choice="second"))), [question])
    assert question.text(pair.better) == "the first program"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "other"}, "'other' of the rankings is not among"),
        ({"context": CONTEXT + "!"}, "'q' of the rankings is not among"),
        ({"first_start": None}, "has no start"),
        ({"first": "da Lovelace", "first_start": 1}, "no span of at most 30 whole tokens"),
        ({"first": "Ada Lov"}, "no span of at most 30 whole tokens"),
    ],
)
def test_what_is_no_span_of_the_questions_is_refused(write, question, changes, sentence):
    with pytest.raises(RankingError, match=sentence):
        ranking_pairs(read_rankings(write(line(**changes))), [question])


def test_agreement_between_users(write):
    spans = [("Ada", 0), ("Lovelace", 4), ("wrote", 13), ("program", 29), ("1843", 40)]
    choices = {
        "ada": ["first", "first", "second", "tie", "first"],
        "bob": ["first", "second", "second", "tie", "skip"],
    }
    lines = [
        line(user=user, first=text, first_start=start, choice=choice)
        for user, row in choices.items()
        for (text, start), choice in zip(spans, row, strict=True)
    ]
    lines.append(
        line(user="ada", first=SWAPPED["first"], first_start=19, second="Ada", second_start=0, choice="second")
    )
    lines.append(line(user="eve", second="1843", second_start=40))
    [found] = user_agreement(read_rankings(write(*lines)))
    assert (found.users, found.comparisons, found.same) == (("ada", "bob"), 4, 0.75)
    # In the alphabet's order of the two answers: ada prefers the one, one, one, neither; bob one, other, one, neither.
    chance = 3 / 4 * 2 / 4 + 0 * 1 / 4 + 1 / 4 * 1 / 4
    assert found.kappa == pytest.approx((0.75 - chance) / (1 - chance))
    [same] = user_agreement(read_rankings(write(line(), line(user="bob", **SWAPPED, choice="second"))))
    assert same.same == 1
    assert math.isnan(same.kappa)
