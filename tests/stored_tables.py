"""What a notebook has stored of a cell's output, as text; a table as Markdown, whichever form it is kept in."""

import re
from html import unescape
from typing import Any


def shown_text(output: dict[str, Any]) -> str:
    """The text of a stored output, as the notebook's file holds it; empty if it is an image or a widget alone."""
    data = output.get("data", {})
    page = "".join(data.get("text/html", ""))
    if not page.startswith('<table class="tex2jax_ignore'):
        return "".join(output.get("text", data.get("text/markdown", "")))
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>(.*?)</tr>", page)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join("| " + " | ".join(map(unescape, cells)) + " |\n" for cells in rows)
