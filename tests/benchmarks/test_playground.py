"""The playground: how long a reader waits for an answer, with everything that is shown of it."""

import time
from statistics import median

import pytest
import torch
from tables import print_table

from qa_helpers.data.squad import load_qa
from qa_helpers.model.load import load_qa_model, load_tokenizer
from qa_helpers.widgets.playground import answered_html, ask

pytestmark = pytest.mark.benchmark

ROUNDS = 30
PASSAGE_WORDS = 150
MOST_SECONDS = 0.15


def seconds_of_answers(words: int, rounds: int) -> list[float]:
    """Seconds of each answer, HTML included, to CourseQA's questions about passages of so many words, on one thread."""
    model, tokenizer = load_qa_model("minilm").eval(), load_tokenizer("minilm")  # an untrained head costs as much
    rows = load_qa("courseqa", "validation", rounds + 1)
    text = " ".join(load_qa("courseqa", "validation")["context"]).split()
    seconds = []
    for number, question in enumerate(rows["question"]):
        passage = " ".join(text[number * 10 : number * 10 + words])
        begin = time.perf_counter()
        answered_html(ask(model, tokenizer, question, passage), "minilm")
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]  # the first also warms up


def test_an_answer_comes_at_once() -> None:
    torch.set_num_threads(1)
    short = median(seconds_of_answers(PASSAGE_WORDS, ROUNDS))
    long = median(seconds_of_answers(10_000, 3))
    print_table(
        "Playground: an answer with MiniLM, HTML included, one thread, median",
        ["passage", "milliseconds", "answers"],
        [(f"{PASSAGE_WORDS} words", 1e3 * short, ROUNDS), ("10,000 words, of which the first are read", 1e3 * long, 3)],
    )
    assert short < MOST_SECONDS
