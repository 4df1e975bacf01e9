"""Reading and writing files so that nothing is half read or half written.

Every error that a user of this package can cause is a `CourseError`: one sentence that says what is wrong,
where, and what to do about it.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NoReturn


class CourseError(ValueError):
    """Base of the package's errors; its text is one sentence for the user."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character beyond U+FFFF, as JSON escapes it


def read_json(path: Path | str, error: type[CourseError] = CourseError) -> Any:
    """Parse a UTF-8 JSON file (a byte-order mark is accepted).

    Raises:
        CourseError: (or the subclass given as `error`) if the file is missing, unreadable, not UTF-8 or not JSON.
            The sentence names the file and, where there is one, the line and column.
    """

    def fail(what: str) -> NoReturn:
        name = str(path)
        raise error(f"{name if len(name) <= 300 else name[:300] + '…'}: {what}") from None

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        fail(f"is not UTF-8 text (byte {problem.start}); save it as UTF-8")
    except (OSError, ValueError) as problem:  # ValueError: a null character in the path
        fail(f"cannot be read: {getattr(problem, 'strerror', None) or problem}")
    try:
        value = json.loads(text, parse_constant=lambda name: fail(f"holds {name}, which is not JSON"))
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails if a half stands alone: that is no text
        return value
    except json.JSONDecodeError as problem:
        fail(f"is not valid JSON at line {problem.lineno}, column {problem.colno}: {problem.msg}")
    except UnicodeEncodeError as problem:
        before, half = problem.object[max(0, problem.start - 40) : problem.start], problem.object[problem.start]
        fail(f"holds half a character, {ascii(half)[1:-1]}, after {before!r}")
    except RecursionError:
        fail("is nested too deeply to be a data file of this course")
    except ValueError as problem:
        if isinstance(problem, CourseError):
            raise
        fail(f"is not valid JSON: {problem}")  # an integer of thousands of digits


def write_atomically(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either its old content or all of the new one, never a part.

    The text goes to a temporary file in the same folder first, which then replaces `path` in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a record is meant to be read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def hub_is_off() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network, read as the Hub's own client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def project_folder() -> Path:
    """The folder that holds `records/` and `runs/`: the course's checkout, or the current folder outside of one."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()
