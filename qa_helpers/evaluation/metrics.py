"""What an answer is worth: the official SQuAD metric and its relatives, how lenient each is, and how people score.

Source of exact match and F1: Rajpurkar et al. 2016, arXiv:1606.05250, and its evaluate-v1.1.py.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from qa_helpers.common.io import read_json
from qa_helpers.data.rows import DataError, Row, given_answers, matched, row_id
from qa_helpers.data.squad import ASSETS

if TYPE_CHECKING:  # metrics of text need no torch
    from qa_helpers.evaluation.span_answers import Prediction


# ---- metrics ---------------------------------------------------------------------------------------------------
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space: what the official metric compares."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def string_equality(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals the *first* given answer but for case: a naive "accuracy"."""
    return prediction.lower() == answers[0].lower()


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Official exact match (EM): normalised equality with any given answer."""
    return any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Official F1: harmonic mean of the precision and recall of normalised words, the best over the given answers.

    Between two texts that are both empty once normalised ("the", "a!") it is 0, although their exact match is 1: so
    evaluate-v1.1.py has it. SQuAD 2.0's script and torchmetrics give 1 there.
    """
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in answers)


def _f1(prediction: list[str], answer: list[str]) -> float:
    shared = (Counter(prediction) & Counter(answer)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def contained(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a given answer, normalised, stands in the prediction as whole words."""
    text = f" {normalize_answer(prediction)} "
    return any(f" {answer} " in text for answer in map(normalize_answer, answers) if answer)


CATEGORIES = {
    "exact": "equals a given answer, normalised",
    "too long": "holds a given answer and more words",
    "too short": "is part of a given answer",
    "overlap": "shares words with a given answer",
    "elsewhere": "shares no word with any given answer",
    "empty": "is empty once normalised",
}


def error_category(prediction: str, answers: Sequence[str]) -> str:
    """How a prediction relates to the given answers: the first key of `CATEGORIES` that fits."""
    text = normalize_answer(prediction)
    if exact_match(prediction, answers):
        return "exact"
    if not text:
        return "empty"
    if contained(prediction, answers):
        return "too long"
    if any(f" {text} " in f" {normalize_answer(answer)} " for answer in answers):
        return "too short"
    return "overlap" if f1(prediction, answers) > 0 else "elsewhere"


@dataclass(frozen=True)
class Result:
    """One question's prediction and what each metric says of it."""

    id: str
    prediction: str
    confidence: float
    string_equality: bool
    exact_match: bool
    f1: float
    contained: bool
    category: str


def evaluate(predictions: Iterable["Prediction"], rows: Iterable[Row]) -> list[Result]:
    """Score predictions against the rows they answer, in the rows' order.

    Raises:
        DataError: if predictions and rows are not of the same questions, or a row gives no answer.
    """
    results = []
    for number, (prediction, row) in enumerate(matched(predictions, rows)):
        id = row_id(row, number)
        if prediction.id != id:
            raise DataError(
                f"prediction of question '{prediction.id}' stands at question '{id}'; put both in the same order"
            )
        text, answers = prediction.text, given_answers(row, f"question '{id}'")
        results.append(
            Result(
                id=prediction.id,
                prediction=text,
                confidence=prediction.confidence,
                string_equality=string_equality(text, answers),
                exact_match=exact_match(text, answers),
                f1=f1(text, answers),
                contained=contained(text, answers),
                category=error_category(text, answers),
            )
        )
    return results


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


def relation(prediction: str, answers: Sequence[str]) -> str:
    """How a prediction relates to the given answers: the step of `LADDER`, else how it is wrong, of `CATEGORIES`."""
    step = ladder_step(prediction, answers)
    return error_category(prediction, answers) if step == REST else step


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


def human_ceiling(rows: Iterable[Row]) -> Agreement:
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
    return _without_one(rows, [_given(row, number) for number, row in enumerate(rows)])


def score_without_one(predictions: Iterable[str], rows: Iterable[Row]) -> Agreement:
    """A model's score by the rule of `human_ceiling`: against all given answers but one, averaged over which one.

    Raises:
        DataError: if no question has two answers, one has none, or there are not as many predictions as rows.
    """
    rows = list(rows)
    texts = [[text] * len(_given(row, number)) for number, (text, row) in enumerate(matched(predictions, rows))]
    return _without_one(rows, texts)


def _given(row: Row, number: int) -> list[str]:
    return given_answers(row, f"question '{row_id(row, number)}'")


def _without_one(rows: Sequence[Row], guesses: Sequence[Sequence[str]]) -> Agreement:
    """Scores of each row's guesses, the i-th against all given answers but the i-th."""
    ids, em, word_overlap = [], [], []
    for number, (row, texts) in enumerate(zip(rows, guesses, strict=True)):
        given = _given(row, number)
        if len(given) < 2:
            continue
        pairs = [(text, given[:i] + given[i + 1 :]) for i, text in enumerate(texts)]
        ids.append(row_id(row, number))
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
