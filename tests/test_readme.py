"""What the README says of the project, against the project."""

import re
from pathlib import Path

import numpy as np

from qa_helpers.evaluation.statistics import paired_difference
from qa_helpers.experiment.record import REPORT_MARKS, format_report, read_record

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_is_made_from_the_records() -> None:
    begin, end = REPORT_MARKS
    table = README.split(begin)[1].split(end)[0].strip()
    # The runs of ideas, and the one on made-up questions that an idea starts from, have their table in notebook 03.
    records = [read_record(path) for path in sorted((ROOT / "records").glob("class-[!ci]*.json"))]
    assert records
    assert table == format_report(records)


def test_the_best_recipe_is_the_records() -> None:
    best, *alone = (
        read_record(ROOT / "records" / f"class-{name}.json")
        for name in ("idea-best-three-ensemble-5000-seed0", *(f"experiment2-5000-seed{seed}" for seed in (0, 1, 2)))
    )
    usual = np.mean([100.0 * run.column("exact_match", "all") for run in alone], axis=0)
    gain = paired_difference(usual, 100.0 * best.column("exact_match", "all"))
    text = (
        f"{best.scores['all'].exact_match.value:.1f} EM on all questions, {gain} over the mean of experiment 2's three"
    )
    assert text in README


def test_every_dependency_has_its_reason() -> None:
    reasons = README.split("## Why each dependency")[1].split("\n## ")[0]
    names = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not re.search(rf"\b{name}\b", reasons)] == []


def test_every_notebook_is_listed_and_every_link_leads_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert [link for link in links if not (ROOT / link).exists()] == []
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= links


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
