"""The ranking widget: real ipywidgets, clicked and typed into; real files."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from little_space import no_file_longer_than

from qa_helpers.rlhf import ranking_store
from qa_helpers.rlhf.ranking_store import Pair, RankingSession, read_history, read_rankings
from qa_helpers.widgets.look import MARGIN, Mark, passage, whole_characters
from qa_helpers.widgets.ranking import PAUSE_SECONDS, RankingWidget, pair_html

PAIRS = [
    Pair(id=f"q{i}", question=f"Who won game {i}?", context="The cats beat the dogs.", first="cats", second="The cats")
    for i in range(4)
]


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rankings.sqlite"


@pytest.fixture
def widget(path: Path, clock: Clock) -> RankingWidget:
    return RankingWidget(RankingSession(PAIRS, path, "ada"), clock)


def click(widget: RankingWidget, name: str, seconds: float = 5) -> None:
    widget._clock.now += seconds  # type: ignore[attr-defined]
    widget.buttons[name].click()


def words(shown: str) -> str:
    """What a reader sees of HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", shown, flags=re.DOTALL)))


def test_every_button_writes_its_choice(widget: RankingWidget, path: Path) -> None:
    for name in ("A", "B", "tie", "skip"):
        click(widget, name)
    chosen = read_rankings(path)
    assert [one.choice for one in chosen[2:]] == ["tie", "skip"]
    assert [getattr(one, one.choice) for one in chosen[:2]] == [
        widget.session.shown(pair)[name] for pair, name in zip(PAIRS, "AB", strict=False)
    ]
    assert "All pairs are ranked" in widget.to_html()
    click(widget, "A")
    assert "all pairs are ranked" in widget.message.value
    assert len(read_history(path)) == 4


def test_progress_and_question_follow_the_choices(widget: RankingWidget) -> None:
    assert "0 of 4 done, by ada" in words(widget.to_html())
    assert "Who won game 0?" in widget.pair.value
    click(widget, "A")
    click(widget, "tie")
    assert "2 of 4 done" in words(widget.to_html())
    assert "Who won game 2?" in widget.pair.value
    click(widget, "undo")
    assert "1 of 4 done" in words(widget.to_html())
    assert "Who won game 1?" in widget.pair.value


def test_a_double_click_counts_once(widget: RankingWidget, path: Path) -> None:
    click(widget, "A")
    click(widget, "A", PAUSE_SECONDS / 2)
    assert len(read_history(path)) == 1
    assert "not counted" in widget.message.value
    click(widget, "A", PAUSE_SECONDS / 2)  # as a key held down does: each starts the pause anew
    assert len(read_history(path)) == 1
    click(widget, "B", PAUSE_SECONDS)
    assert len(read_history(path)) == 2
    assert widget.message.value == ""


def test_a_click_made_while_the_disk_was_slow_is_not_meant_for_the_next_pair(
    widget: RankingWidget, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ranking_store.append_ranking

    def slow(path: Path, ranking: ranking_store.Ranking) -> None:
        real(path, ranking)
        clock.now += 10

    monkeypatch.setattr(ranking_store, "append_ranking", slow)
    click(widget, "A")
    click(widget, "A", 0.01)
    assert len(read_history(path)) == 1


def test_a_full_disk_is_said_and_the_same_click_works_later(widget: RankingWidget, path: Path) -> None:
    click(widget, "A")
    with no_file_longer_than(0):
        click(widget, "B")
        assert "this choice could not be written" in words(widget.message.value)
        assert "Who won game 1?" in widget.pair.value
        click(widget, "undo")
        assert "this choice could not be written" in words(widget.message.value)
    assert len(read_history(path)) == 1
    click(widget, "B")
    assert [one.id for one in read_rankings(path)] == ["q0", "q1"]


def test_a_restart_goes_on(widget: RankingWidget, path: Path) -> None:
    click(widget, "A")
    again = RankingWidget(RankingSession(PAIRS, path, "ada"), Clock())
    assert "1 of 4 done" in words(again.to_html())
    click(again, "undo")
    click(again, "undo")
    assert "no choice to take back" in again.message.value
    assert read_rankings(path) == []


def test_letters_do_what_the_buttons_do(widget: RankingWidget, path: Path, clock: Clock) -> None:
    for letter in "aTsu":
        clock.now += 5
        widget.key.value = letter
        assert widget.key.value == ""
    assert [one.choice for one in read_rankings(path)][1:] == ["tie"]
    clock.now += 5
    widget.key.value = "x"
    assert "'x' is none of the keys" in words(widget.message.value)
    assert len(read_history(path)) == 4
    widget.key.value = "ab"  # typed on before the field was emptied: the last letter counts
    assert len(read_history(path)) == 5


def test_both_answers_are_marked_and_named(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    letters = {text: letter for letter, text in session.shown(PAIRS[0]).items()}
    shown = pair_html(session, PAIRS[0])
    style = {"A": 1, "B": 2}[letters["The cats"]]
    assert f'<mark class="qa-{style}"><sup>{letters["The cats"]}</sup>The </mark>' in shown
    assert f'<mark class="qa-both"><sup>{letters["cats"]}</sup>cats</mark> beat the dogs.' in shown
    for text, letter in letters.items():
        assert f"{letter}: {text}" in words(shown)


def test_answers_that_are_not_in_the_passage_are_said_to_be_elsewhere(path: Path) -> None:
    pair = Pair.of("Who?", "The cats won.", "", "dogs")
    shown = words(pair_html(RankingSession([pair], path, "ada"), pair))
    assert "(empty) (not in the passage word for word)" in shown
    assert "dogs (not in the passage word for word)" in shown


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4), seed=st.integers(0, 9)
)
def test_any_text_is_shown_as_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int) -> None:
    pair = Pair.of(*texts)
    session = RankingSession([pair], tmp_path_factory.getbasetemp() / "none.sqlite", "<b>", seed)
    shown = RankingWidget(session).to_html().split("</style>")[1]
    assert set(re.findall(r"<(\w+)", shown)) <= {"div", "p", "progress", "mark", "sup"}
    assert pair.question in words(shown)
    assert "by <b>" in words(shown)


def test_a_notebook_keeps_the_static_form_and_no_address(widget: RankingWidget, path: Path) -> None:
    bundle = widget._repr_mimebundle_()
    assert bundle["text/html"] == widget.to_html()
    assert bundle["text/plain"] == "RankingWidget"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "0x" not in bundle["text/html"]
    assert str(path.parent) not in bundle["text/html"]


# ---- passages --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "span", "whole"),
    [
        ("cafe\u0301 x", (0, 4), "cafe\u0301"),
        ("a نَصٌّ b", (2, 5), "نَصٌّ"),
        ("e\u0301a", (1, 3), "e\u0301a"),
        ("👩‍👩‍👧 in", (0, 1), "👩‍👩‍👧"),
        ("👍🏽!", (0, 1), "👍🏽"),
        ("日本語", (1, 2), "本"),
        ("❤\ufe0f x", (0, 1), "❤\ufe0f"),
    ],
)
def test_a_mark_never_cuts_a_character(text: str, span: tuple[int, int], whole: str) -> None:
    start, end = whole_characters(text, *span)
    assert text[start:end] == whole
    assert re.search(r"<mark[^>]*>(.*)</mark>", passage(text, [Mark(*span, "")])).group(1) == whole  # type: ignore[union-attr]


@given(text=st.text(), data=st.data())
def test_marks_change_no_letter_of_a_passage(text: str, data: st.DataObject) -> None:
    marks = []
    for style in (1, 2):
        start = data.draw(st.integers(0, len(text)))
        marks.append(Mark(start, data.draw(st.integers(start, len(text))), "", style))  # type: ignore[arg-type]
    assert words(passage(text, marks)) == text


def test_a_long_passage_is_shown_around_its_marks() -> None:
    text = "x" * 50_000 + "answer" + "y" * 50_000
    shown = passage(text, [Mark(50_000, 50_006, "A")])
    assert len(shown) < 2 * MARGIN + 500
    assert f"[{50_000 - MARGIN:,} characters before are not shown]" in shown
    assert f"[{50_000 - MARGIN:,} characters after are not shown]" in shown
    assert "<sup>A</sup>answer</mark>" in shown
