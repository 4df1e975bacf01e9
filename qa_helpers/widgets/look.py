"""What the widgets share: styles that can be read on light and dark pages, marked passages, tables and figures.

All of it is HTML made of plain text that is escaped here. It also says what it has to say without its styles, which
GitHub removes: marks carry a letter or number, bars their value.
"""

import base64
import html
import io
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ipywidgets
from matplotlib.figure import Figure

from qa_helpers.report.plots import BLUE, ORANGE, SKY

# JupyterLab's variables follow its theme. A page without them takes the colours of the fall-back, which name both
# foreground and background.
STYLE = f"""<style>
.qa {{ color: var(--jp-content-font-color1, #1a1a1a); background: var(--jp-layout-color0, #ffffff);
  line-height: 1.5; padding: 4px 8px; max-width: 64em; overflow-x: auto; }}
.qa p {{ margin: 0.5em 0; }}
.qa p.qa-text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.qa .qa-muted {{ color: var(--jp-content-font-color2, #555555); }}
.qa mark {{ color: #000000; padding: 0 2px; overflow-wrap: anywhere; }}
.qa mark sup {{ color: #000000; font-weight: bold; padding-right: 2px; }}
.qa mark.qa-1 {{ background: {ORANGE}; text-decoration: underline solid 2px #000000; }}
.qa mark.qa-2 {{ background: {SKY}; text-decoration: underline dashed 2px #000000; }}
.qa mark.qa-both {{ background: linear-gradient({ORANGE} 50%, {SKY} 50%);
  text-decoration: underline double 2px #000000; }}
.qa table {{ border-collapse: collapse; margin: 0.5em 0; font-size: 0.95em; }}
.qa th, .qa td {{ color: inherit; background: transparent; border: 1px solid var(--jp-border-color1, #bdbdbd);
  padding: 2px 8px; text-align: left; vertical-align: top; overflow-wrap: anywhere; }}
.qa th {{ overflow-wrap: normal; }}
.qa td:not(.qa-number) {{ min-width: 6em; }}
.qa td.qa-number {{ text-align: right; white-space: nowrap; }}
.qa caption {{ text-align: left; font-weight: bold; padding: 2px 0; color: inherit; }}
.qa progress {{ accent-color: {BLUE}; vertical-align: middle; }}
.qa .qa-problem {{ color: #000000; background: #fbe3d6; border-left: 4px solid #D55E00; padding: 4px 8px; }}
.qa img {{ background: #ffffff; max-width: 100%; }}
.qa .qa-columns {{ display: flex; flex-wrap: wrap; gap: 16px; }}
.qa .qa-columns > div {{ flex: 1 1 24em; min-width: 0; }}
.qa .qa-strip {{ line-height: 1.2; }}
.qa .qa-token {{ display: inline-block; vertical-align: top; text-align: center; color: #000000; background: #ffffff;
  border: 1px solid #bdbdbd; margin: 0 1px 3px 0; padding: 0 2px; font-size: 0.85em; max-width: 100%; }}
.qa .qa-token b {{ display: block; min-height: 1.2em; font-weight: normal; font-size: 0.85em; }}
</style>"""


def block(*parts: str) -> str:
    """HTML that stands for itself: the parts with the styles that they need."""
    return f'{STYLE}<div class="qa">{"".join(parts)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is one of the classes of `STYLE`."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def problem(sentence: str) -> str:
    """What went wrong, as a screen reader says it at once. Empty if there is nothing to say."""
    return f'<p class="qa-problem" role="alert">⚠ {html.escape(sentence)}</p>' if sentence else ""


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; floats to one decimal, whole numbers with commas, both to the right."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return (
            f'<td class="qa-number">{value:,.1f}</td>'
            if isinstance(value, float)
            else f'<td class="qa-number">{value:,}</td>'
        )
    return f"<td>{html.escape(str(value))}</td>"


def picture(figure: Figure, alt: str) -> str:
    """A figure as an image within the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


# ---- passages --------------------------------------------------------------------------------------------------
class Mark(NamedTuple):
    """Characters `start` to `end` (exclusive) of a passage, what stands before them, and which of the two styles."""

    start: int
    end: int
    label: str
    style: Literal[1, 2] = 1


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """The span widened so that no character is cut apart: what combines with one, or is joined to it, belongs to it.

    A tokenizer may drop the accent that follows its letter, and so end a span between the two.
    """
    while start > 0 and start < len(text) and _continues(text, start):
        start -= 1
    while end < len(text) and end > start and _continues(text, end):
        end += 1
    return start, end


def _continues(text: str, position: int) -> bool:
    """Whether the character at this place belongs to the one before it: accents, joiners, emoji's modifiers."""
    joiner = "\u200d"
    character = text[position]
    if unicodedata.category(character) in ("Mn", "Mc", "Me") or "\U0001f3fb" <= character <= "\U0001f3ff":
        return True
    return character == joiner or (text[position - 1] == joiner and unicodedata.category(character) == "So")


MARGIN = 1_500  # characters shown before the first and after the last mark of a long passage


def passage(text: str, marks: Sequence[Mark]) -> str:
    """A passage with marks, which may overlap; of a long one the part around them, and what is left out."""
    marks = [Mark(*whole_characters(text, mark.start, mark.end), mark.label, mark.style) for mark in marks]
    low = max(0, min((mark.start for mark in marks), default=0) - MARGIN)
    high = min(len(text), max((mark.end for mark in marks), default=0) + MARGIN)
    edges = sorted({low, high} | {edge for mark in marks for edge in (mark.start, mark.end)})
    parts = []
    for begin, end in itertools.pairwise(edges):
        styles: set[int] = {mark.style for mark in marks if mark.start <= begin and end <= mark.end}
        label = ", ".join(mark.label for mark in marks if mark.label and mark.start == begin)
        parts.append(_segment(text[begin:end], styles, label))
    before = f"[{low:,} characters before are not shown] … " if low else ""
    after = f" … [{len(text) - high:,} characters after are not shown]" if high < len(text) else ""
    return f'<p class="qa-text" dir="auto">{before}{"".join(parts)}{after}</p>'


def _segment(text: str, styles: set[int], label: str) -> str:
    if not styles:
        return html.escape(text)
    kind = "both" if len(styles) > 1 else str(*styles)
    letter = f"<sup>{html.escape(label)}</sup>" if label else ""
    return f'<mark class="qa-{kind}">{letter}{html.escape(text)}</mark>'


# ---- widgets ---------------------------------------------------------------------------------------------------
class Shown:
    """A group of ipywidgets, `box`, and its static form, which a notebook keeps beside it."""

    box: ipywidgets.Box

    def to_html(self) -> str:
        """The static form: what is on show now, without anything to press."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_options: Any) -> Mapping[str, Any]:
        bundle = dict(self.box._repr_mimebundle_())
        # In the place of ipywidgets' own text, which says nothing to a reader.
        return bundle | {"text/html": self.to_html(), "text/plain": type(self).__name__}


def button(text: str, tip: str, wide: bool = False) -> ipywidgets.Button:
    """A button that says what it does; `wide` where its text is long."""
    return ipywidgets.Button(
        description=text, tooltip=tip, layout=ipywidgets.Layout(width="auto" if wide else "8em", min_width="6em")
    )


def labelled(kind: Any, label: str, **options: Any) -> Any:
    """An ipywidgets input with its label in front, never cut."""
    options.setdefault("layout", ipywidgets.Layout(width="100%", max_width="60em"))
    return kind(description=label, style={"description_width": "9em"}, **options)
