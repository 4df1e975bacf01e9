"""Rows: questions with their passages, read from a file or made in memory. What they must hold is checked here, once.

A row's columns stand at the head of `qa_helpers.data.squad`. To ask a model, `question` and `context` are enough; to
train or to score, a row has `answers` too. An `id` is text or a whole number; a row without one is named by its place,
from 0.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Required, TypedDict

from qa_helpers.common.io import CourseError, half_character

ANSWERS_FORM = "{'text': [...], 'answer_start': [...]}, two lists of one length"
_UNSEEN = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf"))  # Unicode's categories of white space, control and format marks


class GivenAnswers(TypedDict):
    """The answers that annotators gave to one question: two lists of one length."""

    text: list[str]
    answer_start: list[int]  # each answer's first character in the passage


class Row(TypedDict, total=False):
    """A question with its passage; a `datasets.Dataset` yields such rows."""

    id: str
    title: str  # of the article
    context: Required[str]  # the passage
    question: Required[str]
    answers: GivenAnswers


class DataError(CourseError):
    """A data set that cannot be found or is not in SQuAD's form, or rows that no model can be asked or scored on."""


def check_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list, each of which a model can be asked, and whose answers, where it has any, are in place.

    Raises:
        DataError: naming the question and what is wrong.
    """
    rows = _listed(rows)
    for number, row in enumerate(rows):
        check_row(row, f"question '{short(row_id(row, number))}'")
    return rows


def check_row(row: Row, where: str) -> None:
    """Check one row, which a `DataError` calls `where`."""
    for name in ("question", "context"):
        if name not in row:
            raise DataError(f"{where}: has no '{name}'")
        check_text(row[name], f"{where}: the {name}")
    if is_blank(row["question"]):
        raise DataError(f"{where}: the question is empty; ask something")
    if row.get("answers") is None:
        return
    texts, starts = given_answers(row, where), row["answers"].get("answer_start")
    if not isinstance(starts, Sequence) or len(starts) != len(texts):
        raise DataError(f"{where}: its answers are not {ANSWERS_FORM}")
    for text, start in zip(texts, starts, strict=True):
        _check_place(text, start, row["context"], where)


def row_id(row: Row, number: int) -> str:
    """The id of a row as text; its place in the list where it has none.

    Raises:
        DataError: if it is no row, or its id neither text nor a whole number.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"item {number} is of type {type(row).__name__}, not a row; give a list of rows (dictionaries)")
    id = row.get("id", number)
    if isinstance(id, bool) or not isinstance(id, str | Integral):
        raise DataError(f"item {number} has the id {short(id)}; an id is text or a whole number")
    check_text(str(id), f"item {number}: its id")
    return str(id)


def given_answers(row: Row, where: str) -> list[str]:
    """The texts of the answers that a row gives: at least one, none of them empty.

    Raises:
        DataError: if it gives none, or they are not of the form that the head of `qa_helpers.data.squad` shows.
    """
    answers = row.get("answers")
    if answers is None:
        raise DataError(f"{where}: has no 'answers' to train or score with; only asking works without")
    texts = answers.get("text") if isinstance(answers, Mapping) else None
    if not isinstance(texts, list | tuple):
        raise DataError(f"{where}: its answers are not {ANSWERS_FORM}")
    if not texts:
        raise DataError(f"{where}: {NO_ANSWER}")
    for text in texts:
        check_text(text, f"{where}: the answer")
        if is_blank(text):
            raise DataError(f"{where}: the answer '{short(text)}' holds nothing that can be seen; mend or remove it")
    return list(texts)


NO_ANSWER = "has no answer, as some of SQuAD 2.0's; models here always answer (SQuAD 1.1): leave such questions out"


def check_text(text: Any, what: str) -> None:
    """Check that something is text, and whole: half a character goes into no tokenizer and no file.

    Raises:
        DataError: in which it is called `what`.
    """
    if not isinstance(text, str):
        raise DataError(f"{what} is {short(text)}, of type {type(text).__name__}; it must be text")
    if problem := half_character(text):
        raise DataError(f"{what} {problem}; remove it")


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that can be seen."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


def matched(predictions: Iterable[Any], rows: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each prediction with what stands at its place among the rows.

    Raises:
        DataError: if there are not as many.
    """
    predictions, rows = list(predictions), _listed(rows)
    if len(predictions) != len(rows):
        raise DataError(
            f"{len(predictions):,} predictions were given for {len(rows):,} questions; give one for each, in order"
        )
    return list(zip(predictions, rows, strict=True))


def _listed(rows: Iterable[Any]) -> list[Any]:
    if isinstance(rows, Mapping):
        raise DataError(
            "a dictionary was given instead of a list of rows; put a single row into a list, and take the first n rows "
            "of a data set with select(range(n)) instead of [:n]"
        )
    return list(rows)


def short(value: Any, most: int = 60) -> str:
    """The beginning of a text or another value as an error shows it: in one line, and what cannot be seen as a code."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:most])[1:-1] + "…" * (len(text) > most)


# ---- answers in their place ------------------------------------------------------------------------------------
def _check_place(text: str, start: Any, context: str, where: str) -> None:
    if isinstance(start, bool) or not isinstance(start, Integral) or start < 0:
        raise DataError(f"{where}: answer_start is {short(start)}; it must be a whole number from 0 on")
    start = int(start)
    there = context[start : start + len(text)]
    if there == text:
        return
    # Longer than the answer: another way to write it may take more characters.
    if _as_seen(context[start : start + 4 * len(text)]).startswith(_as_seen(text)):
        raise DataError(
            f"{where}: answer_start {start} points at '{short(there)}', which only looks like the answer "
            f"'{short(text)}': {_difference(context[start:], text)}"
        )
    if start + len(text) > len(context):
        raise DataError(
            f"{where}: the answer '{short(text)}' at {short(start)} ends past the context's {len(context)} characters"
        )
    raise DataError(f"{where}: answer_start {start} points at '{short(there)}', not at the answer '{short(text)}'")


def _as_seen(text: str) -> str:
    """A text without what a reader does not see: how accents are composed, which space it is, format marks."""
    seen = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return re.sub(r"\s", " ", "".join(seen))


def _difference(there: str, text: str) -> str:
    """Where two texts that look alike part, and what to do about it."""
    parted = next(i for i in range(len(text) + 1) if there[i : i + 1] != text[i : i + 1])
    parting = f"{_character(there[parted : parted + 1])} there, {_character(text[parted : parted + 1])} in the answer"
    composed = unicodedata.normalize("NFC", text)
    if unicodedata.normalize("NFC", there).startswith(composed):
        which = "answer" if text != composed else "context"
        return (
            f"the {which} is written with decomposed accents ({parting}); put both through "
            "unicodedata.normalize('NFC', …) and count answer_start anew"
        )
    return f"{parting}; copy the answer from the context"


def _character(character: str) -> str:
    if not character:
        return "the end"
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip()
