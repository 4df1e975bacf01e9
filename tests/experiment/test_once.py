"""What is run once: made once, refused where the folder is another's, gone on with after a kill, done anew if asked."""

from functools import partial

import pytest

from qa_helpers.experiment.forms import RecordError, StrictModel
from qa_helpers.experiment.once import kept, locked, read_as, run_once


class Sum(StrictModel):
    """What is run here."""

    name: str
    numbers: tuple[float, ...]


class Total(StrictModel):
    """What came of it."""

    total: float


@pytest.fixture
def run(tmp_path):
    """Runs a sum in its folder; each time that it is worked out, its name is noted."""
    made = []

    def total(described):
        made.append(described.name)
        return Total(total=sum(described.numbers))

    def once(described, **options):
        home = tmp_path / "runs" / described.name
        result = partial(kept, home / "total.json", Total, partial(total, described))
        return run_once(described, home / "sum.json", home / "total.json", result, "is another's", **options)

    once.made = made
    return once


def test_what_was_run_is_read_back(run):
    described = Sum(name="a", numbers=(0.1, 0.2))
    assert run(described) == run(described) == Total(total=0.1 + 0.2)
    assert run.made == ["a"]


def test_a_folder_of_something_else_is_refused_before_and_after_it_is_finished(run, tmp_path):
    run(Sum(name="a", numbers=(1.0,)))
    for finished in (True, False):
        with pytest.raises(RecordError, match=r"runs/a: is another's$"):
            run(Sum(name="a", numbers=(2.0,)))
        if finished:
            (tmp_path / "runs" / "a" / "total.json").unlink()
    assert run(Sum(name="a", numbers=(1.0,))) == Total(total=1)
    assert run.made == ["a", "a"]


def test_what_is_finished_is_read_while_another_process_holds_the_folder_and_nothing_else_is(run, tmp_path):
    described = Sum(name="a", numbers=(1.0,))
    run(described)
    with locked(tmp_path / "runs" / "a"):
        assert run(described) == Total(total=1)
        with pytest.raises(RecordError, match="another process is running this experiment"):
            run(described, before=list)
        (tmp_path / "runs" / "a" / "total.json").unlink()
        with pytest.raises(RecordError, match="another process is running this experiment"):
            run(described)
    assert run.made == ["a"]


def test_what_is_to_be_done_before_makes_room_for_something_else(run, tmp_path):
    run(Sum(name="a", numbers=(1.0,)))

    def clear():
        for name in ("sum.json", "total.json"):
            (tmp_path / "runs" / "a" / name).unlink()

    assert run(Sum(name="a", numbers=(2.0,)), before=clear) == Total(total=2)


def test_an_error_keeps_the_claim_but_not_the_lock(tmp_path):
    home, described = tmp_path / "a", Sum(name="a", numbers=())

    def fail():
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run_once(described, home / "sum.json", home / "total.json", fail, "is another's")
    assert read_as(Sum, home / "sum.json") == described


def test_a_file_that_is_no_such_thing_is_named_with_its_field(tmp_path):
    (tmp_path / "total.json").write_text('{"total": "three"}')
    with pytest.raises(RecordError, match=r"total\.json: total: Input should be a valid number$"):
        kept(tmp_path / "total.json", Total, lambda: Total(total=3))
