"""A written answer: its sentences, and what supports each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.course.grading import review, split_sentences


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("  \n ", 0),
        ("One without an end", 1),
        ("It learns. It forgets! Does it? Yes.", 4),
        ("It scored 43.2 on 1.5 million words, e.g. on these. Then it stopped.", 2),
        ('He said "it works." Then "It did not."', 2),
        ("A line\nbroken in two. (And a bracket.) End.", 3),
    ],
)
def test_sentences_are_counted(text, count):
    assert len(split_sentences(text)) == count


@given(st.lists(st.from_regex(r"[A-Z][a-z]{0,9}( [a-z]{1,9}){0,5}[.!?]", fullmatch=True), max_size=8))
def test_sentences_that_are_joined_are_split_again(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


def test_each_sentence_is_pointed_to_all_that_supports_it():
    topics = {r"frozen|freez": "section 2", r"\blora\b": "figure 1", "forget": "section 3"}
    reviewed = review("LoRA keeps the weights frozen. Nothing is said here. Freezing helps not to forget.", topics)
    assert [sentence.support for sentence in reviewed] == [["section 2", "figure 1"], [], ["section 2", "section 3"]]
    assert reviewed[1].text == "Nothing is said here."
