"""Diagnosis: the ladder of metrics by hand, on CourseQA and on generated strings; annotators against each other."""

import json
import os
import random
from itertools import accumulate

import numpy as np
import pytest
from answer_texts import texts
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_helpers.data.rows import is_blank
from qa_helpers.data.squad import DataError, load_qa
from qa_helpers.evaluation.diagnosis import (
    LADDER,
    REST,
    data_card,
    human_ceiling,
    ladder_step,
    load_card,
    metric_ladder,
    score_without_one,
)
from qa_helpers.evaluation.span_answers import contained, exact_match, f1, string_equality
from qa_helpers.experiment.store import load_records

FIRST, CASE, ARTICLES, PUNCTUATION, EM, HOLDS = LADDER


@pytest.mark.parametrize(
    ("prediction", "answers", "step"),
    [
        ("the Arizona Cardinals", ["the Arizona Cardinals"], FIRST),
        ("The Arizona cardinals", ["the Arizona Cardinals"], CASE),
        ("Arizona Cardinals", ["the Arizona Cardinals"], ARTICLES),
        ("arizona cardinals", ["the Arizona Cardinals"], ARTICLES),
        ("the Arizona Cardinals", ["Arizona Cardinals"], ARTICLES),
        ("end of day", ["the end of a day"], ARTICLES),
        ("day the", ["day"], ARTICLES),
        ("Arizona  Cardinals", ["Arizona Cardinals"], PUNCTUATION),
        ("Arizona Cardinals.", ["the Arizona Cardinals"], PUNCTUATION),
        ("1,000", ["1000"], PUNCTUATION),
        ("Cardinals", ["Arizona Cardinals", "the Cardinals"], EM),
        ("beat the Cardinals", ["Arizona Cardinals", "the Cardinals"], HOLDS),
        ("theatre", ["atre"], REST),
        ("Panthers", ["Arizona Cardinals", "Cardinals"], REST),
        ("", ["Arizona Cardinals"], REST),
    ],
)
def test_the_first_step_that_makes_an_answer_right(prediction, answers, step):
    assert ladder_step(prediction, answers) == step
    assert metric_ladder([prediction], [answers]) == {name: int(name == step) for name in (*LADDER, REST)}


def check_ladder(predictions, answers):
    counts = metric_ladder(predictions, answers)
    pairs = list(zip(predictions, answers, strict=True))
    reached = dict(zip(counts, accumulate(counts.values()), strict=True))
    assert list(counts) == [*LADDER, REST]
    assert reached[REST] == len(pairs)
    assert reached[FIRST] == sum(prediction == given[0] for prediction, given in pairs)
    assert reached[CASE] == sum(string_equality(*pair) for pair in pairs)
    assert reached[EM] == sum(exact_match(*pair) for pair in pairs)
    assert reached[HOLDS] == sum(exact_match(*pair) or contained(*pair) for pair in pairs)
    return counts


def test_the_ladder_sums_up_to_em_on_courseqas_answers():
    draw = random.Random(0)
    answers = [row["answers"]["text"] for split in ("train", "validation") for row in load_qa("courseqa", split)]
    predictions = []
    for given_answers in answers:
        text = draw.choice(given_answers)
        changed = [text, text.upper(), f"the {text}", f"{text}.", f"'{text}' it was", f"{text[1:]}", "nothing"]
        predictions.append(draw.choice(changed))
    counts = check_ladder(predictions, answers)
    assert min(counts.values()) > 10, "no step is left untried"


@settings(max_examples=500)
@given(st.lists(st.tuples(texts(), st.lists(texts(), min_size=1, max_size=3)), max_size=3))
def test_what_one_step_calls_right_the_next_do_not_call_wrong(questions):
    check_ladder([prediction for prediction, _ in questions], [given_answers for _, given_answers in questions])
    for prediction, answers in questions:
        judged = [right(prediction, answers) for right in list(LADDER.values())[:-1]]
        assert judged == sorted(judged)


def test_another_number_of_answers_is_refused():
    with pytest.raises(DataError, match="2 predictions were given for 1 questions"):
        metric_ladder(["a", "b"], [["a"]])


# ---- people -----------------------------------------------------------------------------------------------------
def row(number, *answers):
    return {"id": str(number), "answers": {"text": list(answers)}}


def test_annotators_are_scored_against_the_others():
    rows = [row(1, "the cat", "cat", "dog"), row(2, "alone"), row(3, "one cat", "cat")]
    people = human_ceiling(iter(rows))
    assert people.id == ["1", "3"]
    assert people.exact_match == pytest.approx([2 / 3, 0])
    assert people.f1 == pytest.approx([2 / 3, 2 / 3])


def test_a_model_is_scored_against_one_answer_less_than_there_are():
    rows = [row(1, "cat", "dog", "cow"), row(2, "alone"), row(3, "cat", "cat")]
    model = score_without_one(iter(["the dog", "alone", "cat"]), iter(rows))
    assert model.id == ["1", "3"]
    assert model.exact_match == pytest.approx([2 / 3, 1])  # wrong where the dog is the one left out
    assert model.f1 == pytest.approx([2 / 3, 1])


ANSWERS = texts().filter(lambda text: not is_blank(text))


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=4), min_size=1, max_size=5), texts())
def test_a_score_without_one_answer_is_at_most_the_official_one(answers, prediction):
    rows = [row(number, *given_answers) for number, given_answers in enumerate(answers)]
    several = [given_answers for given_answers in answers if len(given_answers) > 1]
    if not several:
        for score in (human_ceiling, lambda rows: score_without_one([prediction] * len(rows), rows)):
            with pytest.raises(ValueError, match="no question has two answers"):
                score(rows)
        return
    model, people = score_without_one([prediction] * len(rows), rows), human_ceiling(rows)
    for scores, official in ((model.exact_match, exact_match), (model.f1, f1)):
        assert np.all(scores <= [official(prediction, given_answers) + 1e-9 for given_answers in several])
    # One annotator's answer given by a model meets itself in all but one case; left out itself, it is the people's.
    for place, given_answers in enumerate(several):
        own = [score_without_one([text], [row(0, *given_answers)]).exact_match[0] for text in given_answers]
        assert people.exact_match[place] <= np.mean(own) + 1e-9


def test_courseqas_annotators_agree_mostly():
    people = human_ceiling(load_qa("courseqa", "validation"))
    assert len(people.id) == 206
    assert 0.85 < people.exact_match.mean() < people.f1.mean() < 1


# ---- cards -----------------------------------------------------------------------------------------------------
def test_a_card_says_which_articles_and_what_people_score():
    rows = load_qa("courseqa", "validation")
    card, people = data_card(rows), human_ceiling(rows)
    assert card.titles == rows["title"]
    assert len(card.articles) == len(set(rows["title"])) == 6
    assert np.mean(card.human_exact_match) == pytest.approx(100 * people.exact_match.mean(), abs=0.01)
    assert np.mean(card.human_f1) == pytest.approx(100 * people.f1.mean(), abs=0.01)


def test_a_question_that_one_person_answered_has_no_human_score():
    rows = load_qa("courseqa", "validation", 3)
    alone = [rows[0], rows[1] | {"answers": {part: values[:1] for part, values in rows[1]["answers"].items()}}, rows[2]]
    card = data_card(type(rows).from_list(alone))
    assert [score is None for score in card.human_exact_match] == [False, True, False]
    assert [score is None for score in card.human_f1] == [False, True, False]


@pytest.mark.skipif("QA_DATA_DIR" not in os.environ, reason="QA_DATA_DIR names no folder with SQuAD")
def test_squads_card_is_made_from_squad():
    assert data_card(load_qa("squad", "validation")) == load_card("squad")


def test_squads_card_fits_the_records():
    card = load_card("squad")
    assert len(card.titles) == len(card.human_exact_match) == len(card.human_f1) == 10_570
    assert card.articles[0] == ("Super_Bowl_50", 810)
    for run in load_records("class-baseline-*").values():
        assert run.fingerprints.eval == card.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("[]", "the file"),
        ('{"fingerprint": "x"}', "articles: Field required"),
        (
            json.dumps({"fingerprint": "x", "articles": [["a", "b"]], "human_exact_match": [], "human_f1": []}),
            "articles",
        ),
    ],
)
def test_a_card_that_is_none_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "my-validation-card.json").write_text(content)
    with pytest.raises(DataError, match=words):
        load_card("my", tmp_path)
