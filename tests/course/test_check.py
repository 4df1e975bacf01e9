"""The report on this machine, where something is missing; what the command prints of it, see `test_main`."""

from pathlib import Path

import pytest

from qa_helpers.course.check import machine_report
from qa_helpers.data import squad


def test_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squad, "ASSETS", Path("nowhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines, complete = machine_report()
    assert not complete
    assert dict(lines)["courseqa"].startswith("not usable:")
    assert dict(lines)["scale"].startswith("none yet")
