"""Notebook 00 from its first cell to its last, and its playground: by mouse, and by keyboard alone."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab, NotebookPage, put, watched_page
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PASSAGE = "Ada keeps bees on the roof. Her brother Tim keeps goats, and sells the cheese on Saturdays."


@pytest.fixture(scope="module")
def notebook(lab: Lab, chromium: Any) -> Iterator[NotebookPage]:
    """Notebook 00, all of whose cells have run."""
    with watched_page(lab, chromium, "00_start_here") as page:
        opened = NotebookPage(page, lab, put(lab, "00_start_here"))
        opened.run_all()
        yield opened


@pytest.fixture
def output(notebook: NotebookPage) -> Any:
    """The playground."""
    return notebook.output("Playground(")


def answers(output: Any) -> Any:
    """Which models have answered what is on show."""
    return output.locator(".qa-columns > div b").filter(has_text=re.compile("^(fine-tuned|untrained)$"))


def test_all_cells_run_and_say_what_they_should(notebook: NotebookPage) -> None:
    expect(notebook.output("EM after:")).to_contain_text(re.compile(r"EM after:\s+\d\d\.\d"))
    expect(notebook.output('check("EM after fine-tuning"')).to_contain_text("check: EM after fine-tuning is above 20")
    expect(notebook.output("highlight(row")).to_contain_text("skeps")
    notebook.shot("playground", notebook.output("Playground("))


def test_an_example_is_picked_and_two_models_are_compared(notebook: NotebookPage, output: Any) -> None:
    example = output.get_by_label("Example", exact=True)
    names = [name.replace("\xa0", " ") for name in example.locator("option").all_inner_texts()]
    example.select_option(label=names[2])
    question = names[2].split(": ", 1)[1]
    expect(output.get_by_label("Question", exact=True)).to_have_value(question)
    expect(output.locator(".qa-text").first).to_have_text(f"Question: {question}")
    expect(answers(output)).to_have_text(["fine-tuned"])

    output.get_by_label("Compare with", exact=True).select_option(label="untrained")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(output)).to_have_text(["fine-tuned", "untrained"])
    for column in output.locator(".qa-columns > div").all():
        marked, passage = column.locator("mark").inner_text(), output.get_by_label("Passage", exact=True).input_value()
        assert marked.removeprefix("answer") in passage
        assert column.locator(".qa-token").count() > 20
        assert column.locator("table tbody tr").count() == 5
    notebook.shot("playground-two-models", output, 1000)

    output.get_by_label("Model", exact=True).select_option(label="untrained")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(output)).to_have_text(["untrained"])
    output.get_by_label("Model", exact=True).select_option(label="fine-tuned")
    output.get_by_label("Compare with", exact=True).select_option(label="(none)")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(output)).to_have_text(["fine-tuned"])


def test_own_text_is_typed_and_answered(output: Any) -> None:
    output.get_by_label("Passage", exact=True).fill(PASSAGE)
    output.get_by_label("Question", exact=True).fill("Who keeps bees?")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(output.locator(".qa-text").first).to_have_text("Question: Who keeps bees?")
    expect(output.get_by_label("Example", exact=True).locator("option:checked")).to_have_text("(your own)")
    assert output.locator("mark").inner_text().removeprefix("answer") in PASSAGE

    output.get_by_label("Question", exact=True).fill("")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(output.get_by_role("alert")).to_have_text("⚠ the question is empty: type or pick one")


def test_it_is_readable_in_both_themes(notebook: NotebookPage, output: Any) -> None:
    output.get_by_label("Question", exact=True).fill("Who keeps bees?")
    output.get_by_label("Compare with", exact=True).select_option(label="untrained")
    output.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(output)).to_have_count(2)
    notebook.is_readable_in_both_themes("playground-theme", output)


def test_without_a_mouse(notebook: NotebookPage, output: Any) -> None:
    keyboard = notebook.page.keyboard
    output.get_by_label("Model", exact=True).focus()  # where the Tab key leads to from the cell above
    notebook.tab_to("Compare with")
    keyboard.press("End")  # JupyterLab keeps the arrow keys to itself
    expect(output.get_by_label("Compare with", exact=True).locator("option:checked")).to_have_text("untrained")
    notebook.tab_to("Example")
    keyboard.press("Home")
    expect(output.get_by_label("Question", exact=True)).not_to_have_value("")
    notebook.tab_to("Passage")
    keyboard.press("Control+A")
    keyboard.type(PASSAGE)
    notebook.tab_to("Question")
    keyboard.press("Control+A")
    keyboard.type("When is the cheese sold?")
    notebook.tab_to("Ask")
    keyboard.press("Space")
    expect(output.locator(".qa-text").first).to_have_text("Question: When is the cheese sold?")
    expect(answers(output)).to_have_text(["fine-tuned", "untrained"])
