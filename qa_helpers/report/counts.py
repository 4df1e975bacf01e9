"""Counts of right answers that forgive no article: those that the homework's report can have made.

It says that answers were wrong for a missing article; so its "accuracy" was neither official EM nor *contained*, which
forgive one. Left are comparisons of strings and of positions, with one of several given answers or with any of them.
Case is forgiven throughout, as `metrics.string_equality` does: the report's own answers are in lower case.

A record holds what was answered, not where. Where that text stands several times in its passage, its position is known
within bounds only. And a training loop's "accuracy" of positions may take each end's likeliest token by itself, while
an answer's two ends belong together: nearly, but not always, the same.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qa_helpers.common.io import read_json, write_atomically
from qa_helpers.data.rows import DataError, Row
from qa_helpers.data.squad import ASSETS, fingerprint, load_qa
from qa_helpers.experiment.forms import RecordError, StrictModel, parse
from qa_helpers.experiment.record import Run

ANNOTATORS = ("first", "second", "third")
# What is compared, and with which of the given answers (of several longest ones the first). The mean: half a point for
# the start and half for the end.
WAYS = {"text": (*ANNOTATORS, "longest", "any")} | dict.fromkeys(("start", "end", "mean"), ("first", "second", "any"))
SETS = ("first-200", "first-500", "random-500", "all")
_ARTICLES = ("a", "an", "the")


class Reply(NamedTuple):
    """An answer, and the characters of the passage at which it can start: several where its text occurs so often."""

    text: str
    starts: tuple[int, ...]


class Count(NamedTuple):
    """How many of how many answers are right by one count, and of the others, how many for an article alone."""

    questions: int  # those that have this reference
    least: float  # right answers, if every position that is not known is wrong
    most: float  # and if every one is right
    lacking: int  # wrong answers that are the reference without its leading article
    adding: int  # and those that are the reference with an article before it

    @property
    def percent(self) -> tuple[float, float]:
        """The least and the most that this count can have given, in percent."""
        return 100 * self.least / self.questions, 100 * self.most / self.questions


Counts = dict[str, dict[str, Count]]  # by what is compared, and with which answer


# ---- counting --------------------------------------------------------------------------------------------------
Given = tuple[str, int]  # an answer's text, and the character of the passage at which it starts


def find_reply(text: str, context: str) -> Reply:
    """A recorded answer with all places of its passage at which it stands."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(text)})", context) if text)
    return Reply(text, tuple(starts))


def count(replies: Iterable[Reply], rows: Iterable[Row], left_out: int | None = None) -> Counts:
    """Count the right ones of answers to rows in all `WAYS`.

    Args:
        replies: an answer a row. One that stands nowhere in its passage has the position of none.
        rows: as `load_qa` gives them.
        left_out: the annotator who is no reference: whoever answered cannot be held against their own answer.

    Raises:
        ValueError: if there are not as many answers as rows.
    """
    values: dict[tuple[str, str], list[tuple[float, float, bool, bool]]] = {}
    for reply, row in zip(replies, rows, strict=True):
        for reference, answers in _references(row, left_out).items():
            lacking = any(_adds_article(text, reply.text) for text, _ in answers)
            adding = any(_adds_article(reply.text, text) for text, _ in answers)
            for what, (least, most) in _right(reply, answers).items():
                value = (least, most, most < 1 and lacking, most < 1 and adding)
                values.setdefault((what, reference), []).append(value)
    return {
        what: {name: _total(values[what, name]) for name in names if (what, name) in values}
        for what, names in WAYS.items()
    }


def _references(row: Row, left_out: int | None) -> dict[str, list[Given]]:
    """The answers that each reference stands for; without those that this question does not have."""
    given = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
    others = [answer for number, answer in enumerate(given) if number != left_out]
    named = {name: [given[i]] for i, name in enumerate(ANNOTATORS) if i != left_out and i < len(given)}
    return named | ({"longest": [max(others, key=lambda answer: len(answer[0]))], "any": others} if others else {})


def _right(reply: Reply, answers: Sequence[Given]) -> dict[str, tuple[float, float]]:
    """By what is compared, how right an answer is: at the least and at the most."""
    same = float(any(reply.text.lower() == text.lower() for text, _ in answers))
    given = [(start, start + len(text)) for text, start in answers]
    starts = [float(any(start == first for first, _ in given)) for start in reply.starts] or [0.0]
    ends = [float(any(start + len(reply.text) == last for _, last in given)) for start in reply.starts] or [0.0]
    both = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
    values = dict(zip(WAYS, ([same], starts, ends, both), strict=True))
    return {what: (min(possible), max(possible)) for what, possible in values.items()}


def _adds_article(longer: str, shorter: str) -> bool:
    return longer.lower() in [f"{article} {shorter.lower()}" for article in _ARTICLES]


def _total(values: Sequence[tuple[float, float, bool, bool]]) -> Count:
    least, most, lacking, adding = (sum(column) for column in zip(*values, strict=True))
    return Count(len(values), least, most, lacking, adding)


def count_run(run: Run, rows: Mapping[str, Row]) -> dict[str, Counts]:
    """Count a recorded run's answers on each of `SETS` that it was asked.

    A language model writes its answer and has no position: of such a run only the texts are counted.

    Args:
        run: a record.
        rows: the validation questions, by id.
    """
    counted = {}
    for name in (name for name in SETS if name in run.scores):
        asked = [rows[run.questions.id[i]] for i in run.indices[name]]
        texts = [str(text) for text in run.column("prediction", name)]
        replies = [find_reply(text, row["context"]) for text, row in zip(texts, asked, strict=True)]
        counts = count(replies, asked)
        counted[name] = counts if run.experiment.task == "span" else {"text": counts["text"]}
    return counted


def count_people(rows: Sequence[Row]) -> dict[str, Counts]:
    """Count the first, the second and the third annotator's answers, each against those of the others.

    The questions that one of them did not answer are left out of this one's counts.
    """
    counted = {}
    for number, annotator in enumerate(ANNOTATORS):
        answered = [row for row in rows if len(row["answers"]["text"]) > max(number, 1)]
        pairs = [(row["answers"]["text"][number], row["answers"]["answer_start"][number]) for row in answered]
        counted[annotator] = count([Reply(text, (start,)) for text, start in pairs], answered, left_out=number)
    return counted


# ---- counts of data that are not at hand ------------------------------------------------------------------------
class Counted(StrictModel):
    """Counts of recorded runs and of people on a validation set, without any text of its questions."""

    fingerprint: str  # of the validation set, see `squad.fingerprint`
    people: dict[str, dict[str, Counts]]  # by evaluation set and annotator
    runs: dict[str, dict[str, Counts]]  # by name of the run and evaluation set


def count_records(records: Mapping[str, Run], data: str) -> Counted:
    """Count what recorded runs answered to a data set's validation questions, and what people did.

    Raises:
        DataError: if the questions at hand are not those that a run was asked.
    """
    rows = load_qa(data, "validation")
    by_id = {row["id"]: row for row in rows}
    known: dict[tuple[str, ...], str] = {}  # fingerprints of the questions asked: many runs were asked the same
    for name, run in records.items():
        ids = tuple(run.questions.id)
        if ids not in known:
            known[ids] = fingerprint(by_id[id] for id in ids) if by_id.keys() >= set(ids) else "none"
        if run.fingerprints.eval != known[ids]:
            raise DataError(f"'{name}' was not asked the validation questions of '{data}' that are at hand")
    asked = {name: chosen for run in records.values() for name, chosen in run.experiment.evaluations.items()}
    chosen = {name: rows.select(asked[name].indices(len(rows))) for name in SETS if name in asked}
    runs = {name: count_run(run, by_id) for name, run in records.items()}
    return Counted(
        fingerprint=fingerprint(rows),
        people={name: count_people(list(of_set)) for name, of_set in chosen.items()},
        runs={name: counts for name, counts in runs.items() if counts},
    )


def write_counts(counted: Counted, data: str = "squad", folder: Path = ASSETS) -> Path:
    """Write counts to where `load_counts` reads them: a line a run, so that differences can be read."""
    raw = counted.model_dump(mode="json")
    parts = [
        f' "{part}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(raw[part][name], separators=(",", ":"))}' for name in raw[part])
        + "\n }"
        for part in ("people", "runs")
    ]
    path = folder / f"{data}-counts.json"
    write_atomically(path, "{\n" + f' "fingerprint": "{counted.fingerprint}",\n' + ",\n".join(parts) + "\n}\n")
    return path


def load_counts(data: str = "squad", folder: Path = ASSETS) -> Counted:
    """The counts that come with the course, of a data set that does not.

    Raises:
        RecordError: if there are none, or they are not of that form.
    """
    path = folder / f"{data}-counts.json"
    return parse(Counted, read_json(path, RecordError), str(path))
