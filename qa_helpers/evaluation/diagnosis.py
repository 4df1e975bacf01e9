"""What a score is made of: which leniency of the metric made an answer right, and how well people agree themselves."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from qa_helpers.common.io import read_json
from qa_helpers.data.rows import DataError, given_answers, matched, row_id
from qa_helpers.data.squad import ASSETS, fingerprint
from qa_helpers.evaluation.span_answers import contained, exact_match, f1, string_equality

# ---- the metric, step by step ----------------------------------------------------------------------------------
# An article between white space, and the white space after it. The official metric also takes "the" out of "the-cat",
# once the hyphen is gone: that is left to the step that ignores punctuation, as a step must keep what was right before.
_ARTICLE_BEFORE_SPACE = re.compile(r"(?<!\S)(a|an|the)(\s+|$)")


def _without_articles(text: str) -> str:
    return _ARTICLE_BEFORE_SPACE.sub("", text.lower()).strip()


LADDER: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "equals the first answer": lambda prediction, answers: prediction == answers[0],
    "but for case": string_equality,
    "but for articles": lambda prediction, answers: _without_articles(prediction) == _without_articles(answers[0]),
    "but for punctuation and white space": lambda prediction, answers: exact_match(prediction, answers[:1]),
    "equals any answer, but for these (EM)": exact_match,
    "holds an answer and more words": contained,
}
REST = "none of these"


def ladder_step(prediction: str, answers: Sequence[str]) -> str:
    """The first step of `LADDER`, from the strictest metric to the most lenient, that makes a prediction right.

    `REST` if none does.
    """
    return next((step for step, right in LADDER.items() if right(prediction, answers)), REST)


def metric_ladder(predictions: Iterable[str], answers: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many predictions each step of `LADDER` makes right that no earlier one did, and the `REST`.

    The counts add up to all questions. Summed up to "(EM)" they are the official exact match. Those of "but for
    articles" are the answers that a comparison of strings calls wrong for an article, and at most for case besides.

    Raises:
        DataError: if there are not as many predictions as lists of answers.
    """
    counts = Counter(ladder_step(*pair) for pair in matched(predictions, answers))
    return {step: counts[step] for step in (*LADDER, REST)}


# ---- people ----------------------------------------------------------------------------------------------------
class Agreement(NamedTuple):
    """EM and F1 a question, 0 to 1, each averaged over the annotator who is left out of the given answers."""

    id: list[str]  # the questions with at least two answers
    exact_match: np.ndarray
    f1: np.ndarray


def human_ceiling(rows: Iterable[dict[str, Any]]) -> Agreement:
    """How well people would score: each annotator's answer against the others', averaged over annotators.

    SQuAD's authors took the second answer alone as the human one, against the others (Rajpurkar et al. 2016,
    arXiv:1606.05250). The average over all annotators estimates the same, if their order means nothing, with less
    noise: on dev-v1.1.json EM 81.8 and F1 91.6; the second answers alone give 81.5 and 91.0.

    A model's usual score is not comparable: it may match one given answer more. `score_without_one` is.

    Args:
        rows: questions with `id` and `answers`; those with a single answer are passed over.

    Raises:
        DataError: if no question has two answers, or one has none.
    """
    rows = list(rows)
    return _without_one(rows, [_given(row, place) for place, row in enumerate(rows)])


def score_without_one(predictions: Iterable[str], rows: Iterable[dict[str, Any]]) -> Agreement:
    """A model's score by the rule of `human_ceiling`: against all given answers but one, averaged over which one.

    Raises:
        DataError: if no question has two answers, one has none, or there are not as many predictions as rows.
    """
    rows = list(rows)
    texts = [[text] * len(_given(row, place)) for place, (text, row) in enumerate(matched(predictions, rows))]
    return _without_one(rows, texts)


def _given(row: dict[str, Any], place: int) -> list[str]:
    return given_answers(row, f"question '{row_id(row, place)}'")


def _without_one(rows: Sequence[dict[str, Any]], guesses: Sequence[Sequence[str]]) -> Agreement:
    """Scores of each row's guesses, the i-th against all given answers but the i-th."""
    ids, em, word_overlap = [], [], []
    for place, (row, texts) in enumerate(zip(rows, guesses, strict=True)):
        given = _given(row, place)
        if len(given) < 2:
            continue
        pairs = [(text, given[:i] + given[i + 1 :]) for i, text in enumerate(texts)]
        ids.append(row_id(row, place))
        em.append(np.mean([exact_match(*pair) for pair in pairs]))
        word_overlap.append(np.mean([f1(*pair) for pair in pairs]))
    if not ids:
        raise DataError("no question has two answers to hold against each other")
    return Agreement(ids, np.array(em), np.array(word_overlap))


# ---- what a notebook says of data that are not at hand ---------------------------------------------------------
class DataCard(BaseModel):
    """Of a validation set: which articles it asks about, and what people score on it. No text of its questions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str  # of the rows, see `squad.fingerprint`
    articles: list[tuple[str, int]]  # title and number of questions, in the set's order
    human_exact_match: list[float | None]  # percent, a question, by `human_ceiling`; None where one person answered
    human_f1: list[float | None]

    @property
    def titles(self) -> list[str]:
        """The article of each question, in the set's order."""
        return [title for title, count in self.articles for _ in range(count)]


def data_card(rows: Any) -> DataCard:
    """The card of a validation set, as `load_qa` gives it."""
    people = human_ceiling(rows)
    em, word_overlap = (
        dict(zip(people.id, people.exact_match, strict=True)),
        dict(zip(people.id, people.f1, strict=True)),
    )

    def percent(scores: dict[str, float]) -> list[float | None]:
        return [round(100 * float(scores[id]), 2) if id in scores else None for id in rows["id"]]

    return DataCard(
        fingerprint=fingerprint(rows),
        articles=[(title, len(list(group))) for title, group in groupby(rows["title"])],
        human_exact_match=percent(em),
        human_f1=percent(word_overlap),
    )


def load_card(name: str = "squad", folder: Path = ASSETS) -> DataCard:
    """The card that comes with the course of a data set that does not: SQuAD's validation set is not in the package.

    Raises:
        DataError: if there is none, or it is not of that form.
    """
    path = folder / f"{name}-validation-card.json"
    raw = read_json(path, DataError)
    try:
        return DataCard.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None
