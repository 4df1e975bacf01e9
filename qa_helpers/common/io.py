"""Reading and writing files so that nothing is half read or half written.

Every error that a user of this package can cause is a `CourseError`: one sentence that says what is wrong,
where, and what to do about it.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn


class CourseError(ValueError):
    """Base of the package's errors; its text is one sentence for the user."""


class ModelError(CourseError):
    """A model that is not there, is not what it should be, or cannot be used as asked."""


# Of a file that is read at once. While a data set is read, memory grows by about eight times the file's size: a
# generated file of 299 MB, of 802,600 questions, took 2.2 GiB (and 52 seconds of a processor).
MOST_BYTES = 300_000_000

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character beyond U+FFFF, as JSON escapes it
_OTHER_KINDS = {  # how files of other kinds begin: what they are, and what to do
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"PAR1": "is a Parquet table; save what it holds as JSON",
    b"version https://git-lfs": "only stands for a file that Git LFS keeps elsewhere; fetch it with git lfs pull",
    b"<": "seems to be a web page; download the file itself",
}


def other_kind(content: bytes) -> str | None:
    """What a file that begins so is, if not text of data, and what to do about it."""
    return next((words for start, words in _OTHER_KINDS.items() if content.startswith(start)), None)


def half_character(text: str) -> str | None:
    """What is wrong with a text that holds half of a character (a lone surrogate): it cannot be written or read on."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        before, half = text[max(0, problem.start - 40) : problem.start], text[problem.start]
        return f"holds half a character, {ascii(half)[1:-1]}, after {before!r}"
    return None


def read_json(path: Path | str, error: type[CourseError] = CourseError, form: str = "one JSON value") -> Any:
    """Parse a UTF-8 JSON file (a byte-order mark is accepted) of at most `MOST_BYTES`.

    Args:
        path: the file.
        error: the kind of error to raise.
        form: what the file is to hold, for the error's text.

    Raises:
        CourseError: (or the subclass given as `error`) if the file is missing, unreadable, too large, of another kind,
            not UTF-8 or not JSON. The sentence names the file and, where there is one, the line and column.
    """

    def fail(what: str) -> NoReturn:
        name = str(path)
        raise error(f"{name if len(name) <= 300 else name[:300] + '…'}: {what}") from None

    text = _read_text(path, fail)
    try:
        value = json.loads(text, parse_constant=lambda name: fail(f"holds {name}, which is not JSON"))
        if _SURROGATE.search(text) and (words := half_character(json.dumps(value, ensure_ascii=False))):
            fail(words)
        return value
    except json.JSONDecodeError as problem:
        if problem.msg == "Extra data" and problem.colno == 1 and text[problem.pos] in "{[":
            another = f"another begins at line {problem.lineno}"
            fail(f"seems to be JSON Lines, a value a line ({another}); write it as {form}")
        fail(f"is not valid JSON at line {problem.lineno}, column {problem.colno}: {problem.msg}")
    except RecursionError:
        fail("is nested too deeply to be a data file of this course")
    except ValueError as problem:
        if isinstance(problem, CourseError):
            raise
        fail(f"is not valid JSON: {problem}")  # an integer of thousands of digits


def _read_text(path: Path | str, fail: Callable[[str], NoReturn]) -> str:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read() if size <= MOST_BYTES else b""
    except (OSError, ValueError) as problem:  # ValueError: a null character in the path
        fail(f"cannot be read: {getattr(problem, 'strerror', None) or problem}")
    if size > MOST_BYTES:
        fail(f"has {size / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:,.0f} MB that are read at most; use a part")
    if words := other_kind(content):
        fail(words)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        fail(f"is not UTF-8 text (byte {problem.start}); save it as UTF-8")


# ---- paths and writing -----------------------------------------------------------------------------------------
def user_path(path: Path | str) -> Path:
    """A path as a user gives it: a `~` at its beginning stands for the home folder, as in a shell.

    Raises:
        CourseError: if that names no user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CourseError(f"{path}: '~' names no user's home folder here; write the path out") from None


# What torch and safetensors say where the system refused a write: they raise no OSError.
_REFUSED = re.compile(r"\(os error \d+\)|inline_container|PytorchStreamWriter|iostream error|Parent directory")


@contextlib.contextmanager
def storing(path: Path | str) -> Iterator[None]:
    """Around whatever writes to a path: what the system refuses, as on a full disk, becomes one sentence.

    Raises:
        CourseError: naming the path and the reason.
    """
    try:
        yield
    except (CourseError, ConnectionError):
        raise
    except Exception as problem:
        if not isinstance(problem, OSError) and not _REFUSED.search(str(problem)):
            raise
        raise CourseError(refusal(problem, path)) from problem


def refusal(problem: Exception, path: Path | str) -> str:
    """What the system refused, why, and what to do, in one sentence."""
    system_error = re.search(r"([^:]+) \(os error \d+\)", str(problem))  # safetensors'; torch gives no reason
    if isinstance(problem, OSError):  # FileExistsError: where a folder was to be made
        reason = (
            os.strerror(errno.ENOTDIR) if isinstance(problem, FileExistsError) else problem.strerror or str(problem)
        )
    else:
        reason = system_error[1].strip() if system_error else "most likely no space"
    return (
        f"{path}: cannot be written: {reason}; make room, or give a place that can be written to, and start again: "
        "what was finished is kept"
    )


def check_writable(path: Path | str) -> None:
    """See that a file can be written here, before the work that is to fill it; its folder is made.

    Raises:
        CourseError: if it cannot.
    """
    path = user_path(path)
    with storing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes so that `path` holds either its old content or all of the new one, never a part.

    It goes to a temporary file in the same folder first, which then replaces `path` in one step.

    Raises:
        CourseError: if the system refuses, as on a full disk; then `path` is as it was.
    """
    write_together({user_path(path): content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several files, each as `write_atomically` does, in their order.

    All are written beside their places before the first takes its own.

    Raises:
        CourseError: if the system refuses, as on a full disk; then all files are as they were.
    """
    written: list[tuple[str, Path]] = []
    try:
        for path, content in contents.items():
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".tmp")
                written.append((temporary, path))
                with os.fdopen(handle, "wb") as file:
                    file.write(content if isinstance(content, bytes) else content.encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)  # mkstemp makes it private; a record is meant to be read
        for temporary, path in written:
            with storing(path):
                os.replace(temporary, path)
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)


# ---- surroundings ----------------------------------------------------------------------------------------------


def hub_is_off() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network, read as the Hub's own client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def project_folder() -> Path:
    """The folder that holds `records/` and `runs/`: the course's checkout, or the current folder outside of one."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()
