"""A run question by question: what an answer can be worth is accepted, what none can be is not; the known questions."""

import json
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qa_helpers.data.squad import ASSETS, fingerprint, load_qa
from qa_helpers.evaluation.metrics import (
    CATEGORIES,
    LADDER,
    contained,
    error_category,
    exact_match,
    f1,
    ladder_step,
    metric_ladder,
    relation,
    string_equality,
)
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.questions import Questions, Relation, digest, known_questions
from qa_helpers.experiment.spec import EvalSet, SpanTraining, chosen_questions

WORDS = st.sampled_from(["the", "a", "An", "cat", "Cat,", "dog", "x-ray", "1,000", "!", "é", "ten", "\u00a0", ""])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


def test_the_relations_are_the_ladders_steps_and_the_categories_of_what_is_wrong():
    assert get_args(Relation) == (*LADDER, *list(CATEGORIES)[2:])
    assert list(CATEGORIES)[:2] == ["exact", "too long"]  # which follow from a step


@settings(max_examples=400)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=8))
@example([("cat the dog", ["dog cat"])])  # the same words in another order: F1 is 1
@example([("the", ["a!"]), ("", ["the"]), ("!", [""])])  # nothing is left of these
def test_what_an_answer_is_worth_follows_from_what_is_stored(pairs):
    texts, answers = zip(*pairs, strict=True)
    questions = Questions(
        id=[str(number) for number in range(len(pairs))],
        prediction=list(texts),
        confidence=[0.5] * len(pairs),
        f1=[round(f1(*pair), 4) for pair in pairs],
        relation=[relation(*pair) for pair in pairs],
    )
    assert questions.string_equality == [string_equality(*pair) for pair in pairs]
    assert questions.exact_match == [exact_match(*pair) for pair in pairs]
    assert questions.contained == [contained(*pair) for pair in pairs]
    assert questions.category == [error_category(*pair) for pair in pairs]
    assert questions.ladder(range(len(pairs))) == metric_ladder(texts, answers)
    for pair in pairs:
        assert relation(*pair) == (error_category(*pair) if ladder_step(*pair) not in LADDER else ladder_step(*pair))


def test_of_fifty_answers_made_right_the_first_is_named():
    texts = [f"answer {number}" for number in range(200)]
    columns = {"id": texts, "prediction": texts, "confidence": [0.5] * 200}
    wrong = {"f1": [0.0] * 200, "relation": ["elsewhere"] * 200}
    Questions.model_validate(columns | wrong)
    wrong["relation"][50:100] = ["equals the first answer"] * 50
    with pytest.raises(ValueError, match="question 'answer 50': the prediction 'answer 50' cannot have"):
        Questions.model_validate(columns | wrong)


def test_a_copy_has_the_columns_that_follow_from_its_own():
    questions = Questions(id=["a"], prediction=["x"], confidence=[0.5], f1=[1.0], relation=["but for case"])
    assert questions.exact_match == [1]
    assert questions.model_copy(update={"relation": ["overlap"]}).exact_match == [0]


# ---- known questions --------------------------------------------------------------------------------------------
def test_courseqas_known_questions_are_those_of_its_validation_set():
    rows = load_qa("courseqa", "validation")
    for evaluations in ({"all": EvalSet()}, {"few": EvalSet(limit=40, sampling="random")}):
        chosen, _ = chosen_questions(SpanTraining(name="x", evaluations=evaluations), len(rows))
        asked = rows.select(chosen)
        assert known_questions(fingerprint(asked), chosen) == ("courseqa", asked["id"])


def test_each_known_fingerprint_has_a_digest_and_each_data_set_its_ids():
    known = json.loads((ASSETS / "validation-ids.json").read_text())
    assert {name: len(set(one["ids"])) for name, one in known.items()} == {"courseqa": 206, "squad": 10_570}
    for one in known.values():
        assert digest(one["ids"]) in one["asked"].values()
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_a_known_fingerprint_is_not_that_of_other_questions():
    assert known_questions("0" * 16, [0, 1]) is None
    with pytest.raises(RecordError, match="fingerprint 591375b3c70d0190 is of other questions of courseqa than are"):
        known_questions("591375b3c70d0190", [0, 1])
