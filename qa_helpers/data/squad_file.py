"""A file in SQuAD 1.1's form, JSON: read strictly, so that a broken one gives a sentence that names the place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qa_helpers.common.io import read_json
from qa_helpers.data.rows import NO_ANSWER, DataError, Row, check_row, short

Model = TypeVar("Model", bound=BaseModel)
FORM = (
    '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": '
    '[{"text", "answer_start"}]}]}]}]}'
)
_Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Answer(_Strict):
    text: _Text
    answer_start: Annotated[int, Field(ge=0)]


class _Question(_Strict):
    id: _Text
    question: _Text
    answers: Annotated[list[_Answer], Field(min_length=1)]
    is_impossible: Literal[False] = False  # SQuAD 2.0's


class _Paragraph(_Strict):
    context: _Text
    qas: list[_Question]


class _Article(_Strict):
    title: str
    paragraphs: list[_Paragraph]


class _File(_Strict):
    data: list[Any]


def read_squad_file(path: Path | str) -> list[Row]:
    """Read one SQuAD 1.1 JSON file into rows (see the head of `squad`), checking every one.

    Raises:
        DataError: naming the file, the article, the question's id and what is wrong, if the file does not parse,
            is too large, lacks a field, holds a wrong type or an empty text, repeats an id, or an answer is not where
            `answer_start` says; of another form, what it seems to be.
    """
    from qa_helpers.common.device import progress_bar

    raw = read_json(path, DataError, FORM)
    if isinstance(raw, list):
        raise DataError(f"{path}: holds a list at its top; write it as {FORM}")
    rows: list[Row] = []
    seen: set[str] = set()
    articles = _validated(_File, raw, raw, (), path).data
    for number, item in enumerate(progress_bar(articles, desc=f"checking {short(str(path))}", unit="article", delay=1)):
        if isinstance(item, dict) and {"context", "question"} <= item.keys():
            raise DataError(f"{path}: data[{number}] is a flat row, a question with its passage; write it as {FORM}")
        for row in _rows(_validated(_Article, item, raw, ("data", number), path)):
            where = f"{path}: article '{short(row['title'])}', question '{short(row['id'])}'"
            if row["id"] in seen:
                raise DataError(f"{where}: the id is used twice; ids must be unique")
            seen.add(row["id"])
            check_row(row, where)
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no question")
    return rows


def _validated(form: type[Model], item: Any, raw: Any, location: tuple[int | str, ...], path: Path | str) -> Model:
    """A part of the file, which lies at `location` in it, in its form."""
    try:
        return form.model_validate(item)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = first["loc"][-1:]
        unanswerable = field == ("is_impossible",) or (field == ("answers",) and first["type"] == "too_short")
        what = NO_ANSWER if unanswerable else first["msg"]
        raise DataError(f"{path}: {_place(raw, location + first['loc'])}: {what}") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply to be in SQuAD's form") from None


def _rows(article: _Article) -> Iterator[Row]:
    for paragraph in article.paragraphs:
        for qa in paragraph.qas:
            yield {
                "id": qa.id,
                "title": article.title,
                "context": paragraph.context,
                "question": qa.question,
                "answers": {
                    "text": [answer.text for answer in qa.answers],
                    "answer_start": [answer.answer_start for answer in qa.answers],
                },
            }


def _place(raw: Any, location: tuple[int | str, ...]) -> str:
    """Where in the file an error lies, as `data[0] 'Title' paragraphs[1] qas[2] 'id' answers`."""
    words: list[str] = []
    for step in location:
        if isinstance(step, int):
            words[-1] += f"[{step}]"
        else:
            words.append(str(step))
        inside = step in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(step, int)
        raw = raw[step] if inside else None
        if isinstance(raw, dict):
            name = raw.get("title", raw.get("id"))
            words += [f"'{short(name)}'"] if isinstance(name, str) else []
    return " ".join(words) or "the file"
