"""A look at a written answer: how many sentences it has, and where the course supports each."""

import re
from typing import NamedTuple


class Sentence(NamedTuple):
    """A sentence, and what the course shows of it; no support means: nothing here was measured that speaks of it."""

    text: str
    support: list[str]


def split_sentences(text: str) -> list[str]:
    """Sentences of plain English prose: cut after . ! or ? where a capital, a quote or a bracket follows."""
    joined = " ".join(text.split())
    return [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])", joined) if part]


def review(text: str, topics: dict[str, str]) -> list[Sentence]:
    """Point from each sentence of an answer to what supports it.

    Args:
        text: the answer.
        topics: regular expressions, matched without regard to case, and what supports a sentence that holds one.
    """
    return [
        Sentence(sentence, [support for words, support in topics.items() if re.search(words, sentence, re.IGNORECASE)])
        for sentence in split_sentences(text)
    ]
