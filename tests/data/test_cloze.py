"""Cloze questions: valid rows for any passage, the span gone from the question, whole words, maximal, repeatable."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_helpers.data import cloze
from qa_helpers.data.cloze import BLANK, MAX_BYTES, MAX_WORDS, STOP_WORDS, cloze_questions, load_cloze, recurring_spans
from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.data.squad_file import read_squad_file
from qa_helpers.data.windows import make_windows

PASSAGE = "The Broncos won. The score was 24 to 10. Fans of the Broncos cheered."


def spans(passage):
    """Recurring spans with the texts and the sentences where they occur."""
    return {
        text: [(passage[place.start : place.end], place.sentence) for place in places]
        for text, places in recurring_spans(passage).items()
    }


def test_the_example_of_the_modules_head():
    rows = [cloze_questions([PASSAGE], seed)[0] for seed in range(10)]
    questions = {row["question"]: row for row in rows}
    assert set(questions) == {"The what won?", "Fans of the what cheered?"}
    row = questions["Fans of the what cheered?"]
    assert row["context"] == "The Broncos won. The score was 24 to 10. "
    assert row["answers"] == {"text": ["Broncos"], "answer_start": [4]}
    assert questions["The what won?"]["answers"] == {"text": ["Broncos"], "answer_start": [36]}
    assert {row["id"] for row in rows} == {"cloze-0-0"}


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ("", {}),
        ("One sentence without an end", {}),
        ("It was so. It was so.", {}),  # function words alone
        ("He ran. He ran.", {"ran": [("ran", 0), ("ran", 1)]}),  # less the stop word
        ("New York. A New York. York.", {"new york": [("New York", 0), ("New York", 1)]}),  # not the "York" in it
        ("Duke of York. Duke of York. Duke.", {"duke of york": [("Duke of York", 0), ("Duke of York", 1)]}),
        ("Cats! the cats? CATS.", {"cats": [("Cats", 0), ("cats", 1), ("CATS", 2)]}),
        ("An art. Artists. Parts.", {}),  # words, not parts of them
        ("It cost 1,000. Then 1,500.", {}),  # numbers, not parts of them
        ("A cat and a cat.", {"cat": [("cat", 0), ("cat", 0)]}),
        ("Red, white. Red white.", {"red": [("Red", 0), ("Red", 1)], "white": [("white", 0), ("white", 1)]}),
        ("Cat. Dog. Dog. Cat.", {"cat": [("Cat", 0), ("Cat", 3)], "dog": [("Dog", 1), ("Dog", 2)]}),
    ],
)
def test_recurring_spans(passage, expected):
    assert spans(passage) == expected


def test_a_span_longer_than_the_limit_is_left_out_with_its_parts():
    words = " ".join(f"word{i}" for i in range(MAX_WORDS))
    assert list(spans(f"{words}. {words}.")) == [words]
    assert spans(f"{words} more. {words} more.") == {}


@pytest.mark.parametrize(
    "passage",
    [
        "A cat and a cat.",  # nothing is left to answer with
        "A cat and a cat. A dog.",
        f"The cat {'x' * MAX_BYTES}. The cat.",
        "The cat is catlike. The cat is categorical.",  # the question would hold the answer
    ],
)
def test_a_span_that_cannot_be_asked_gives_no_row(passage):
    asked = {seed: cloze_questions([passage], seed) for seed in range(5)}
    assert all("cat" not in row["question"].lower() for rows in asked.values() for row in rows)
    assert all(len(row["question"].encode()) <= MAX_BYTES for rows in asked.values() for row in rows)
    if "x" not in passage:
        assert not any(asked.values())


def test_which_answer_stands_first_and_which_sentence_is_asked_are_drawn():
    passage = "Cats run. Cats sit. Cats eat. Cats."
    rows = [cloze_questions([passage], seed)[0] for seed in range(40)]
    assert {row["question"] for row in rows} == {"what run?", "what sit?", "what eat?", "what?"}
    firsts = {(row["question"], row["answers"]["answer_start"][0]) for row in rows}
    assert len(firsts) > 8  # of twelve
    assert all(len(row["answers"]["text"]) == 3 for row in rows)


# ---- any passages -----------------------------------------------------------------------------------------------
WORDS = ["the", "of", "Cat", "cat", "New", "York", "1,000", "don't", "naïve", "İI", "ΑΣ", "日本", "포", "😀", "\x00"]
PASSAGES = st.lists(
    st.tuples(
        st.sampled_from(WORDS) | st.text(min_size=1, max_size=3),
        st.sampled_from([" ", " ", ". ", "! ", "", ", ", "\n"]),
    ),
    max_size=30,
).map(lambda parts: "".join(map("".join, parts)))


def as_file(rows):
    """Rows as a SQuAD file: an article a row."""
    return {
        "data": [
            {
                "title": row["title"],
                "paragraphs": [
                    {
                        "context": row["context"],
                        "qas": [
                            {
                                "id": row["id"],
                                "question": row["question"],
                                "answers": [
                                    {"text": text, "answer_start": start}
                                    for text, start in zip(*row["answers"].values(), strict=True)
                                ],
                            }
                        ],
                    }
                ],
            }
            for row in rows
        ]
    }


def is_word_edge(text, at):
    return not re.fullmatch(r"\w\w", text[max(0, at - 1) : at + 1])


@settings(max_examples=300)
@given(passages=st.lists(PASSAGES, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_rows_of_any_passages_are_valid(tmp_path_factory, passages, seed):
    rows = cloze_questions(passages, seed)
    assert rows == cloze_questions(iter(passages), seed)
    assert rows[: len(cloze_questions(passages[:1], seed))] == cloze_questions(passages[:1], seed)
    if rows:
        path = tmp_path_factory.getbasetemp() / "cloze.json"
        path.write_text(json.dumps(as_file(rows)), encoding="utf-8")
        assert read_squad_file(path) == rows  # answers at their offsets, ids unique, nothing empty
    for row in rows:
        assert BLANK in row["question"]
        assert len(row["question"].encode()) <= MAX_BYTES
        passage = passages[int(row["title"].split()[1])]
        for text, start in zip(*row["answers"].values(), strict=True):
            assert text.lower() == row["answers"]["text"][0].lower()
            assert text.lower() not in row["question"].lower()
            assert is_word_edge(row["context"], start)
            assert is_word_edge(row["context"], start + len(text))
            assert text in passage


@settings(max_examples=200)
@given(PASSAGES)
def test_recurring_spans_of_any_passage_recur_and_are_maximal(passage):
    """Against every run of words that recurs, found one by one."""
    words = [[m.span() for m in cloze._WORD.finditer(passage, *bounds)] for bounds in cloze._sentences(passage)]
    texts = {}
    for sentence, its_words in enumerate(words):
        for i in range(len(its_words)):
            for j in range(i, min(i + MAX_WORDS + 1, len(its_words))):
                text = passage[its_words[i][0] : its_words[j][1]].lower()
                texts.setdefault(text, []).append((sentence, i, j))
    recurring = [run for places in texts.values() if len(places) > 1 for run in places]
    expected = {}
    for s, i, j in recurring:
        if j - i == MAX_WORDS or any(s == t and k <= i and j <= m and (i, j) != (k, m) for t, k, m in recurring):
            continue
        while i <= j and passage[slice(*words[s][i])].lower() in STOP_WORDS:
            i += 1
        while i <= j and passage[slice(*words[s][j])].lower() in STOP_WORDS:
            j -= 1
        if i <= j:
            start, end = words[s][i][0], words[s][j][1]
            expected.setdefault(passage[start:end].lower(), set()).add((start, end, s))
    found = {text: set(places) for text, places in recurring_spans(passage).items()}
    assert found == {text: places for text, places in expected.items() if len(places) > 1}


@settings(max_examples=50)
@given(passage=PASSAGES)
def test_every_question_leaves_room_for_its_passage(tokenizer, passage):
    rows = cloze_questions([passage * 3 + "x. " * 300])
    assert len({window.question for window in make_windows(rows, tokenizer)}) == len(rows)


def test_passages_that_say_nothing_twice_are_an_error(tmp_path):
    row = {"id": "q", "title": "t", "context": "A cat.", "question": "Who?", "answers": {"text": ["cat"]}}
    row["answers"]["answer_start"] = [2]
    (tmp_path / "train.json").write_text(json.dumps(as_file([row])))
    with pytest.raises(DataError, match="say nothing twice"):
        load_cloze(str(tmp_path))


# ---- of a data set ----------------------------------------------------------------------------------------------
def test_courseqas_training_passages_give_questions_and_its_validation_passages_none():
    rows = load_cloze("courseqa")
    train, validation = (set(load_qa("courseqa", split)["context"]) for split in ("train", "validation"))
    assert len(rows) > 200
    assert len(set(rows["id"])) == len(rows)
    titles = list(dict.fromkeys(load_qa("courseqa", "train")["context"]))
    for row in rows:
        passage = titles[int(row["title"].split()[1])]
        assert passage in train - validation
        assert len(row["context"]) < len(passage)
    assert rows.features.keys() == load_qa("courseqa", limit=1).features.keys()


def test_the_first_or_a_draw_of_them_and_another_seed_asks_otherwise():
    rows = load_cloze("courseqa")["id"]
    assert load_cloze("courseqa", 20)["id"] == rows[:20]
    drawn = load_cloze("courseqa", 20, "random")["id"]
    assert drawn != rows[:20]
    assert load_cloze("courseqa", 40, "random")["id"][:20] == drawn
    assert load_cloze("courseqa", 20, seed=1)["question"] != load_cloze("courseqa", 20)["question"]
    with pytest.raises(DataError, match=r"10000 questions were asked of 'courseqa \(cloze questions\)', which holds"):
        load_cloze("courseqa", 10_000)
