"""Rankings that readers made by hand: one JSON object a line, such as (here on several lines)::

    {"id": "maps-1-1", "question": "Of what ...?", "context": "One of the oldest ...",
     "first": "clay", "second": "a Babylonian tablet of clay", "first_start": 72, "second_start": 51,
     "choice": "first", "user": "ada", "time": "2026-01-31T12:00:00+00:00"}

`choice` is "first", "second", "tie" or "skip"; the starts are characters in the passage, left out where an answer was
written in a model's own words instead of pointed at. Lines are only ever added: who ranks a pair again adds a line,
and the last one counts.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from qa_helpers.evaluation import MAX_ANSWER_TOKENS
from qa_helpers.files import CourseError
from qa_helpers.rlhf.policy import Question, to_action
from qa_helpers.rlhf.preferences import Pair

SHOWN = 10  # bad lines that an error names one by one

_Text = Annotated[str, Field(min_length=1)]
_Place = Annotated[int, Field(ge=0)]


class RankingError(CourseError):
    """A file of rankings that is not of the form it should have, or does not fit the questions."""


class Ranking(BaseModel):
    """One comparison of two answers by one person."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: _Text  # of the question
    question: _Text
    context: _Text
    first: _Text  # the answer shown first
    second: _Text
    first_start: _Place | None = None  # the character at which it starts in the context
    second_start: _Place | None = None
    choice: Literal["first", "second", "tie", "skip"]
    user: _Text
    time: AwareDatetime

    @property
    def sides(self) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
        """Text and start of the answer shown first, and of the other."""
        return (self.first, self.first_start), (self.second, self.second_start)

    @property
    def comparison(self) -> tuple[str, tuple[str, int | None], tuple[str, int | None]]:
        """What was compared, whichever of the two was shown first."""
        one, other = sorted(self.sides, key=lambda side: (side[0], str(side[1])))
        return self.id, one, other


# ---- reading ---------------------------------------------------------------------------------------------------
def read_rankings(path: Path | str) -> list[Ranking]:
    """The rankings of a file, in its order; empty lines are passed over.

    Raises:
        RankingError: if the file cannot be read, or with a sentence for each bad line.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        raise RankingError(f"{path}: is not UTF-8 text (byte {problem.start}); save it as UTF-8") from None
    except OSError as problem:
        raise RankingError(f"{path}: cannot be read: {problem.strerror}") from None
    rankings, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rankings.append(_parse(line))
            except RankingError as problem:
                wrong.append(f"{path}, line {number}: {problem}")
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more such lines"] if len(wrong) > SHOWN else []
        raise RankingError("\n".join(wrong[:SHOWN] + more))
    return rankings


def _parse(line: str) -> Ranking:
    try:
        ranking = Ranking.model_validate_json(line)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise RankingError(f"{place}: {first['msg']}") from None
    for name, (text, start) in zip(("first", "second"), ranking.sides, strict=True):
        if start is not None and not ranking.context.startswith(text, start):
            raise RankingError(f"{name}_start: the context does not read '{text[:60]}' at character {start}")
    if ranking.sides[0] == ranking.sides[1]:
        raise RankingError("second: is the same answer as the first")
    return ranking


def last_rankings(rankings: Iterable[Ranking]) -> list[Ranking]:
    """Of each comparison by each user the last one, in the order of the first: also what a double click leaves."""
    return list({(ranking.user, ranking.comparison): ranking for ranking in rankings}.values())


# ---- using -----------------------------------------------------------------------------------------------------
def ranking_pairs(rankings: Iterable[Ranking], questions: Sequence[Question]) -> list[Pair]:
    """The pairs that were ranked, one for each user that preferred one answer; ties and skipped ones make none.

    Raises:
        RankingError: if a ranking's question is not among them or has another passage, an answer has no start, or is
            no span of whole tokens that a policy may choose.
    """
    places = {question.row["id"]: place for place, question in enumerate(questions)}
    pairs = []
    for ranking in last_rankings(rankings):
        if ranking.choice in ("tie", "skip"):
            continue
        place = places.get(ranking.id)
        if place is None or questions[place].row["context"] != ranking.context:
            raise RankingError(f"question '{ranking.id[:60]}' of the rankings is not among the questions given")
        first, second = (_action(questions[place], *side) for side in ranking.sides)
        pairs.append(Pair(place, first, second) if ranking.choice == "first" else Pair(place, second, first))
    return pairs


def _action(question: Question, text: str, start: int | None) -> int:
    if start is None:
        raise RankingError(f"question '{question.row['id']}': the answer '{text[:60]}' has no start, so it is no span")
    offsets = question.window.offsets
    begins, ends = offsets[:, 0].tolist(), offsets[:, 1].tolist()
    if start in begins and start + len(text) in ends:
        first, last = begins.index(start), len(ends) - 1 - ends[::-1].index(start + len(text))
        if first <= last < first + MAX_ANSWER_TOKENS:
            return to_action(first, last - first + 1)
    raise RankingError(
        f"question '{question.row['id']}': the answer '{text[:60]}' at character {start} is no span of at most "
        f"{MAX_ANSWER_TOKENS} whole tokens"
    )


class UserAgreement(NamedTuple):
    """How far two users rank alike what both ranked."""

    users: tuple[str, str]
    comparisons: int  # that neither of them skipped
    same: float  # share of them with the same choice, from 0 to 1
    kappa: float  # Cohen 1960: 1 is full agreement, 0 as much as by chance; NaN where chance alone agrees always


def user_agreement(rankings: Iterable[Ranking]) -> list[UserAgreement]:
    """The agreement of each two users who ranked something in common, in the order of their names."""
    choices: dict[str, dict[object, str]] = {}
    for ranking in last_rankings(rankings):
        if ranking.choice != "skip":
            choices.setdefault(ranking.user, {})[ranking.comparison] = _side(ranking)
    found = []
    for one, other in combinations(sorted(choices), 2):
        both = [(choices[one][key], choices[other][key]) for key in choices[one] if key in choices[other]]
        if both:
            same = sum(a == b for a, b in both) / len(both)
            found.append(UserAgreement((one, other), len(both), same, _kappa(both, same)))
    return found


def _side(ranking: Ranking) -> str:
    """The choice in words that do not depend on which answer was shown first."""
    if ranking.choice == "tie":
        return "tie"
    chosen = ranking.sides[ranking.choice == "second"]
    return "one" if chosen == ranking.comparison[1] else "other"


def _kappa(both: Sequence[tuple[str, str]], same: float) -> float:
    kinds = {choice for pair in both for choice in pair}
    chance = sum(
        (sum(a == kind for a, _ in both) / len(both)) * (sum(b == kind for _, b in both) / len(both)) for kind in kinds
    )
    return (same - chance) / (1 - chance) if chance < 1 else float("nan")
