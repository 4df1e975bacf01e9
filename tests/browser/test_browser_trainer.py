"""The trainer of notebook 02: every setting, Start, Stop within two seconds, and going on from what was kept."""

import re
import time
from typing import Any

import pytest
from lab import CELLS_MS, Lab, NotebookPage, put
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STOP_SECONDS = 2
STEPS = 13  # of an epoch of 100 questions, eight a batch


def test_settings_start_stop_and_going_on(lab: Lab, page: Any) -> None:
    notebook = NotebookPage(page, lab, put(lab, "02_class_baseline", ("first-cell", "cell-trainer")))
    notebook.run_all()
    use_the_trainer(notebook)


def use_the_trainer(notebook: NotebookPage) -> None:
    output = notebook.output("TrainerPanel(")
    status = output.get_by_role("status")
    start, stop = (output.get_by_role("button", name=name, exact=True) for name in ("Start", "Stop"))
    rate = output.get_by_label("Learning rate", exact=True)
    expect(status).to_have_text("not started")
    stop.click()
    expect(output.get_by_role("alert")).to_contain_text("there is nothing to stop")

    output.get_by_label("What is trained", exact=True).select_option(label="LoRA")
    expect(rate).to_have_value("0.002")
    output.get_by_label("What is trained", exact=True).select_option(label="all weights")
    expect(rate).to_have_value("0.0002")
    rate.fill("7")
    rate.press("Enter")
    start.click()
    expect(output.get_by_role("alert")).to_contain_text("a learning rate lies between 0 and 1")
    rate.fill("0.0003")
    rate.press("Enter")
    output.get_by_label("Questions", exact=True).select_option(label="200")
    output.get_by_label("Questions", exact=True).select_option(label="100")
    epochs = output.get_by_label("Epochs", exact=True)
    epochs.fill("2")
    epochs.press("Enter")

    start.click()
    expect(status).to_have_text(re.compile(step_after(STEPS)), timeout=CELLS_MS)  # so that one epoch is whole
    notebook.shot("trainer", output)
    begin = time.monotonic()
    stop.click()
    expect(status).to_have_text("stopped; epoch 1 of 2 is kept: Start goes on from there")
    assert time.monotonic() - begin < STOP_SECONDS

    start.click()
    first = re.compile(r"training: step (\d+) of 26")
    expect(status).to_have_text(first, timeout=CELLS_MS)
    found = first.search(status.inner_text())
    assert found is None or int(found.group(1)) >= STEPS, "it began anew"
    expect(status).to_have_text(
        re.compile(r"finished: panel-quick-100-2ep-all-lr0\.0003-seed0: EM \d"), timeout=CELLS_MS
    )
    notebook.is_readable_in_both_themes("trainer-theme", output)


def step_after(steps: int) -> str:
    """A pattern of the steps after this one, of two epochs as long."""
    return rf"training: step ({'|'.join(map(str, range(steps + 1, 2 * steps)))}) of {2 * steps}"
