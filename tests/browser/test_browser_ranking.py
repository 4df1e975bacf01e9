"""The ranking widget in JupyterLab, by mouse and by keyboard alone; what is ranked is in its file."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import Lab, NotebookPage, write
from playwright.sync_api import expect

from qa_helpers.rlhf.ranking_store import read_history, read_rankings
from qa_helpers.widgets.ranking import PAUSE_SECONDS

pytestmark = pytest.mark.browser

SOURCE = """
from qa_helpers.rlhf.ranking_store import Pair, RankingSession
from qa_helpers.widgets.ranking import RankingWidget

context = "The cats beat the dogs in the final."
pairs = [Pair.of(f"Who won game {i}?", context, "The cats", "dogs in the final") for i in range(4)]
RankingWidget(RankingSession(pairs, "FILE", "ada"))
"""


@pytest.fixture
def ranking(lab: Lab, page: Any, request: pytest.FixtureRequest) -> tuple[NotebookPage, Path]:
    """The widget in a notebook of its own, and the file that it writes."""
    name = request.node.name
    cell = nbformat.v4.new_code_cell(SOURCE.strip().replace("FILE", f"{name}.sqlite"))
    opened = NotebookPage(page, lab, write(lab, nbformat.v4.new_notebook(cells=[cell]), f"{name}.ipynb"))
    return opened, lab.notebooks / f"{name}.sqlite"


def pause(page: Any) -> None:
    """As long as a choice is not counted after the one before."""
    page.wait_for_timeout(1_000 * PAUSE_SECONDS + 100)


def test_every_button_by_mouse(ranking: tuple[NotebookPage, Path]) -> None:
    notebook, path = ranking
    notebook.run_all()
    output = notebook.output("RankingWidget")
    expect(output).to_contain_text("0 of 4 done, by ada")
    expect(output.locator("mark")).to_have_count(2)
    notebook.is_readable_in_both_themes("ranking", output)
    for done, name in enumerate(("A is better", "B is better", "Tie", "Skip"), 1):
        output.get_by_role("button", name=name, exact=True).click()
        expect(output).to_contain_text(f"{done} of 4 done")
        pause(notebook.page)
    expect(output).to_contain_text("All pairs are ranked")
    output.get_by_role("button", name="Undo", exact=True).click()
    expect(output).to_contain_text("3 of 4 done")
    expect(output).to_contain_text("Who won game 3?")
    chosen = read_rankings(path)
    assert {chosen[0].choice, chosen[1].choice} <= {"first", "second"}
    assert [one.choice for one in chosen[2:]] == ["tie"]
    assert len(read_history(path)) == 5


def test_without_a_mouse(ranking: tuple[NotebookPage, Path]) -> None:
    notebook, path = ranking
    notebook.run_by_keyboard()
    output = notebook.output("RankingWidget")
    expect(output).to_contain_text("0 of 4 done")
    notebook.tab_to("A is better")
    notebook.page.keyboard.press("Space")
    expect(output).to_contain_text("1 of 4 done")
    pause(notebook.page)
    notebook.tab_to("or type:")
    for done, letter in enumerate("bts", 2):
        notebook.page.keyboard.type(letter)
        expect(output).to_contain_text(f"{done} of 4 done")
        expect(output.get_by_label("or type:")).to_have_value("")
        pause(notebook.page)
    notebook.page.keyboard.type("u")
    expect(output).to_contain_text(re.compile(r"3 of 4 done"))
    pause(notebook.page)
    notebook.page.keyboard.type("x")
    expect(output).to_contain_text("'x' is none of the keys")
    assert [one.choice for one in read_rankings(path)][2:] == ["tie"]
    assert len(read_history(path)) == 5
