"""The playground: answers as the evaluation gives them, shown for any text, with bounded work and bounded HTML."""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.span_answers import answer
from qa_helpers.experiment.record import Run
from qa_helpers.widgets import playground
from qa_helpers.widgets.playground import MOST_TOKENS, NONE, OWN, Playground, answered_html, ask, available_models

PASSAGE = "The Broncos beat the Panthers in 2016. The game was played in Santa Clara."
QUESTION = "Where was the game played?"
SCRIPTS = {
    "Arabic": ("ولد الشاعر في بغداد عام ١٩٢٦.", "أين ولد الشاعر؟"),
    "Chinese": ("東京は日本の首都である。人口は千四百万人。", "日本の首都は？"),
    "emoji": ("She ordered 🍕 and 👩‍👩‍👧 came. 🇩🇪!", "What 🍕?"),
    "combining": ("Le cafe\u0301 est ferme\u0301 a\u0300 midi. ก็ดี", "Quand?"),
    "beyond U+FFFF": ("𝔘𝔫𝔦 𝕜 and plain 𠮷野家 text", "what?"),
}


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> nn.Module:
    return tiny_model(3).eval()  # type: ignore[no-any-return]


@pytest.fixture
def widget(model: nn.Module, tiny_model: Any, tokenizer: Any) -> Playground:
    choices = {"one": (model, tokenizer), "other": lambda: (tiny_model(4).eval(), tokenizer)}
    return Playground(choices, {"game": (QUESTION, PASSAGE), "city": ("Which city?", "Oslo is a city.")})


def words(shown: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", shown, flags=re.DOTALL)))


# ---- asking ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("repeated", [1, 60])  # one window, and several
def test_the_answers_are_those_of_the_evaluation(model: nn.Module, tokenizer: Any, repeated: int) -> None:
    context = " ".join(f"{PASSAGE} {number}" for number in range(repeated))
    found = ask(model, tokenizer, QUESTION, context)
    rows = [{"question": QUESTION, "context": context}]
    assert found.n_best == answer(model, tokenizer, rows, n_best=5).predictions[0].n_best
    assert (found.windows > 1) == (repeated > 1)
    assert found.context == context


def test_every_token_has_its_place_and_probabilities_add_up(model: nn.Module, tokenizer: Any) -> None:
    for context in (PASSAGE, PASSAGE * 60):
        found = ask(model, tokenizer, QUESTION, context)
        offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert [(token.start, token.end) for token in found.tokens] == offsets
        for column in ("starts", "ends"):
            values = [getattr(token, column) for token in found.tokens]
            assert sum(values) == pytest.approx(1)
            assert len({round(value, 9) for value in values}) > 5


def test_the_strip_holds_the_models_own_probabilities(model: nn.Module, tokenizer: Any) -> None:
    found = ask(model, tokenizer, QUESTION, PASSAGE)
    inputs = tokenizer(QUESTION, PASSAGE, return_tensors="pt")
    first = inputs.sequence_ids(0).index(1)
    logits = model(**inputs).end_logits[0, first:-1].detach().numpy()
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [token.ends for token in found.tokens] == pytest.approx(expected.tolist(), rel=0.05)  # bfloat16


@pytest.mark.parametrize(
    ("question", "context", "sentence"),
    [
        ("", PASSAGE, "the question is empty: type or pick one"),
        (QUESTION, " \n\t", "the passage is empty: type or pick one"),
        ("why " * 400, PASSAGE, "shorten it"),
        ("x" * 50_000, PASSAGE, "the question has 50,000 characters: shorten it"),
        ("\u200b", PASSAGE, "the question is empty: type or pick one"),
        (QUESTION, "\u200b\x00", "the passage is empty: type or pick one"),
        (QUESTION, "\ue000", "the passage holds nothing that the model can read"),
        ("Where \ud83d?", PASSAGE, "the question holds half a character, .*; remove it"),
        (QUESTION, "Here \ud83d.", "the passage holds half a character, .*; remove it"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_sentence(
    model: nn.Module, tokenizer: Any, question: str, context: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        ask(model, tokenizer, question, context)


def test_a_paste_of_ten_thousand_words_is_cut_and_said_so(model: nn.Module, tokenizer: Any) -> None:
    context = " ".join(f"word{number % 97}" for number in range(10_000))
    found = ask(model, tokenizer, QUESTION, context)
    assert len(found.tokens) <= MOST_TOKENS
    assert context.startswith(found.context)
    assert found.left_out == len(context) - len(found.context) > 0
    shown = answered_html(found, "a model")
    assert f"{found.left_out:,} were not" in words(shown)
    assert len(shown) < 40_000
    no_spaces = ask(model, tokenizer, QUESTION, "x" * 200_000)
    assert len(no_spaces.context) <= playground.MOST_CHARACTERS
    assert len(answered_html(no_spaces, "a model")) < 40_000


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_answer_is_marked_where_it_stands_in_any_script(model: nn.Module, tokenizer: Any, script: str) -> None:
    context, question = SCRIPTS[script]
    found = ask(model, tokenizer, question, context)
    for span in found.n_best:
        assert context[span.start : span.start + len(span.text)] == span.text
    shown = answered_html(found, "a model")
    marked = re.search(r"<mark[^>]*><sup>answer</sup>(.*?)</mark>", shown, re.DOTALL)
    assert marked
    assert html.unescape(marked.group(1)).startswith(found.answer.text)
    paragraph = re.search(r'<p class="qa-text" dir="auto">(.*?)</p>', shown, re.DOTALL)
    assert paragraph
    assert words(paragraph.group(1)).replace("answer", "", 1) == context


@settings(max_examples=30)
@given(
    question=st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    context=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_text_is_answered_as_text_or_refused(
    model: nn.Module, tokenizer: Any, question: str, context: str, name: str
) -> None:
    widget = Playground({name: (model, tokenizer)}, {"it": (question, context)})
    shown = widget.to_html().split("</style>")[1]
    tags = {"div", "p", "b", "mark", "sup", "span", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"<(\w+)", shown)) <= tags
    assert "⚠" in shown or "Best answers" in shown


def test_half_a_character_is_said_and_can_be_sent_to_a_browser(model: nn.Module, tokenizer: Any) -> None:
    widget = Playground({"one": (model, tokenizer)}, {"it": ("Where \ud83d?", "Here \ud83d.")})
    assert "holds half a character" in words(widget.to_html())
    assert widget.to_html().encode()


def test_text_is_escaped(model: nn.Module, tokenizer: Any) -> None:
    shown = answered_html(ask(model, tokenizer, "<i>?", "<script>alert(1)</script>"), "<b>name")
    assert "<script" not in shown
    assert "&lt;b&gt;name" in shown


# ---- the widget ------------------------------------------------------------------------------------------------
def test_the_first_example_is_answered_at_once(widget: Playground, model: nn.Module, tokenizer: Any) -> None:
    best = ask(model, tokenizer, QUESTION, PASSAGE).answer
    shown = words(widget.to_html())
    assert f"one: {best.text} (confidence {100 * best.probability:.1f} %)" in shown
    assert "other" not in shown


def test_picking_an_example_answers_it(widget: Playground) -> None:
    widget.pick.value = "city"
    assert "Which city?" in words(widget.to_html())
    assert widget.context.value == "Oslo is a city."


def test_two_models_answer_side_by_side(widget: Playground) -> None:
    widget.second.value = "other"
    widget.ask.click()
    assert re.findall(r"<div><p><b>(\w+)</b>", widget.to_html()) == ["one", "other"]
    widget.first.value = "other"
    widget.ask.click()
    assert re.findall(r"<div><p><b>(\w+)</b>", widget.to_html()) == ["other"]
    widget.second.value = NONE
    widget.ask.click()
    assert re.findall(r"<div><p><b>(\w+)</b>", widget.to_html()) == ["other"]


def test_own_text_is_answered(widget: Playground) -> None:
    widget.context.value, widget.question.value = "Bergen is rainy.", "What is rainy?"
    widget.ask.click()
    assert widget.pick.value == OWN
    assert "What is rainy?" in words(widget.to_html())
    assert "Bergen" in words(widget.to_html())
    widget.question.value = ""
    widget.ask.click()
    assert words(widget.to_html()).count("the question is empty: type or pick one") == 1
    widget.pick.value = "game"
    assert "Best answers" in widget.to_html()


def test_a_model_that_cannot_be_loaded_is_said_beside_one_that_can(model: nn.Module, tokenizer: Any) -> None:
    def broken() -> Any:
        raise DataError("gone")

    widget = Playground({"one": (model, tokenizer), "bad": broken}, {"it": (QUESTION, PASSAGE)})
    widget.second.value = "bad"
    widget.ask.click()
    assert "⚠ gone" in words(widget.to_html())
    assert "Best answers" in widget.to_html()


def test_finished_runs_can_be_chosen(finished: tuple[Path, Run], tmp_path: Path) -> None:
    folder, _ = finished
    found = available_models(folder)
    assert next(iter(found)) == "finished"
    model, tokenizer = found["finished"]()
    assert ask(model, tokenizer, QUESTION, PASSAGE).answer.text in PASSAGE
    assert list(available_models(tmp_path)) == ["minilm as it comes, its span head untrained"]
    untrained = available_models(tmp_path).popitem()[1]()
    assert ask(*untrained, QUESTION, PASSAGE).answer.text in PASSAGE


def test_runs_without_a_span_model_are_not_offered(tmp_path: Path) -> None:
    language, span = "train a language model", "train a span model"
    for name, kind, has_model in (("written", language, True), ("bare", span, False), ("pointed", span, True)):
        home = tmp_path / name
        (home / "model").mkdir(parents=True) if has_model else home.mkdir()
        (home / "run.json").touch()
        (home / "experiment.json").write_text(f'{{"kind": "{kind}", "name": "{name}"}}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").touch()
    assert list(available_models(tmp_path))[:-1] == ["broken", "pointed"]
    widget = Playground({"broken": available_models(tmp_path)["broken"]}, {"it": (QUESTION, PASSAGE)})
    assert "there is no trained model" in words(widget.to_html())


def test_examples_are_the_courses_own() -> None:
    found = playground.examples()
    rows = load_qa("courseqa", "validation")
    assert len(found) == len(set(rows["title"]))
    assert found[f"{rows['title'][0]}: {rows['question'][0]}"] == (rows["question"][0], rows["context"][0])
