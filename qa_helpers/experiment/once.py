"""What is run once: a folder is claimed for what is described, locked while that runs, and read back ever after."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from qa_helpers.common.io import read_json, storing, write_atomically
from qa_helpers.experiment.forms import Form, RecordError, StrictModel, parse


def run_once(
    described: StrictModel,
    description: Path,
    record: Path,
    result: Callable[[], Form],
    otherwise: str,
    before: Callable[[], None] | None = None,
    read: Callable[[Path], StrictModel] | None = None,
) -> Form:
    """What running something in its folder gives, or has given: without a lock once it has a record.

    Args:
        described: what is to be run.
        description: the file that says so, so that a half-done run is only ever resumed as what it was.
        record: the file whose presence says that it is finished.
        result: reads the record back; where there is none yet, runs and writes it.
        otherwise: what to say and do where the folder holds something else.
        before: to be done first, under the lock; then it is run even if there is a record.
        read: reads the description; as what `described` is if None.

    Raises:
        RecordError: if the folder holds something else, or another process is running there.
        CourseError: whatever `result` raises, or what cannot be written, see `storing`.
    """
    if before or not record.exists():
        with locked(record.parent):
            if before:
                before()
            _claim(described, description, otherwise, read)
            return result()
    _claim(described, description, otherwise, read)
    return result()


def _claim(
    described: StrictModel, description: Path, otherwise: str, read: Callable[[Path], StrictModel] | None
) -> None:
    if not description.exists():
        write_atomically(description, described.model_dump_json(indent=1) + "\n")
    elif (read(description) if read else read_as(type(described), description)) != described:
        raise RecordError(f"{description.parent}: {otherwise}")


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Keep other processes from running in this folder; the system ends the lock with the process, however it ends.

    The lock lies beside the folder, which `again` removes, and stays when it is released: whoever removed it could
    remove one that another process has just taken.

    Raises:
        CourseError: if another process is running there, or what is done inside cannot be written, see `storing`.
    """
    path = home.parent / ".locks" / f"{home.name}.lock"
    with storing(home):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RecordError(f"{home}: another process is running this experiment; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()


def kept(path: Path, form: type[Form], make: Callable[[], Form]) -> Form:
    """What a file holds, made and written down now if there is none: what was finished before a kill stays.

    Raises:
        RecordError: if there is one that is not of this form.
    """
    if not path.exists():
        write_atomically(path, make().model_dump_json() + "\n")
    return read_as(form, path)


def read_as(form: type[Form], path: Path | str) -> Form:
    """A JSON file as what it is to hold, such as an `Experiment`.

    Raises:
        RecordError: naming the file and, where it does not fit the schema, the field.
    """
    return parse(form, read_json(path, RecordError), str(path))
