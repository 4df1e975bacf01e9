"""What holds a JSON file to its form: nothing more and nothing less than its fields, of exactly their types."""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qa_helpers.common.io import CourseError
from qa_helpers.common.moved import LAST_COMMIT

MOST_SHOWN = 1_500  # characters of a record, an experiment or a part of one


def _without_link(text: str) -> str:
    if "://" in text or "www." in text.lower():
        raise ValueError("holds a link")
    return text


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Line = Annotated[  # safe in a Markdown table and a terminal: no mark-up, link or character that is not seen
    str, Field(max_length=200, pattern=r"^[^|<>`\[\]\p{C}\p{Zl}\p{Zp}]*$"), AfterValidator(_without_link)
]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]  # a record may come from anybody: no number to overflow or hang on
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy takes it


class RecordError(CourseError):
    """An experiment or a record that is not of the form it should have, or contradicts what is on disk."""


class StrictModel(BaseModel):
    """What a JSON file is held to: nothing more and nothing less than its fields, of exactly their types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def __repr__(self) -> str:
        """As pydantic's, but not longer than can be read: it is what a notebook shows."""
        whole = super().__repr__()
        return whole if len(whole) <= MOST_SHOWN else f"{whole[:MOST_SHOWN]}…)"


Form = TypeVar("Form", bound=StrictModel)


def parse(form: type[Form], raw: object, source: str, whole: str = "the file") -> Form:
    """A model from what a JSON file holds, or a part of it.

    Raises:
        RecordError: naming the source and, where the value does not fit the schema, the field, or `whole`.
    """
    with naming(source, whole):
        return form.model_validate_json(json.dumps(raw))  # from JSON, since strict Python input takes no list as tuple


@contextlib.contextmanager
def naming(source: str, whole: str = "the file") -> Iterator[None]:
    """Around what makes a model: where a value does not fit, that becomes one sentence.

    Raises:
        RecordError: naming the source and the field, or `whole`.
    """
    try:
        yield
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        # A step with a space in it is a kind of experiment, not a field.
        field = ".".join(str(step) for step in first["loc"] if " " not in str(step)) or whole
        told = first["msg"]
        if first["type"] == "union_tag_not_found":
            told = f"is an experiment of before, without a kind; commit {LAST_COMMIT} is the last that reads it"
        raise RecordError(f"{source}: {field}: {told}") from None
    except RecursionError:
        raise RecordError(f"{source}: is nested too deeply to be a record") from None
