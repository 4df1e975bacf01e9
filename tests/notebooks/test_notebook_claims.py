"""What notebooks 00 and 01 say, held against the records, the models, and their own stored outputs.

Each test states a fact anew, and then that the notebook says so and no longer says otherwise.
"""

import ast
import contextlib
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from stored_tables import shown_text

from qa_helpers.course.grading import review, split_sentences
from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.comparisons import paired_difference
from qa_helpers.evaluation.written_answers import MAX_NEW_TOKENS
from qa_helpers.experiment.catalogue import LEARNING_RATES, METHODS, method
from qa_helpers.experiment.record import Run, paired_columns
from qa_helpers.experiment.record_files import load_records
from qa_helpers.experiment.scales import SCALES
from qa_helpers.model.load import load_qa_model
from qa_helpers.model.packaged import find_packaged
from qa_helpers.model.trainable import count_parameters, set_trainable

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
START, WHY = "00_start_here", "01_why_fine_tuning"


@cache
def cells(notebook: str) -> list[dict[str, Any]]:
    return json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]


def sources(notebook: str, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == kind]


def text(notebook: str) -> str:
    """All that the notebook tells, its code and outputs apart, in one line."""
    return " ".join(" ".join(sources(notebook, "markdown")).split())


def outputs(notebook: str, code: str) -> str:
    """What the one cell whose source holds `code` has stored, as text."""
    (cell,) = (cell for cell in cells(notebook) if cell["cell_type"] == "code" and code in "".join(cell["source"]))
    return "\n".join(map(shown_text, cell["outputs"]))


def table(notebook: str, code: str) -> list[list[str]]:
    """The rows of the one table that this cell has stored."""
    lines = [line for line in outputs(notebook, code).splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def percent(run: Run, metric: str) -> float:
    (scores,) = run.scores.values()
    return getattr(scores, metric).value


@cache
def tried() -> dict[str, dict[float, Run]]:
    """The runs at quick scale, by way and learning rate."""
    records = load_records("quick-method-*")
    return {
        way: {rate: records[method(SCALES["quick"], way, rate).name] for rate in rates}
        for way, rates in LEARNING_RATES.items()
    }


@cache
def chosen(scale: str) -> dict[str, Run]:
    """The runs at the chosen learning rates, by way."""
    records = load_records(f"{scale}-method-*")
    return {way: records[method(SCALES[scale], way).name] for way in METHODS}


def gain(before: Run, after: Run, metric: str = "exact_match") -> Any:
    return paired_difference(*(100.0 * column for column in paired_columns(before, after, metric)))


# ---- lists of questions set side by side -----------------------------------------------------------------------
def blocks(notebook: str) -> Iterator[str]:
    """Every piece of code that a reader may run: cells and solutions."""
    yield from sources(notebook, "code")
    for markdown in sources(notebook, "markdown"):
        yield from re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)


def set_side_by_side_unseen(code: str) -> list[str]:
    """What in the code sets answers beside questions, or two runs' answers side by side, and compares no ids."""
    asserted = " ".join(ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert))
    faults = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        words = ast.unparse(call)
        name = ast.unparse(call.func)
        if name == "zip" and re.search(r"predict|question|answers", words) and not re.search(r"\bid\b", asserted):
            faults.append(words)
        if name in ("paired_difference", "mcnemar") and "paired_columns" not in code and ".id ==" not in asserted:
            faults.append(words)
    return faults


def test_a_comparison_without_ids_is_found() -> None:
    zipped = 'rows = list(zip(few["question"], [r.prediction for r in zero_shot], strict=True))\n'
    assert set_side_by_side_unseen(zipped)
    assert not set_side_by_side_unseen('assert list(few["id"]) == [r.id for r in zero_shot]\n' + zipped)
    assert set_side_by_side_unseen('paired_difference(*(r.column("f1", "all") for r in (a, b)))')
    assert not set_side_by_side_unseen("paired_difference(*paired_columns(a, b))")
    assert not set_side_by_side_unseen("assert a.questions.id == b.questions.id\n" + "mcnemar(em(a), em(b))")


@pytest.mark.parametrize("notebook", [START, WHY, "02_class_baseline", "03_scaling_experiments"])
def test_questions_set_side_by_side_have_their_ids_compared(notebook: str) -> None:
    assert [fault for code in blocks(notebook) for fault in set_side_by_side_unseen(code)] == []


def test_each_answer_stands_beside_its_question() -> None:
    tuned = load_records("quick-sft-40-*")["quick-sft-40-smollm2-seed0"]
    asked = {row["id"]: row["question"] for row in load_qa("courseqa", "validation")}
    recorded = {asked[id]: answer for id, answer in zip(tuned.questions.id, tuned.questions.prediction, strict=True)}
    rows = table(WHY, "run_experiment(catalogue.ten_steps())")
    same = sum(recorded[question] == after for question, _, after in rows)
    assert len(rows) == 6
    assert same >= 4  # an answer may differ in a word between processors


# ---- the first reason ------------------------------------------------------------------------------------------
def test_where_both_forms_prefer_the_other_city_it_was_the_capital() -> None:
    rows = table(WHY, "p({city}), %")
    odds = {row[0]: [float(row[at]) / max(float(row[at + 1]), 0.05) for at in (4, 6)] for row in rows}
    former = {row[0] for row in rows if row[3] != "–"}
    rivals, controls = list(odds)[:12], list(odds)[12:]
    assert controls == ["France", "Germany", "Japan"]
    assert min(ratio for country in controls for ratio in odds[country]) > 10
    continued, asked = ({country for country in rivals if odds[country][form] > 1} for form in (0, 1))
    assert set(rivals) - continued - asked <= former
    assert set(rivals) - continued - asked == {"Kazakhstan", "Myanmar", "Turkey"}
    assert asked - continued == {"Australia", "New Zealand", "Nigeria"}
    assert continued - asked == {"Brazil"}
    assert "Asking turns Australia, New Zealand and Nigeria to the capital, and Brazil away from it." in text(WHY)
    assert len(former) == 7
    assert "Seven of the other cities *were* the capital" in text(WHY)


def test_the_first_reason_claims_no_more_than_it_shows() -> None:
    told = text(WHY)
    for refuted in ("all that a language model is trained for", "nothing in its training marks", "common mistakes"):
        assert refuted not in told
    for needed in ("rankings of replies", "Nothing here shows that it mends", "arxiv.org/abs/2405.05904"):
        assert needed in told


def test_ground_truth_is_what_labels_say_and_nothing_else() -> None:
    sentences = [sentence for sentence in split_sentences(text(WHY)) if "ground truth" in sentence]
    assert sentences
    assert all(re.search(r"\btasks?\b", sentence) for sentence in sentences)
    assert not re.search("right and wrong text", text(WHY))


# ---- two axes --------------------------------------------------------------------------------------------------
def topics() -> dict[str, str]:
    (code,) = (source for source in sources(WHY, "code") if "topics = {" in source)
    (assigned,) = (n.value for n in ast.parse(code).body if isinstance(n, ast.Assign) and n.targets[0].id == "topics")
    return ast.literal_eval(assigned)


def test_signal_and_weights_are_two_choices() -> None:
    told = text(WHY)
    assert "*transfer learning*; the early layers" not in told
    assert "**The signal**" in told
    assert "**The weights**" in told
    support = {
        sentence: review(sentence, topics())[0].support
        for sentence in ("In supervised learning labels are shown.", "Transfer learning is old.", "All weights move.")
    }
    supervised, transfer, weights = support.values()
    assert supervised != weights
    assert transfer == ["2: the whole, whatever is frozen"]
    assert weights == ["2: the table of five ways"]


def test_the_model_answer_is_of_the_length_asked_for_and_each_sentence_is_supported() -> None:
    (folded,) = (source for source in sources(WHY, "markdown") if "A model answer" in source)
    model_answer = folded.split("</summary>")[1].split("</details>")[0]
    sentences = review(model_answer, topics())
    assert 4 <= len(sentences) <= 6
    assert all(sentence.support for sentence in sentences)
    assert not re.search("transfer learning the early|supervised fine-tuning all weights", model_answer)


# ---- forgetting ------------------------------------------------------------------------------------------------
def test_the_rate_decides_as_much_as_the_way_what_is_forgotten() -> None:
    recall = {
        way: {rate: run.retrieval.recall("after", 1).value for rate, run in runs.items()}
        for way, runs in tried().items()
    }
    em = {way: {rate: percent(run, "exact_match") for rate, run in runs.items()} for way, runs in tried().items()}
    before = tried()["all"][2e-4].retrieval.recall("before", 1).value
    assert sum(map(len, recall.values())) == 18
    assert set(recall["head"].values()) == {before}
    for way in set(METHODS) - {"head"}:
        assert METHODS[way] == max(em[way], key=em[way].get)
        until_best = [kept for rate, kept in recall[way].items() if rate <= METHODS[way]]
        assert until_best == sorted(until_best, reverse=True)
        assert len(set(until_best)) > 1
    assert recall["last:2"][2e-4] > 0.9 * before > 0.4 * before > recall["all"][2e-4]
    assert recall["last:2"][2e-3] < 0.05 * before < 0.75 * before < recall["last:2"][5e-4]
    same = gain(tried()["last:2"][5e-4], tried()["last:2"][2e-3])
    assert same.low < 0 < same.high
    good = {(way, rate): recall[way][rate] for way in em for rate in em[way] if em[way][rate] > 30}
    assert max(good, key=good.get) == ("lora", 2e-3)
    large = chosen("class")["lora"].retrieval
    assert large.recall("after", 1).value < large.recall("before", 1).value / 2

    assert "the rate decides as much as the way" in text(WHY)
    assert "forget everything" not in text(WHY) + "".join(sources(WHY, "code"))
    assert "forget more than all weights together" not in text(WHY)
    said = outputs(WHY, "at rate 0.0002")
    for way in ("last:2", "all"):
        assert f"{way:6} at rate 0.0002: recall@1 {tried()[way][2e-4].retrieval.recall('after', 1)}" in said


def test_minilm_may_know_squads_training_questions() -> None:
    card = (find_packaged("minilm").parent / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in card.splitlines() if line.startswith("| [SQuAD2.0]"))
    assert "87,599" in row
    assert "lists SQuAD 2.0" in text(START)
    assert "SQuAD 2.0 is among the sources on its card" in text(WHY)


# ---- the five ways and their costs -----------------------------------------------------------------------------
def test_ia3_also_scales_what_enters_the_attentions_output() -> None:
    model = set_trainable(load_qa_model("minilm"), "ia3")
    scaled = [name for name, p in model.named_parameters() if p.requires_grad and "attention.output.dense" in name]
    assert len(scaled) == 6
    sizes = {"key": 384, "value": 384, "attention.output": 384, "output": 1536}
    head = count_parameters(set_trainable(load_qa_model("minilm"), "head"))[0]
    assert count_parameters(model)[0] == 6 * sum(sizes.values()) + head
    assert "who leave the attention's output alone" in text(WHY)
    assert "keys, values and feed-forward units are rescaled" not in text(WHY)


def test_at_class_scale_lora_takes_more_memory_than_all_weights() -> None:
    memory = {way: run.timing.peak_memory_mib for way, run in chosen("class").items()}
    assert memory["lora"] > memory["all"]
    assert "at class scale LoRA takes more than all weights" in text(WHY)


def test_what_the_table_recommends_was_measured() -> None:
    told = text(WHY)
    quick, large = (gain(chosen(scale)["lora"], chosen(scale)["all"]) for scale in ("quick", "class"))
    assert quick.low > 0
    assert large.low < 0 < large.high
    assert "| all weights, or LoRA | section 2: all weights are ahead on CourseQA; on SQuAD these questions" in told
    assert "the highest EM of the five at both scales" not in told

    runs = load_records("*-smollm2-*")
    as_it_comes = runs["quick-zero-shot-smollm2-seed0"]
    assert gain(as_it_comes, runs["quick-sft-500-smollm2-seed0"], "contained").low > 0
    ten_steps = runs["quick-sft-40-smollm2-seed0"]
    assert gain(as_it_comes, ten_steps, "contained").value < 0
    assert "a short supervised fine-tuning" not in told
    assert "supervised fine-tuning on some hundred examples" in told


def test_the_two_models_are_compared_with_their_epochs_told() -> None:
    encoder, writer = chosen("class")["all"], load_records("class-sft-*")["class-sft-1000-smollm2-seed0"]
    assert (encoder.experiment.epochs, writer.experiment.epochs) == (3, 1)
    assert encoder.experiment.train_size == writer.experiment.train_size
    assert f"three times over (the language model saw them once, and writes {MAX_NEW_TOKENS} tokens at most)" in text(
        WHY
    )
    assert f"is cut off after {MAX_NEW_TOKENS}" in text(WHY)


@pytest.mark.parametrize("notebook", [START, WHY])
def test_no_stored_interval_of_a_share_is_of_no_width(notebook: str) -> None:
    shown = "\n".join(shown_text(output) for cell in cells(notebook) for output in cell.get("outputs", []))
    assert re.findall(r"\b(\d+\.\d) \[\1, \1\]", shown) == []


# ---- exercises -------------------------------------------------------------------------------------------------
def test_the_ranks_share_of_weights_is_counted() -> None:
    import peft

    (solution,) = (code for code in blocks(WHY) if "for rank in (1, 8, 64)" in code)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(solution, {"lora": chosen("quick")["lora"], "quick": chosen("quick")})
    counted = []
    for rank in (1, 8, 64):
        config = peft.LoraConfig(
            r=rank, target_modules="all-linear", exclude_modules=["qa_outputs"], modules_to_save=["qa_outputs"]
        )
        trained, total = count_parameters(peft.get_peft_model(load_qa_model("minilm"), config))
        counted.append(f"{rank} {100 * trained / total:.2f} %")
    assert printed.getvalue().splitlines() == counted


def test_the_head_saves_half_of_loras_arithmetic() -> None:
    products = {"all": 3, "lora": 2, "head": 1}  # a matrix: forward, for the layers below, for its own change
    assert products["head"] / products["lora"] == 1 / 2
    seconds = {way: run.timing.train_seconds for way, run in chosen("quick").items()}
    assert 0.4 < seconds["head"] / seconds["lora"] < 0.6
    assert "half of LoRA's arithmetic, a third of full fine-tuning's" in text(WHY)
    assert "which is about two thirds of a training step's arithmetic" not in text(WHY)
