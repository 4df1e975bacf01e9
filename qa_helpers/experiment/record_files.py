"""A record's two files, in a folder of the run's name: `run.json` (see `Recorded`) and `answers.parquet` (`Questions`).

`run.json` is written last: where it stands, the run is finished.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from qa_helpers.common.io import project_folder, read_json, user_path, write_together
from qa_helpers.common.moved import LAST_COMMIT
from qa_helpers.data.rows import short
from qa_helpers.data.squad import ASSETS
from qa_helpers.evaluation.metrics import f1, relation
from qa_helpers.experiment.answers_file import read_questions, to_parquet
from qa_helpers.experiment.forms import RecordError, naming, parse
from qa_helpers.experiment.questions import KnownQuestions, known_questions
from qa_helpers.experiment.record import Recorded, Run
from qa_helpers.experiment.spec import chosen_questions

RUN, ANSWERS = "run.json", "answers.parquet"


# ---- reading ---------------------------------------------------------------------------------------------------
def record_folder(path: Path | str) -> Path:
    """The folder of a record that is named by its folder or by the `run.json` in it."""
    path = user_path(path)
    return path.parent if path.name == RUN else path


def read_record(path: Path | str) -> Run:
    """Read and check a record, named by its folder or by the `run.json` in it.

    Raises:
        RecordError: naming the file and the field or the question that does not fit; of a record in the form of before,
            the commit that reads it.
    """
    folder = record_folder(path)
    if os.path.isfile(folder):  # unlike Path.is_file, False also for a name too long for the file system
        raise _of_before(folder)
    source = folder / RUN
    raw = read_json(source, RecordError)
    if isinstance(raw, dict) and raw.get("schema_version") in (1, 2):
        raise _of_before(source, raw["schema_version"])
    recorded = parse(Recorded, raw, str(source))
    known = _known(recorded)
    questions = read_questions(folder / ANSWERS, known.ids if known else None)
    with naming(str(source)):
        run = Run.model_validate(dict(recorded) | {"questions": questions})
    if known and known.data == "courseqa":
        check_answers(run, _given_answers(), str(folder / ANSWERS))
    return run


def load_records(pattern: str = "*") -> dict[str, Run]:
    """The course's recorded runs whose names match a glob pattern, by name.

    Raises:
        RecordError: as `read_record` does.
    """
    folder = project_folder() / "records"
    for path in folder.glob(f"{pattern}.json"):
        raise _of_before(path)
    return {path.parent.name: read_record(path) for path in sorted(folder.glob(f"{pattern}/{RUN}"))}


def _of_before(path: Path, schema_version: int = 1) -> RecordError:
    last, form = {1: (LAST_COMMIT, "one JSON file"), 2: ("ad405d1", "an experiment without a kind")}[schema_version]
    return RecordError(
        f"{path}: is a record in the form of before, {form}; commit {last} is the last that reads it, or run the "
        f"experiment again (now a record is a folder with {RUN} and {ANSWERS})"
    )


def _known(recorded: Recorded) -> KnownQuestions | None:
    chosen, _ = chosen_questions(recorded.experiment, recorded.validation_size)
    return known_questions(recorded.fingerprints.eval, chosen)


# ---- answers and what they are worth ---------------------------------------------------------------------------
def check_answers(run: Run, given: Mapping[str, Sequence[str]], source: str) -> None:
    """Score a run's predictions again and see that its record says the same.

    Args:
        run: what is checked.
        given: by id, the given answers to all questions that it was asked.
        source: what an error calls the record.

    Raises:
        RecordError: naming the question.
    """
    asked = run.questions
    for id, text, *recorded in zip(asked.id, asked.prediction, asked.relation, asked.f1, strict=True):
        expected = _worth(text, tuple(given[id]))
        if recorded != expected:
            raise RecordError(
                f"{source}: question '{short(id)}': of the prediction '{short(text)}' the relation is '{recorded[0]}' "
                f"and F1 {recorded[1]:g}; by the given answers they are '{expected[0]}' and {expected[1]:g}"
            )


@lru_cache(maxsize=100_000)
def _worth(prediction: str, answers: tuple[str, ...]) -> list[str | float]:
    return [relation(prediction, answers), round(f1(prediction, answers), 4)]


@lru_cache
def _given_answers() -> dict[str, list[str]]:
    """CourseQA's, by id, of its validation questions."""
    raw = read_json(ASSETS / "courseqa" / "dev.json", RecordError)
    paragraphs = [paragraph for article in raw["data"] for paragraph in article["paragraphs"]]
    return {qa["id"]: [answer["text"] for answer in qa["answers"]] for part in paragraphs for qa in part["qas"]}


# ---- writing ---------------------------------------------------------------------------------------------------
def write_record(run: Run, folder: Path | str) -> None:
    """Write a record, whole or not at all: in `run.json` a line a field, so that differences can be read.

    Raises:
        CourseError: if the system refuses; then a former record is as it was.
    """
    known = _known(run)
    fields = run.model_dump(mode="json", exclude={"questions"}).items()
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields)
    home = record_folder(folder)
    answers = to_parquet(run.questions, with_ids=known is None or known.ids != run.questions.id)
    write_together({home / ANSWERS: answers, home / RUN: "{\n" + ",\n".join(lines) + "\n}\n"})
