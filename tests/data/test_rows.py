"""Rows in memory: what a model can be asked is asked, and everything else is refused in one sentence."""

import copy
import json
import math
import warnings

import pytest
from any_json import JSON, mutated, nodes
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.common.io import CourseError
from qa_helpers.data.cloze import cloze_questions
from qa_helpers.data.rows import DataError
from qa_helpers.data.windows import make_windows
from qa_helpers.evaluation import span_answers, written_answers
from qa_helpers.evaluation.metrics import evaluate, human_ceiling, metric_ladder, score_without_one
from qa_helpers.evaluation.retrieval import embed, retrieval_ranks
from qa_helpers.evaluation.span_answers import Prediction, answer
from qa_helpers.experiment.spec import AsItComes, EvalSet, SpanTraining
from qa_helpers.experiment.store import run_experiment
from qa_helpers.rlhf.policy import one_window
from qa_helpers.rlhf.preferences import human_candidates

CONTEXT = "The mill at Eastbrook was built in 1871."
ROW = {
    "id": "a",
    "title": "Mill",
    "question": "When was it built?",
    "context": CONTEXT,
    "answers": {"text": ["1871", "in 1871"], "answer_start": [35, 32]},
}
BARE = {name: value for name, value in ROW.items() if name != "answers"}
HALF = "a \ud83d"


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(1).eval()


def gave(text, start=0):
    return ROW | {"answers": {"text": text, "answer_start": start}}


WRONG = {  # what is wrong: (the rows, what is said)
    "no answer": ([gave([], [])], "question 'a': has no answer, as some of SQuAD 2.0's; models here always answer"),
    "answers as in a file": (
        [ROW | {"answers": [{"text": "1871", "answer_start": 35}]}],
        "question 'a': its answers are not {'text': [...], 'answer_start': [...]}, two lists of one length",
    ),
    "answers a text": ([gave("1871", [35])], "its answers are not {'text'"),
    "no starts": ([ROW | {"answers": {"text": ["1871"]}}], "its answers are not {'text'"),
    "a start less": ([gave(["1871", "1871"], [35])], "two lists of one length"),
    "a blank answer": ([gave([" "], [3])], "question 'a': the answer ' ' holds nothing that can be seen"),
    "an answer of format marks": ([gave(["\u200b"], [3])], r"the answer '\u200b' holds nothing that can be seen"),
    "an answer elsewhere": ([gave(["1871"], [3])], "answer_start 3 points at ' mil', not at the answer '1871'"),
    "an answer past the end": ([gave(["1871"], [39])], "ends past the context's 40 characters"),
    "a start below 0": ([gave(["1871"], [-5])], "answer_start is -5; it must be a whole number from 0 on"),
    "a start that is a fraction": ([gave(["1871"], [35.0])], "answer_start is 35.0"),
    "half a character in the question": (
        [BARE | {"question": HALF}],
        r"question 'a': the question holds half a character, \ud83d, after 'a '; remove it",
    ),
    "half a character in the context": ([BARE | {"context": HALF}], r"question 'a': the context holds half"),
    "half a character in an answer": ([gave([HALF], [0])], r"question 'a': the answer holds half a character"),
    "half a character in the id": ([BARE | {"id": HALF}], r"item 0: its id holds half a character"),
    "no question": ([{"context": CONTEXT}], "question '0': has no 'question'"),
    "no context": ([{"question": "When?"}], "question '0': has no 'context'"),
    "a question that is None": ([BARE | {"question": None}], "the question is None, of type NoneType; it must be text"),
    "a blank question": ([BARE | {"question": " \n"}], "question 'a': the question is empty; ask something"),
    "an id that is a fraction": ([BARE | {"id": 5.5}], "item 0 has the id 5.5; an id is text or a whole number"),
    "one row": (BARE, "a dictionary was given instead of a list of rows"),
    "texts": (["When?"], "item 0 is of type str, not a row; give a list of rows"),
}


@pytest.mark.parametrize(("rows", "words"), WRONG.values(), ids=WRONG)
def test_rows_that_no_model_can_be_asked_are_refused_in_one_sentence(model, tokenizer, rows, words):
    for ask in (
        lambda: answer(model, tokenizer, rows),
        lambda: one_window(rows, tokenizer),
        lambda: retrieval_ranks(model, tokenizer, rows, [CONTEXT]),
        lambda: written_answers.answer(model, tokenizer, rows),  # refused before the model is used
        lambda: written_answers.training_features(rows, tokenizer),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).encode()


@given(data=st.data())
def test_a_row_with_any_one_node_changed_is_answered_or_refused(model, tokenizer, data):
    path = data.draw(st.sampled_from(list(nodes(ROW))))
    row = mutated(ROW, path, data.draw(JSON | st.text() | st.just(HALF)), data.draw(st.booleans()))
    try:
        found = answer(model, tokenizer, [row])
        results = evaluate(found.predictions, [row])
    except CourseError as problem:
        sentence = str(problem)
    else:
        sentence = ""
    assert "\n" not in sentence
    assert sentence.encode() or results
    if sentence:
        return
    assert results[0].id == str(row.get("id", 0))
    assert math.isfinite(found.loss) or not row["context"].strip()
    for window in make_windows([row], tokenizer):
        assert (0, 0) not in window.spans  # every answer that is accepted has a label


@pytest.mark.parametrize(("id", "shown"), [(5, "5"), ("5", "5"), (None, "0")])
def test_ids_may_be_whole_numbers_or_absent(model, tokenizer, id, shown):
    row = ROW | {"id": id} if id is not None else {name: value for name, value in ROW.items() if name != "id"}
    found = answer(model, tokenizer, [row])
    assert found.predictions[0].id == shown
    assert evaluate(found.predictions, [row])[0].id == shown
    assert human_ceiling([row]).id == [shown]


def test_scoring_needs_answers(model, tokenizer):
    predictions = answer(model, tokenizer, [BARE]).predictions
    for rows, words in (
        ([BARE], "question 'a': has no 'answers' to train or score with; only asking works without"),
        ([gave([])], "question 'a': has no answer"),
        ([gave([" "])], "holds nothing that can be seen"),
        (BARE, "a dictionary was given instead of a list of rows"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(predictions, rows)
    with pytest.raises(DataError, match="question 'a': has no 'answers'"):
        human_ceiling([BARE])
    with pytest.raises(DataError, match="has no 'answers'"):
        human_candidates(one_window([BARE], tokenizer)[0])
    with pytest.raises(DataError, match="has no 'answers'"):
        written_answers.training_features([BARE], FakeChat())


class FakeChat:
    """A tokenizer whose prompts are empty."""

    def apply_chat_template(self, *_args, **_options):
        return []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_predictions_than_of_questions_is_said_the_same_everywhere(count):
    rows = [ROW, ROW | {"id": "b"}]
    predictions = [Prediction("a", [])] * count
    for score in (
        lambda: evaluate(predictions, rows),
        lambda: metric_ladder(["1871"] * count, [["1871"]] * 2),
        lambda: score_without_one(["1871"] * count, rows),
    ):
        with pytest.raises(DataError, match=f"^{count} predictions were given for 2 questions; give one for each"):
            score()


def test_texts_to_embed_and_passages_to_ask_about_are_texts(model, tokenizer):
    for texts, words in (([], "there are no texts"), (["a", HALF], r"text 1 holds half"), ([5], "it must be text")):
        with pytest.raises(DataError, match=words):
            embed(model, tokenizer, texts)
    for passages, words in (([CONTEXT, HALF], "passage 1 holds half"), (CONTEXT, "one text was given"), ([5], "5")):
        with pytest.raises(DataError, match=words):
            cloze_questions(passages)


# ---- answers that are longer than a model may give ---------------------------------------------------------------
def long_row(words, more=()):
    context = " ".join(f"w{number % 10}" for number in range(600))
    texts = [" ".join(context.split()[3 : 3 + count]) for count in (words, *more)]
    answers = {"text": texts, "answer_start": [context.index("w3")] * len(texts)}
    return {"id": "l", "question": "What?", "context": context, "answers": answers}


def test_questions_with_only_long_answers_are_counted(tokenizer, course):
    assert len(tokenizer("w1", add_special_tokens=False)["input_ids"]) == 2
    assert span_answers.out_of_reach([long_row(15)], tokenizer) == 0
    assert span_answers.out_of_reach([long_row(16)], tokenizer) == 1
    assert span_answers.out_of_reach([long_row(16, [15])], tokenizer) == 0  # another answer is short enough
    assert span_answers.out_of_reach([long_row(300)], tokenizer) == 1  # in no window whole
    assert span_answers.out_of_reach([*course[:3], long_row(16), *course[3:6], long_row(17)], tokenizer) == 2
    assert span_answers.out_of_reach(course, tokenizer) == 0
    assert span_answers.out_of_reach([], tokenizer) == 0


def test_the_long_answers_of_a_language_model_leave_room_for_its_end(tokenizer):
    rows = [long_row(15), long_row(16), long_row(40), long_row(40, [15])]
    assert written_answers.MAX_NEW_TOKENS == 32
    assert written_answers.out_of_reach(rows[:1], tokenizer) == 0
    assert written_answers.out_of_reach(rows, tokenizer) == 2


def test_a_run_says_once_how_many_questions_no_model_can_answer(tmp_path):
    def file(*words):
        rows = [long_row(count) for count in words]
        paragraphs = [
            {
                "context": row["context"],
                "qas": [
                    {
                        "id": f"l{number}",
                        "question": row["question"],
                        "answers": [
                            {"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}
                        ],
                    }
                ],
            }
            for number, row in enumerate(rows)
        ]
        return json.dumps({"data": [{"title": "Long", "paragraphs": paragraphs}]})

    (tmp_path / "train.json").write_text(file(3, 16))
    (tmp_path / "dev.json").write_text(file(16, 3, 4, 20))
    experiment = SpanTraining(
        name="long",
        data=str(tmp_path),
        train_size=2,
        epochs=1,
        probe_size=1,  # scored after the epoch, which says nothing of its own
        evaluations={"all": EvalSet()},
    )
    sentence = "1 of 2 training and 2 of 4 evaluation questions have only answers that are longer than a model may give"
    with pytest.warns(UserWarning, match=sentence) as caught:
        run_experiment(experiment, tmp_path / "runs")
    assert [one.filename for one in caught if "longer than a model" in str(one.message)] == [__file__]
    with warnings.catch_warnings():  # read back, it says nothing
        warnings.filterwarnings("error", message=".*longer than a model")
        run_experiment(experiment, tmp_path / "runs")


def test_a_run_on_courseqa_has_nothing_to_say(finished):
    folder, run = finished
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*longer than a model")
        experiment = AsItComes(name="quiet", evaluations=run.experiment.evaluations)
        run_experiment(experiment, folder.parent / "quiet")


def test_rows_are_left_as_they_were(model, tokenizer):
    rows = [copy.deepcopy(ROW)]
    evaluate(answer(model, tokenizer, rows).predictions, rows)
    assert rows == [ROW]
