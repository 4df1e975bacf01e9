"""Sentences of notebooks 02 and 03 that the records refute: they do not come back, and what refutes them holds."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from qa_helpers.evaluation.comparisons import paired_difference
from qa_helpers.evaluation.metrics import load_card
from qa_helpers.experiment.catalogue import REPORTED, SEEDS
from qa_helpers.experiment.record import paired_columns
from qa_helpers.experiment.record_files import load_records
from qa_helpers.report.counts import WAYS, Count, count, find_reply, load_counts

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
REFUTED = [
    ("02_class_baseline", "averaged over ten steps at a time. It"),  # fewer at an epoch's end
    ("02_class_baseline", "training ends while the loss still falls"),  # that of 100 questions rises at the end
    ("02_class_baseline", "stays a conjecture"),  # published: Splinter, 1,024 examples
    ("02_class_baseline", 'given = ["the Arizona Cardinals", "Arizona Cardinals"]'),  # SQuAD has them the other way
    ("03_scaling_experiments", "each a mean over 500 optimizer steps"),  # inferred from a default
    ("03_scaling_experiments", "counted more leniently than any of these four"),  # its count forgives no article
    ("03_scaling_experiments", "wrong by any count"),
    ("03_scaling_experiments", "none could be had where these runs were recorded"),  # SmolLM2 is among them
    ("03_scaling_experiments", "There it is: 82.0"),
    ("03_scaling_experiments", "is called worse more narrowly"),  # not where eight are looked at together
    ("03_scaling_experiments", 'return "never"'),  # the law's ceiling lies under published results
    ("03_scaling_experiments", "one run of 46"),
]


@pytest.mark.parametrize(("name", "sentence"), REFUTED)
def test_a_refuted_sentence_is_gone(name: str, sentence: str) -> None:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not [cell["id"] for cell in cells if sentence in "".join(cell["source"])]


def _experiment_2() -> list[dict[str, dict[str, Count]]]:
    runs = load_counts().runs
    return [runs[f"class-experiment2-5000-seed{seed}"]["first-500"] for seed in SEEDS]


def _lacking(what: str, which: str) -> float:
    counts = [run[what][which] for run in _experiment_2()]
    return 100 * sum(one.lacking for one in counts) / sum(one.questions - one.most for one in counts)


def test_no_count_fits_all_that_the_report_says_of_its_own() -> None:
    given = ["Arizona Cardinals", "the Arizona Cardinals", "Arizona Cardinals"]
    context = "They defeated the Arizona Cardinals"
    row = {"context": context, "answers": {"text": given, "answer_start": [context.find(text) for text in given]}}
    example, people = count([find_reply("Arizona Cardinals", context)], [row]), load_counts().people["first-500"]
    fits = {}
    for what, which in ((what, which) for what, names in WAYS.items() for which in names):
        reached = max(one[what][which].percent[0] for one in people.values() if which in one[what])
        wrong = example[what][which].most < 1
        fits[what, which] = (reached >= REPORTED["experiment 2"].accuracy, _lacking(what, which) >= 5, wrong)
    assert not [way for way, all_three in fits.items() if all(all_three)]
    assert {way for way, (_, _, wrong) in fits.items() if wrong} == {
        *product(["text"], ["second", "longest"]),
        *product(["start", "mean"], ["second"]),
    }
    assert _lacking("text", "first") < 2 < 10 < _lacking("text", "second")


def test_no_run_reaches_77_by_a_count_that_forgives_no_article() -> None:
    on_500 = [sets["first-500"] for sets in load_counts().runs.values() if "first-500" in sets]
    assert max(one.percent[1] for counts in on_500 for ways in counts.values() for one in ways.values()) < 77


def test_another_base_model_gains_more_than_nine_runs() -> None:
    records = load_records("class-*")
    larger = records["class-sft-1000-smollm2-seed0"]
    pairs = [paired_columns(records[f"class-size-1000-seed{seed}"], larger) for seed in SEEDS]
    gain = paired_difference(100.0 * np.mean([mine for mine, _ in pairs], axis=0), 100.0 * pairs[0][1])
    assert str(gain) == "5.3 [0.8, 9.9]"
    alone = [records[f"class-experiment2-5000-seed{seed}"].column("exact_match", "random-500") for seed in SEEDS]
    nine = records["class-idea-best-three-ensemble-5000-seed0"].column("exact_match", "random-500")
    assert paired_difference(100.0 * np.mean(alone, axis=0), 100.0 * nine).value < gain.value
    assert len(load_card().titles) == len(records["class-experiment2-5000-seed0"].questions.id)


def test_of_experiment_2s_wrong_answers_four_in_ten_share_no_word_with_a_given_one() -> None:
    questions = load_records("class-experiment2-5000-seed0")["class-experiment2-5000-seed0"].questions
    wrong = [kind for kind, equal in zip(questions.category, questions.string_equality, strict=True) if not equal]
    assert len(wrong) == 6_299
    assert sum(kind not in ("exact", "too long") for kind in wrong) == 3_697
    assert sum(kind == "too short" for kind in wrong) == 837
    assert round(100 * sum(kind in ("elsewhere", "empty") for kind in wrong) / len(wrong), 1) == 38.5
