"""Metrics: against torchmetrics', their ladder by hand and on generated strings; annotators on each other."""

import itertools
import json
import os
import random
import string

import numpy as np
import pytest
from answer_texts import texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from qa_helpers.data.rows import DataError, is_blank
from qa_helpers.data.squad import fingerprint, load_qa
from qa_helpers.evaluation.metrics import (
    CATEGORIES,
    LADDER,
    REST,
    contained,
    error_category,
    evaluate,
    exact_match,
    f1,
    human_ceiling,
    ladder_step,
    load_card,
    metric_ladder,
    normalize_answer,
    score_without_one,
    string_equality,
)
from qa_helpers.evaluation.span_answers import Prediction, Span
from qa_helpers.experiment.record_files import load_records


# ---- metrics against torchmetrics -------------------------------------------------------------------------------
def check_against_torchmetrics(prediction, answers):
    """EM and F1 of one prediction; where both sides are empty once normalised the two differ, see below."""
    target = {"id": "1", "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}
    expected = {name: value.item() for name, value in squad({"id": "1", "prediction_text": prediction}, target).items()}
    if not normalize_answer(prediction):
        expected["f1"] = 0.0
    assert 100 * exact_match(prediction, answers) == expected["exact_match"], (prediction, answers)
    assert 100 * f1(prediction, answers) == pytest.approx(expected["f1"], abs=1e-4), (prediction, answers)


def perturbed(text, draw):
    """An answer as a model may give it: with an article, punctuation or a word more or less, in other case, cut."""
    words = text.split()
    return draw.choice(
        [
            f"the {text}",
            f"An {text}.",
            f"'{text}'",
            text.upper(),
            text.replace(" ", "  "),
            " ".join(words[1:]),
            " ".join(words[:-1]),
            " ".join(reversed(words)),
            " ".join([*words, draw.choice(words)]),
            text[draw.randrange(len(text)) :],
            text + draw.choice(string.punctuation) + text,
        ]
    )


def test_em_and_f1_equal_torchmetrics_on_courseqas_answers():
    """Every annotator against the others, and predictions that are answers of this or another question, perturbed."""
    draw = random.Random(0)
    questions = [row["answers"]["text"] for split in ("train", "validation") for row in load_qa("courseqa", split)]
    pairs = 0
    for answers in questions:
        predictions = [perturbed(draw.choice(answers), draw) for _ in range(2)]
        predictions.append(perturbed(draw.choice(draw.choice(questions)), draw))
        for prediction in predictions:
            check_against_torchmetrics(prediction, answers)
        for one, other in itertools.permutations(answers, 2):
            check_against_torchmetrics(one, [other])
        pairs += len(predictions) + 6
    assert pairs == 828 * 9


@settings(max_examples=3000, database=None)
@given(texts() | st.text(max_size=8), st.lists(texts() | st.text(max_size=8), min_size=1, max_size=3))
def test_em_and_f1_equal_torchmetrics_on_generated_strings(prediction, answers):
    check_against_torchmetrics(prediction, answers)


@pytest.mark.parametrize(("prediction", "given_answer"), [("the", "the"), ("The!", "a"), ("", "..."), ("an an", "the")])
def test_two_texts_that_normalise_to_nothing_match_exactly_with_an_f1_of_0(prediction, given_answer):
    """As evaluate-v1.1.py has it. torchmetrics gives an F1 of 1 here, as SQuAD 2.0's script does."""
    assert exact_match(prediction, [given_answer])
    assert f1(prediction, [given_answer]) == 0
    target = {"id": "1", "answers": {"text": [given_answer], "answer_start": [0]}}
    assert squad({"id": "1", "prediction_text": prediction}, target)["f1"] == 100


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Arizona Cardinals", "arizona cardinals"),
        ("  a\tcat,  an\nOWL!", "cat owl"),
        ("theatre", "theatre"),
        ("the-atre", "theatre"),  # punctuation goes first and leaves no gap
        ("A.", ""),
        ("a'the", "athe"),
        ("$1,000.50", "100050"),
        ("“the”", "“ ”"),  # only ASCII punctuation is removed
        ("ÉTÉ", "été"),
    ],
)
def test_normalising(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "equal", "em", "f1_score", "holds", "category"),
    [
        ("Arizona Cardinals", ["Arizona Cardinals"], True, True, 1, True, "exact"),
        ("arizona cardinals", ["Arizona Cardinals"], True, True, 1, True, "exact"),
        ("arizona cardinals", ["the Arizona Cardinals"], False, True, 1, True, "exact"),
        ("Cardinals", ["x", "the cardinals!"], False, True, 1, True, "exact"),
        ("cam newton", ["the Arizona Cardinals"], False, False, 0, False, "elsewhere"),
        ("beat the Arizona Cardinals", ["Arizona Cardinals"], False, False, 4 / 5, True, "too long"),
        ("Arizona", ["x", "Arizona Cardinals"], False, False, 2 / 3, False, "too short"),
        ("Arizona team", ["Arizona Cardinals"], False, False, 1 / 2, False, "overlap"),
        ("cardinal", ["cardinals"], False, False, 0, False, "elsewhere"),  # whole words only
        ("supercardinals", ["cardinals"], False, False, 0, False, "elsewhere"),
        ("a a b b", ["a b c"], False, False, 0.5, False, "overlap"),  # b b against b c: a word counts once
        ("", ["x"], False, False, 0, False, "empty"),
        ("the", ["x"], False, False, 0, False, "empty"),
        ("the", ["a"], False, True, 0, False, "exact"),
        ("x y", ["y", "x y z"], False, False, 4 / 5, True, "too long"),  # both fit; the first category counts
    ],
)
def test_every_metric_and_category(prediction, answers, equal, em, f1_score, holds, category):
    row = {"id": "1", "answers": {"text": answers}}
    [result] = evaluate([Prediction("1", [Span(prediction, 0, 1.5, 0.25)])], [row])
    assert (result.id, result.prediction, result.confidence) == ("1", prediction, 0.25)
    assert (result.string_equality, result.exact_match, result.contained) == (equal, em, holds)
    assert result.f1 == pytest.approx(f1_score)
    assert result.category == category


@settings(max_examples=500)
@given(texts(), st.lists(texts(), min_size=1, max_size=3))
def test_the_metrics_and_categories_fit_together(prediction, answers):
    category, score = error_category(prediction, answers), f1(prediction, answers)
    assert category in CATEGORIES
    assert 0 <= score <= 1
    assert (category == "exact") == exact_match(prediction, answers)
    if string_equality(prediction, answers):
        assert category == "exact"
    if normalize_answer(prediction):
        if category == "exact":
            assert score == 1
            assert contained(prediction, answers)
        assert (score > 0) == (category not in ("elsewhere", "empty"))
        assert (category == "too long") == (contained(prediction, answers) and category != "exact")
    else:
        assert category in ("exact", "empty")
    assert f1(prediction, answers[::-1]) == score
    assert f1(prediction, [*answers, prediction]) >= score


def test_predictions_of_other_questions_are_refused(course):
    rows = course[:2]
    predictions = [Prediction(row["id"], []) for row in rows]
    assert [result.category for result in evaluate(predictions, rows)] == ["empty", "empty"]
    with pytest.raises(DataError, match=r"stands at question .*; put both in the same order"):
        evaluate(predictions[::-1], rows)
    with pytest.raises(DataError, match=r"^1 predictions were given for 2 questions; give one for each, in order$"):
        evaluate(predictions[:1], rows)
    with pytest.raises(DataError, match=r"^3 predictions were given for 2 questions"):
        evaluate([*predictions, predictions[0]], rows)


# ---- the ladder -------------------------------------------------------------------------------------------------
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
    reached = dict(zip(counts, itertools.accumulate(counts.values()), strict=True))
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
@pytest.mark.skipif("QA_DATA_DIR" not in os.environ, reason="QA_DATA_DIR names no folder with SQuAD")
def test_squads_card_says_which_articles_and_what_people_score():
    rows, card = load_qa("squad", "validation"), load_card("squad")
    people = human_ceiling(rows)
    assert card.fingerprint == fingerprint(rows)
    assert card.titles == rows["title"]
    for shown, scores in ((card.human_exact_match, people.exact_match), (card.human_f1, people.f1)):
        percent = dict(zip(people.id, np.round(100 * scores, 2), strict=True))
        assert shown == [percent.get(id) for id in rows["id"]]  # None where one person answered


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
