"""The dashboard of notebook 03, with the cells that it needs: every input, by mouse, by dragging and by keyboard."""

import re
from typing import Any

import pytest
from lab import Lab, NotebookPage, put
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELLS = ("first-cell", "cell-14-943670", "cell-dashboard")


def choose(output: Any, label: str, name: str) -> None:
    output.get_by_label(label, exact=True).select_option(label=name)


def test_every_input_changes_what_depends_on_it(lab: Lab, page: Any) -> None:
    notebook = NotebookPage(page, lab, put(lab, "03_scaling_experiments", CELLS))
    notebook.run_all()
    use_every_input(notebook)


def use_every_input(notebook: NotebookPage) -> None:
    output = notebook.output("Dashboard(")
    captions = output.locator("caption")
    expect(captions).to_have_count(3)
    rows = output.locator("table").filter(has=notebook.page.get_by_text("Scores on", exact=False)).locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(output.locator("img")).to_have_attribute("alt", alt_of("class-experiment1-2000-seed0"))
    notebook.shot("dashboard", output, 1000)

    choose(output, "Metric", "F1")
    expect(output).to_contain_text("F1 of the second less the first")
    choose(output, "Questions asked", "first-500")
    expect(captions.first).to_contain_text("Scores on 'first-500'")

    # a drag over the list chooses what it goes over
    listed = output.get_by_label("Runs", exact=True)
    names = listed.locator("option").all_inner_texts()
    listed.scroll_into_view_if_needed()
    listed.evaluate("it => { it.scrollTop = 0; }")
    listed.locator("option").nth(0).hover()
    notebook.page.mouse.down()
    listed.locator("option").nth(2).hover()
    notebook.page.mouse.up()
    expect(rows).to_have_count(3)
    expect(rows.locator("td:first-child")).to_have_text(names[:3])

    compared = output.locator("table").filter(has_text="Who was right")
    wrong = output.locator("table").filter(has_text="wrong answers of")
    expect(compared).to_contain_text(f"first right ({names[0]})")
    expect(wrong.locator("caption")).to_contain_text(f"wrong answers of {names[0]}")

    choose(output, "First run", names[1])
    choose(output, "Second run", names[2])
    expect(compared).to_contain_text(f"first right ({names[1]})")
    expect(compared).to_contain_text(f"second right ({names[2]})")

    choose(output, "Wrong answers of", names[2])
    expect(wrong.locator("caption")).to_contain_text(f"wrong answers of {names[2]}")
    choose(output, "Category", "too long")
    expect(wrong.locator("tbody tr td:last-child").first).to_have_text("too long")
    assert set(wrong.locator("tbody tr td:last-child").all_inner_texts()) == {"too long"}
    choose(output, "Questions asked", "random-500")
    expect(captions.first).to_contain_text("Scores on 'random-500'")
    offered = output.get_by_label("Article", exact=True).locator("option")
    expect(offered).not_to_have_count(2)  # of the first 500 questions there was one article
    choose(output, "Category", "(any)")
    expect(wrong.locator("tbody tr")).to_have_count(30)
    articles = offered.all_inner_texts()
    choose(output, "Article", articles[1])
    expect(wrong.locator("tbody tr td:first-child").first).to_have_text(articles[1])
    assert set(wrong.locator("tbody tr td:first-child").all_inner_texts()) == {articles[1]}

    output.get_by_label("Metric", exact=True).focus()
    notebook.page.keyboard.press("Home")
    expect(output).to_contain_text("string equality of the second less the first")
    listed.focus()
    notebook.page.keyboard.press("End")
    expect(rows.locator("td:first-child")).to_have_text(names[-1:])
    notebook.is_readable_in_both_themes("dashboard-theme", output)


def alt_of(name: str) -> Any:
    """The picture's text for who does not see it names this run, with its loss."""

    return re.compile(rf"{re.escape(name)}: last training loss \d+\.\d\d, EM \d")
