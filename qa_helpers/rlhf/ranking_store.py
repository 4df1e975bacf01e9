"""People's rankings of two answers: the file that holds them, and the order in which they are asked for.

The file is an SQLite database with one table, `rankings`, which only ever grows: a row a choice, a `Ranking` as JSON. A
later row of the same user on the same pair (the same `id`) replaces an earlier one, and with the choice "undo" takes it
back; so the file keeps what was undone, and `read_rankings` gives what counts in the end. SQLite sees to it that a
choice is on the disk, whole, when the call returns, and that two kernels take turns.

What it simplifies: choices are few enough to be read at once.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qa_helpers.common.io import CourseError, half_character, other_kind, user_path
from qa_helpers.common.moved import LAST_COMMIT

Choice = Literal["first", "second", "tie", "skip", "undo"]
LOCK_SECONDS = 5.0  # how long to wait while another process writes
TABLE = "CREATE TABLE IF NOT EXISTS rankings (number INTEGER PRIMARY KEY AUTOINCREMENT, ranking TEXT NOT NULL)"
NO_RANKINGS = f"is no file of rankings, and is left as it is; give another (they were text up to commit {LAST_COMMIT})"

Name = Annotated[str, Field(min_length=1, max_length=200)]


class RankingError(CourseError):
    """A file of rankings that cannot be read or written, or pairs that do not fit it."""


class Pair(BaseModel):
    """Two answers to one question, to be ranked. Which one is `first` means nothing to who ranks them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: Name
    question: str
    context: str
    first: str
    second: str
    # Where the answers are spans of the passage: without these, they are somebody's or a language model's own words.
    question_id: Name | None = None  # of the data set
    first_start: Annotated[int, Field(ge=0)] | None = None  # the character of the passage at which it starts
    second_start: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _start_where_they_say(self) -> "Pair":
        for name, text, start in (("first", self.first, self.first_start), ("second", self.second, self.second_start)):
            if start is not None and not self.context.startswith(text, start):
                raise ValueError(f"{name}_start: the context does not read '{text[:60]}' at character {start}")
        return self

    @classmethod
    def of(cls, question: str, context: str, first: str, second: str, **places: str | int) -> "Pair":
        """A pair whose id is made from its texts and places: others, another id."""
        parts = {"question": question, "context": context, "first": first, "second": second, **places}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return cls.model_validate({"id": digest, **parts})


class Ranking(Pair):
    """A row of the file: what a user chose between the two answers of a pair, and when."""

    choice: Choice
    user: Name
    time: AwareDatetime

    @property
    def pair(self) -> Pair:
        """What was ranked."""
        return Pair(**{name: getattr(self, name) for name in Pair.model_fields})


# ---- the file --------------------------------------------------------------------------------------------------
def read_history(path: Path | str) -> list[Ranking]:
    """Every choice in a file of rankings, in order; none if there is no such file.

    Raises:
        RankingError: naming the file, the choice and what is wrong with it.
    """
    if not _is_there(path := user_path(path)):
        return []
    try:
        with _database(path) as database:
            if database.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError("it is damaged; take an earlier copy")
            rows = database.execute("SELECT number, ranking FROM rankings ORDER BY number").fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as problem:
        raise RankingError(f"{path}: cannot be read as a file of rankings: {problem}") from None
    return [_parse(ranking, f"{path}: choice {number}") for number, ranking in rows]


def append_ranking(path: Path | str, ranking: Ranking) -> None:
    """Add a choice to the file and see it onto the disk: after an error the file is as it was before.

    Raises:
        RankingError: if the file cannot be written, such as on a full disk.
    """
    path = user_path(path)
    try:
        _is_there(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _database(path) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(TABLE)
            database.execute("INSERT INTO rankings (ranking) VALUES (?)", [ranking.model_dump_json()])
    except (OSError, sqlite3.Error) as problem:
        reason = getattr(problem, "strerror", None) or problem
        words = f"this choice could not be written ({reason}); all earlier ones are kept; mend it and choose again"
        if getattr(problem, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            words = "another program is writing to it; choose again in a moment"
        raise RankingError(f"{path}: {words}") from None


def _is_there(path: Path) -> bool:
    """Whether there is such a file, and something in it; an error if it is none of SQLite's."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as problem:  # ValueError: a null character in the path
        raise RankingError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if start and not start.startswith(b"SQLite format 3\0"):
        raise RankingError(f"{path}: {other_kind(start) or NO_RANKINGS}")
    return bool(start)


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, open, if it is one of rankings; of a transaction begun within, all is done, or after an error none."""
    connection = sqlite3.connect(path.absolute(), timeout=LOCK_SECONDS, isolation_level=None)
    with contextlib.closing(connection) as database, database:
        database.execute("PRAGMA synchronous = EXTRA")  # on the disk before COMMIT returns, also that the journal ends
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "rankings" not in tables:
            raise RankingError(f"{path}: {NO_RANKINGS}")
        yield database


def _parse(ranking: str, where: str) -> Ranking:
    try:
        return Ranking.model_validate_json(ranking)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RankingError(": ".join(filter(None, (where, field, first["msg"])))) from None


def standing(history: Iterable[Ranking]) -> list[Ranking]:
    """What counts of a history: each user's last choice on each pair, without those taken back, in order of the last.

    A "skip" stays: it says that the pair was seen and not ranked.
    """
    last: dict[tuple[str, str], Ranking] = {}
    for ranking in history:
        last.pop((ranking.user, ranking.id), None)
        if ranking.choice != "undo":
            last[ranking.user, ranking.id] = ranking
    return list(last.values())


def read_rankings(path: Path | str) -> list[Ranking]:
    """The choices that count, in the order in which they were made; none if there is no such file.

    Raises:
        RankingError: naming the file, the choice and what is wrong with it.
    """
    return standing(read_history(path))


# ---- asking ----------------------------------------------------------------------------------------------------
class RankingSession:
    """Asks one user to rank pairs, one after the other: those that the file holds no choice on, in the list's order.

    Answers are shown as A and B; which of them is A is drawn anew for every pair, user and seed, so that a habit of
    choosing A says nothing about the first answers.
    """

    def __init__(self, pairs: Sequence[Pair], path: Path | str, user: str, seed: int = 0) -> None:
        """Go on where the file stops.

        Raises:
            RankingError: if an id stands twice among the pairs or has other texts in the file, there is no name, or
                the file cannot be read.
        """
        self.pairs = {pair.id: pair for pair in pairs}
        self.path, self.user, self.seed = Path(path), user.strip(), seed
        if not 0 < len(self.user) <= 200:
            raise RankingError("say who ranks: a name of 1 to 200 characters")
        if problem := half_character(self.user):
            raise RankingError(f"the name of who ranks {problem}; remove it")
        twice = [id for id, count in Counter(pair.id for pair in pairs).items() if count > 1]
        if twice:
            raise RankingError(f"the pair '{twice[0]}' stands twice in the list; give each an id of its own")
        history = read_history(path)
        for ranking in history:
            if self.pairs.get(ranking.id, ranking.pair) != ranking.pair:
                raise RankingError(f"{path}: ranks other texts under the id '{ranking.id}'; use another file or id")
        mine = [ranking for ranking in standing(history) if ranking.user == self.user and ranking.id in self.pairs]
        self.chosen: dict[str, Choice] = {ranking.id: ranking.choice for ranking in mine}  # in the order of choosing

    @property
    def current(self) -> Pair | None:
        """The pair to be ranked now; None once all are."""
        return next((pair for id, pair in self.pairs.items() if id not in self.chosen), None)

    def is_swapped(self, pair: Pair) -> bool:
        """Whether the second answer of a pair is shown as A."""
        return bool(hashlib.sha256(json.dumps([self.seed, self.user, pair.id]).encode()).digest()[0] & 1)

    def shown(self, pair: Pair) -> dict[str, str]:
        """The answers of a pair by the letter under which they are shown."""
        answers = (pair.second, pair.first) if self.is_swapped(pair) else (pair.first, pair.second)
        return dict(zip("AB", answers, strict=True))

    def starts(self, pair: Pair) -> dict[str, int]:
        """Where the answers of a pair stand in its passage, by letter: as the pair says, or else at the first place.

        An answer that does not stand there word for word, or is empty, is left out.
        """
        answers = [(pair.first, pair.first_start), (pair.second, pair.second_start)]
        shown = zip("AB", reversed(answers) if self.is_swapped(pair) else answers, strict=True)
        starts = {letter: pair.context.find(text) if at is None else at for letter, (text, at) in shown if text}
        return {letter: start for letter, start in starts.items() if start >= 0}

    def choose(self, pair: Pair, button: Literal["A", "B", "tie", "skip"]) -> bool:
        """Write down what was chosen on a pair. False, and nothing is written, if the user has chosen already.

        Raises:
            RankingError: if it cannot be written; the pair is then still to be ranked.
        """
        if pair.id in self.chosen:
            return False
        sides: tuple[Choice, Choice] = ("second", "first") if self.is_swapped(pair) else ("first", "second")
        choices: dict[str, Choice] = {"tie": "tie", "skip": "skip", **dict(zip("AB", sides, strict=True))}
        self._write(pair, choices[button])
        self.chosen[pair.id] = choices[button]
        return True

    def undo(self) -> Pair | None:
        """Take back the user's last choice, and then the one before it; the pair, or None if there is nothing left.

        Raises:
            RankingError: if that cannot be written; the choice then stands.
        """
        if not self.chosen:
            return None
        pair = self.pairs[next(reversed(self.chosen))]
        self._write(pair, "undo")
        del self.chosen[pair.id]
        return pair

    def _write(self, pair: Pair, choice: Choice) -> None:
        time = datetime.now(UTC).replace(microsecond=0)
        append_ranking(self.path, Ranking(**pair.model_dump(), choice=choice, user=self.user, time=time))


# ---- two users -------------------------------------------------------------------------------------------------
class UserAgreement(NamedTuple):
    """How far two users agree on the pairs that both have ranked; a tie is a choice like the others, a skip is none."""

    users: tuple[str, str]
    pairs: int
    raw: float  # share of the pairs on which both chose the same, 0 to 1
    kappa: float  # 1: always agree, 0: as often as by chance; NaN where both only ever made one and the same choice


def agreement(rankings: Iterable[Ranking]) -> list[UserAgreement]:
    """The agreement of every two users who share a pair, by the rankings that count: raw and as Cohen's kappa.

    Kappa is (raw - chance) / (1 - chance), where chance is how often two users would agree who made their choices as
    often as these did, but blindly (Cohen 1960, "A Coefficient of Agreement for Nominal Scales", Educational and
    Psychological Measurement 20:37).
    """
    chosen: dict[str, dict[str, Choice]] = {}
    for ranking in rankings:
        if ranking.choice not in ("skip", "undo"):
            chosen.setdefault(ranking.user, {})[ranking.id] = ranking.choice
    agreed = []
    for users in combinations(sorted(chosen), 2):
        mine, theirs = (chosen[user] for user in users)
        both = [(choice, theirs[id]) for id, choice in mine.items() if id in theirs]
        if both:
            count = len(both)
            raw = sum(my_choice == their_choice for my_choice, their_choice in both) / count
            my_counts, their_counts = (Counter(choices) for choices in zip(*both, strict=True))
            chance = sum(my_counts[choice] * their_counts[choice] for choice in my_counts) / count**2
            kappa = (raw - chance) / (1 - chance) if chance < 1 else float("nan")
            agreed.append(UserAgreement(users, count, raw, kappa))
    return agreed
