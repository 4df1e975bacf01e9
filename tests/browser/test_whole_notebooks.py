"""Each notebook from its first cell to its last in Chromium, and then its controls: `make test-browser`.

The pictures of each at two widths and in both themes are for a person to look at; what can be measured of the looks is
tested: nothing is wider than the page.
"""

from pathlib import Path
from typing import Any

import pytest
from lab import ROOT, Lab, NotebookPage, put
from playwright.sync_api import expect
from test_browser_dashboard import use_every_input
from test_browser_trainer import use_the_trainer

pytestmark = [pytest.mark.browser, pytest.mark.whole]

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path: Path, lab: Lab, page: Any) -> None:
    notebook = NotebookPage(page, lab, put(lab, path.stem))
    notebook.run_all()
    notebook.shot(f"whole-{path.stem}")
    if path.stem.startswith("02"):
        use_two_models(notebook)
        use_the_trainer(notebook)
    if path.stem.startswith("03"):
        use_every_input(notebook)
    if path.stem.startswith("04"):
        rank_a_pair(notebook)


def use_two_models(notebook: NotebookPage) -> None:
    output = notebook.output("Playground(")
    named = output.locator(".qa-columns > div > p:first-child > b")
    expect(named).to_have_text(["trained", "untrained"])
    output.get_by_label("Question", exact=True).fill("Who wrote it?")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(output.locator(".qa-text").first).to_have_text("Question: Who wrote it?")
    expect(named).to_have_text(["trained", "untrained"])


def rank_a_pair(notebook: NotebookPage) -> None:
    output = notebook.output("RankingWidget(rankings.RankingSession(both[:20]")
    expect(output).to_contain_text("0 of 20 done")
    output.get_by_role("button", name="A is better", exact=True).click()
    expect(output).to_contain_text("1 of 20 done")
    counted = "rankings of yours"
    expect(notebook.output(counted)).to_contain_text(f"0 {counted}")
    notebook.run_cell(counted)
    expect(notebook.output(counted)).to_contain_text(f"1 {counted}")
    notebook.is_readable_in_both_themes("whole-04_ranking", output)
