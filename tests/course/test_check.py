"""The report on this machine, where something is missing; what the command prints of it, see `test_main`."""

from pathlib import Path

import pytest

from qa_helpers.common.io import ModelError
from qa_helpers.course import check
from qa_helpers.course.check import machine_report
from qa_helpers.data import squad
from qa_helpers.model.packaged import NotInstalledError


def test_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squad, "ASSETS", Path("nowhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines, complete = machine_report()
    assert not complete
    assert dict(lines)["courseqa"].startswith("not usable:")
    assert dict(lines)["scale"].startswith("none yet")


def test_a_model_that_is_optional_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = check.find_packaged

    def report(problem: ModelError | None) -> tuple[dict[str, str], bool]:
        def find(name: str) -> Path:
            if name != "minilm" and problem:
                raise problem
            return there("minilm")

        monkeypatch.setattr(check, "find_packaged", find)
        lines, complete = machine_report()
        return dict(lines), complete

    lines, complete = report(NotInstalledError("it is not installed; run: this"))
    assert complete
    assert lines["mpnet"] == "optional: it is not installed; run: this"
    assert lines["smollm2"] == "not usable: it is not installed; run: this"
    assert report(ModelError("it is damaged"))[0]["mpnet"] == "not usable: it is damaged"
    assert "all-mpnet-base-v2" in report(None)[0]["mpnet"]
