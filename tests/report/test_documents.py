"""The documents' picture; their tables are tested with the records that they show."""

from pathlib import Path

import pytest

from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record_files import read_record
from qa_helpers.report.documents import save_report_picture

RECORD = Path(__file__).parents[2] / "records" / "class-baseline-1000-seed0"


def test_picture_of_the_report_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_report_picture([read_record(RECORD)], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_picture_is_a_png_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"ends in \.png"):
        save_report_picture([], tmp_path / "picture.svg")
