"""People's rankings of two answers: the file that holds them, and the order in which they are asked for.

The file is JSON lines, only ever appended to: one line a choice, as `Ranking` names the fields. A later line of the
same user on the same pair (the same `id`) replaces an earlier one, and with the choice "undo" takes it back; so the
file keeps what was undone, and `read_rankings` gives what counts in the end. A last line without its line end that is
no whole JSON is what a crash left of a choice: reading passes over it, and the next choice takes its place.

What it simplifies: choices are few enough to be read at once.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qa_helpers.common.io import CourseError, half_character, other_kind, user_path

Choice = Literal["first", "second", "tie", "skip", "undo"]
LOCK_SECONDS = 5  # how long to wait while another process writes its line

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
    def of(cls, question: str, context: str, first: str, second: str, **places: Any) -> "Pair":
        """A pair whose id is made from its texts and places: others, another id."""
        parts = {"question": question, "context": context, "first": first, "second": second, **places}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return cls(id=digest, **parts)


class Ranking(Pair):
    """A line of the file: what a user chose between the two answers of a pair, and when."""

    choice: Choice
    user: Name
    time: AwareDatetime

    @property
    def pair(self) -> Pair:
        """What was ranked."""
        return Pair(**{name: getattr(self, name) for name in Pair.model_fields})


# ---- reading ---------------------------------------------------------------------------------------------------
def read_history(path: Path | str) -> list[Ranking]:
    """Every line of a file of rankings, in order; none if there is no such file.

    Raises:
        RankingError: naming the file, the line and what is wrong with it.
    """
    try:
        content = user_path(path).read_bytes()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as problem:  # ValueError: a null character in the path
        reason = getattr(problem, "strerror", None) or problem
        raise RankingError(f"{path}: cannot be read: {reason}") from None
    if words := other_kind(content):
        raise RankingError(f"{path}: {words}")
    whole, tail = _split(content.removeprefix(b"\xef\xbb\xbf"))
    lines = [*whole.split(b"\n")[:-1], tail]
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: bytes, place: str) -> Ranking:
    try:
        return Ranking.model_validate_json(line)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"])
        where, what = (f"{field}: ", "") if field else ("", "; a line holds one choice, a JSON object")
        raise RankingError(f"{place}: {where}{first['msg']}{what}") from None


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The content up to its last line end, and what follows, without the beginning of a choice that a crash left.

    Anything else that follows is somebody's, and stays in the file.
    """
    end = content.rfind(b"\n") + 1
    tail = content[end:]
    if tail[:1] in (b"{", b"\0"):  # a system that went down may leave zeros of what was being written
        try:
            json.loads(tail)
        except (ValueError, RecursionError):  # ValueError: also of bytes that are not UTF-8
            tail = b""
    return content[:end], tail


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
        RankingError: naming the file, the line and what is wrong with it.
    """
    return standing(read_history(path))


# ---- writing ---------------------------------------------------------------------------------------------------
def append_ranking(path: Path | str, ranking: Ranking) -> None:
    """Add a line to the file and see it onto the disk: after an error the file is as it was before.

    Raises:
        RankingError: if the file cannot be written, such as on a full disk.
    """
    path = user_path(path)
    line = (ranking.model_dump_json() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
            _append(path, line)
    except Timeout:
        raise RankingError(f"{path}: another program is writing to it; choose again in a moment") from None
    except (OSError, ValueError) as problem:  # ValueError: a null character in the path
        reason = getattr(problem, "strerror", None) or problem
        raise RankingError(
            f"{path}: this choice could not be written ({reason}); all earlier ones are kept; mend it and choose again"
        ) from None


def _append(path: Path, line: bytes) -> None:
    """Write a line after the last whole one, or nothing at all."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        whole, tail = _split(_read_all(handle))
        size = len(whole) + len(tail)
        rest = memoryview((b"\n" if tail else b"") + line)
        try:
            os.ftruncate(handle, size)  # what a crash left of a line
            os.lseek(handle, size, os.SEEK_SET)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except BaseException:
            with contextlib.suppress(OSError):  # then a half line stays, which reading passes over
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _read_all(handle: int) -> bytes:
    parts = []
    while part := os.read(handle, 2**20):
        parts.append(part)
    return b"".join(parts)


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
        mine = [one for one in standing(history) if one.user == self.user and one.id in self.pairs]
        self.chosen: dict[str, Choice] = {one.id: one.choice for one in mine}  # in the order in which they were made

    @property
    def current(self) -> Pair | None:
        """The pair to be ranked now; None once all are."""
        return next((pair for id, pair in self.pairs.items() if id not in self.chosen), None)

    def is_swapped(self, pair: Pair) -> bool:
        """Whether the second answer of a pair is shown as A."""
        digest = hashlib.sha256(json.dumps([self.seed, self.user, pair.id]).encode()).digest()
        return bool(digest[0] & 1)

    def shown(self, pair: Pair) -> dict[str, str]:
        """The answers of a pair by the letter under which they are shown."""
        answers = (pair.second, pair.first) if self.is_swapped(pair) else (pair.first, pair.second)
        return dict(zip("AB", answers, strict=True))

    def starts(self, pair: Pair) -> dict[str, int]:
        """Where the answers of a pair stand in its passage, by letter: as the pair says, or else at the first place.

        An answer that does not stand there word for word, or is empty, is left out.
        """
        known = (
            (pair.second_start, pair.first_start) if self.is_swapped(pair) else (pair.first_start, pair.second_start)
        )
        places = {
            letter: start if start is not None else pair.context.find(text)
            for (letter, text), start in zip(self.shown(pair).items(), known, strict=True)
            if text
        }
        return {letter: start for letter, start in places.items() if start >= 0}

    def choose(self, pair: Pair, button: Literal["A", "B", "tie", "skip"]) -> bool:
        """Write down what was chosen on a pair. False, and nothing is written, if the user has chosen already.

        Raises:
            RankingError: if it cannot be written; the pair is then still to be ranked.
        """
        if pair.id in self.chosen:
            return False
        sides: tuple[Choice, Choice] = ("second", "first") if self.is_swapped(pair) else ("first", "second")
        choice: Choice = sides["AB".index(button)] if button in ("A", "B") else button  # type: ignore[assignment]
        self._write(pair, choice)
        self.chosen[pair.id] = choice
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
        now = datetime.now(UTC).replace(microsecond=0)
        append_ranking(self.path, Ranking(**pair.model_dump(), choice=choice, user=self.user, time=now))


# ---- two users -------------------------------------------------------------------------------------------------
class UserAgreement(NamedTuple):
    """How far two users agree on the pairs that both have ranked; a tie is a choice like the others, a skip is none."""

    users: tuple[str, str]
    pairs: int
    raw: float  # share of the pairs on which both chose the same, 0 to 1
    kappa: float  # 1: always agree, 0: as often as by chance; NaN where both only ever made one and the same choice


def agreement(rankings: Iterable[Ranking]) -> list[UserAgreement]:
    """The agreement of every two users who share a pair, raw and as Cohen's kappa.

    Kappa is (raw - chance) / (1 - chance), where chance is how often two users would agree who made their choices as
    often as these did, but blindly (Cohen 1960, "A Coefficient of Agreement for Nominal Scales", Educational and
    Psychological Measurement 20:37).

    Args:
        rankings: those of any users that count, from `read_rankings`.
    """
    chosen: dict[str, dict[str, Choice]] = {}
    for ranking in rankings:
        if ranking.choice not in ("skip", "undo"):
            chosen.setdefault(ranking.user, {})[ranking.id] = ranking.choice
    found = []
    for one, other in combinations(sorted(chosen), 2):
        both = [(choice, chosen[other][id]) for id, choice in chosen[one].items() if id in chosen[other]]
        if both:
            found.append(UserAgreement((one, other), len(both), *_cohen(both)))
    return found


def _cohen(both: Sequence[tuple[Choice, Choice]]) -> tuple[float, float]:
    count = len(both)
    mine, theirs = (Counter(choices) for choices in zip(*both, strict=True))
    raw = sum(one == other for one, other in both) / count
    chance = sum(mine[choice] * theirs[choice] for choice in mine) / count**2
    return raw, (raw - chance) / (1 - chance) if chance < 1 else float("nan")
