"""What the browser tests share: a server, a browser, and a page that is watched; all are skipped without a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import CHROMIUM, FLAGS, NAMES, Lab, watched_page
from playwright.sync_api import sync_playwright


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here, and say so, where there is no browser."""
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason=f"there is no Chromium: none of {', '.join(NAMES)} is on the PATH")
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(skip)


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with nothing in its folder."""
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(lab: Lab, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh page, watched."""
    with watched_page(lab, chromium, request.node.name) as fresh:
        yield fresh
