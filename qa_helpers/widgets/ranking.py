"""The ranking widget: two answers in their passage; which one is better?"""

import html
import time
from collections.abc import Callable
from typing import Any, Literal

import ipywidgets

from qa_helpers.rlhf.ranking_store import Pair, RankingError, RankingSession
from qa_helpers.widgets.look import Mark, Shown, block, button, paragraph, passage, problem

# Nobody reads a pair in half a second: what comes so soon after another click was meant for the pair before.
PAUSE_SECONDS = 0.5
KEYS = {"a": "A", "b": "B", "t": "tie", "s": "skip", "u": "undo"}


def pair_html(session: RankingSession, pair: Pair) -> str:
    """A pair as its user sees it: the question, the passage with both answers marked, and the answers."""
    marks, lines, starts = [], [], session.starts(pair)
    styles: tuple[Literal[1, 2], Literal[1, 2]] = (1, 2)
    for (letter, text), style in zip(session.shown(pair).items(), styles, strict=True):
        if letter in starts:
            marks.append(Mark(starts[letter], starts[letter] + len(text), letter, style))
        where = "" if letter in starts else " (not in the passage word for word)"
        lines.append(paragraph(f"{letter}: {text or '(empty)'}{where}", "qa-text"))
    return "".join([paragraph(f"Question: {pair.question}", "qa-text"), passage(pair.context, marks), *lines])


def progress_html(session: RankingSession) -> str:
    """How many pairs are done, in words and as a bar."""
    done, total = len(session.chosen), len(session.pairs)
    words = f"{done} of {total} done, by {html.escape(session.user)}"
    return f'<p><progress max="{max(total, 1)}" value="{done}"></progress> {words}</p>'


class RankingWidget(Shown):
    """Buttons under a pair of answers: A, B, tie, skip, undo. A letter typed into the field below does the same.

    Every choice is in the session's file before the next pair is shown.
    """

    def __init__(self, session: RankingSession, clock: Callable[[], float] = time.monotonic) -> None:
        """Show the session's current pair; `clock` gives seconds."""
        self.session, self._clock, self._last_click = session, clock, float("-inf")
        self.pair, self.message = ipywidgets.HTML(), ipywidgets.HTML()
        tips = {
            "A": ("A is better", "A is the better answer (key a)"),
            "B": ("B is better", "B is the better answer (key b)"),
            "tie": ("Tie", "both are equally good (key t)"),
            "skip": ("Skip", "do not rank this pair (key s)"),
            "undo": ("Undo", "take back the last choice (key u)"),
        }
        self.buttons = {name: button(*words) for name, words in tips.items()}
        for name, control in self.buttons.items():
            control.on_click(lambda _, name=name: self._act(name))
        self.key = ipywidgets.Text(
            description="or type:", placeholder="a, b, t, s or u", layout=ipywidgets.Layout(width="16em")
        )
        self.key.observe(self._typed, "value")
        row = ipywidgets.HBox([*self.buttons.values(), self.key], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.box = ipywidgets.VBox([self.pair, row, self.message])
        self._show("")

    def to_html(self) -> str:
        """The pair on show, and how far the user has come."""
        return str(self.pair.value)

    def _typed(self, change: Any) -> None:
        letter = change["new"].strip()[-1:].lower()
        if change["new"]:
            self.key.value = ""
        if letter in KEYS:
            self._act(KEYS[letter])
        elif letter:
            self._show(f"'{letter}' is none of the keys a, b, t, s and u")

    def _act(self, name: str) -> None:
        now = self._clock()
        too_soon = now - self._last_click < PAUSE_SECONDS
        said = "that came within half a second of the last one, so it was not counted" if too_soon else self._do(name)
        self._last_click = self._clock()  # after the work: clicks made meanwhile were not meant for the next pair
        self._show(said)

    def _do(self, name: str) -> str:
        """Choose or undo; what went wrong, in a sentence."""
        pair = self.session.current
        try:
            if name == "undo":
                return "" if self.session.undo() else "there is no choice to take back"
            if pair is None:
                return "all pairs are ranked"
            button: Literal["A", "B", "tie", "skip"] = name  # type: ignore[assignment]
            self.session.choose(pair, button)
        except RankingError as error:
            return str(error)
        return ""

    def _show(self, said: str) -> None:
        pair = self.session.current
        words = paragraph("All pairs are ranked. Thank you!") if pair is None else pair_html(self.session, pair)
        self.pair.value = block(progress_html(self.session), words)
        self.message.value = block(problem(said)) if said else ""
