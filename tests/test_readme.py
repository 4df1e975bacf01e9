"""What the README says of the project, against the project."""

import re
from pathlib import Path

import numpy as np

from qa_helpers.evaluation.comparisons import paired_difference
from qa_helpers.experiment.record_files import read_record
from qa_helpers.report.documents import REPORT_MARKS, format_report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}


def between_marks(text: str) -> str:
    begin, end = REPORT_MARKS
    return text.split(begin)[1].split(end)[0].strip()


def test_the_table_of_all_runs_is_made_from_the_records() -> None:
    # The runs of ideas, and the one on made-up questions that an idea starts from, have their table in notebook 03.
    records = [read_record(path) for path in sorted((ROOT / "records").glob("class-[!ci]*/run.json"))]
    assert records
    assert between_marks(DOCS["results.md"]) == format_report(records)


def test_the_readmes_table_is_of_means_over_seeds() -> None:
    for name, _, seeds, *means in (row.strip("| ").split(" | ") for row in between_marks(README).splitlines()[2:]):
        runs = [read_record(path) for path in sorted((ROOT / "records").glob(f"{name}-seed*/run.json"))]
        assert len(runs) == int(seeds)
        for mean, (asked, metric) in zip(
            means,
            [("first-500", "exact_match"), ("random-500", "exact_match"), ("all", "exact_match"), ("all", "f1")],
            strict=True,
        ):
            if any(asked not in run.scores for run in runs):
                assert mean == "–"
                continue
            by_hand = np.mean([100 * np.asarray(run.column(metric, asked)).mean() for run in runs])
            assert abs(float(mean) - by_hand) <= 0.06  # its decimal, and the records' second


def test_it_is_for_somebody_who_has_two_minutes() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README) <= 9_000


def test_each_step_of_a_questions_way_is_there() -> None:
    way = DOCS["decisions.md"].split("## A question's way through the package")[1].split("## ")[0]
    steps = re.findall(r"^\d\. ((?:`[^`]+`, )+)?", way, re.MULTILINE)
    assert len(steps) == 8
    for step in steps:
        *files, last = re.findall(r"`([^`]+)`", step)
        for file in [*files, last]:
            if file.endswith(".py"):
                path = ROOT / "qa_helpers" / file
                assert path.is_file(), file
            else:
                assert re.search(rf"^def {file}\(", path.read_text(encoding="utf-8"), re.MULTILINE), file


def test_the_best_recipe_is_the_records() -> None:
    best, *alone = (
        read_record(ROOT / "records" / f"class-{name}")
        for name in ("idea-best-three-ensemble-5000-seed0", *(f"experiment2-5000-seed{seed}" for seed in (0, 1, 2)))
    )
    usual = np.mean([100.0 * run.column("exact_match", "all") for run in alone], axis=0)
    gain = paired_difference(usual, 100.0 * best.column("exact_match", "all"))
    text = (
        f"{best.scores['all'].exact_match.value:.1f} EM on all questions, {gain} over the mean of experiment 2's three"
    )
    assert text in README


def test_every_dependency_has_its_reason() -> None:
    reasons = DOCS["decisions.md"].split("## Why each dependency")[1].split("\n## ")[0]
    names = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not re.search(rf"\b{name}\b", reasons)] == []


def test_every_notebook_is_listed_and_every_link_leads_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= links
    assert {f"docs/{name}" for name in DOCS} <= links
    for name, text in DOCS.items():
        assert [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / "docs" / link).exists()] == [], (
            name
        )


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for text in (README, *DOCS.values()):
        assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
