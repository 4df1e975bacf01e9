"""A real JupyterLab, driven in Debian's Chromium.

What proved stable: wait for "| Idle" in the status bar before anything is run (the notebook's own idle indicator is
true before the kernel exists, and what is run then is lost); wait for states of the page, never for a time.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import expect

from qa_helpers.course.notebooks import forget_outputs, normalise, notebook_environment, read_notebook

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "browser"
TOKEN = "only-here"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--no-sandbox",  # which a container's root cannot use
    "--disable-dev-shm-usage",  # small in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # the browser's own calls home
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 180  # of the server, on a machine that is busy
PATIENCE_MS = 120_000  # for one thing to appear
expect.set_options(timeout=PATIENCE_MS)
MOST_TABS = 200  # from one control to another, through all that JupyterLab has
# the label or text of what has the focus
FOCUSED = """() => {
    const it = document.activeElement;
    return ((it.labels && it.labels.length ? it.labels[0] : it).textContent || "").trim();
}"""
# Every text in a part of the page that can be seen, with the contrast between it and what is behind it (WCAG 2.2).
CONTRASTS = """(part) => {
    const numbers = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
    const mix = (over, under) => over.slice(0, 3).map((it, i) => it * over[3] + under[i] * (1 - over[3]));
    const behind = (element) => {
        const style = getComputedStyle(element), colour = numbers(style.backgroundColor);
        if (style.backgroundImage !== "none") return null;
        if (colour[3] === 1 || !element.parentElement) return colour.slice(0, 3);
        const under = behind(element.parentElement);
        return under && mix(colour, under);
    };
    const linear = (it) => it <= 10.31475 ? it / 3294.6 : ((it / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const found = [], walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
        if (!text || !element.getClientRects().length || ["STYLE", "OPTION"].includes(element.tagName)) continue;
        const under = behind(element);
        if (!under) continue;  // a pattern: looked at on the pictures
        const pair = [light(mix(numbers(getComputedStyle(element).color), under)), light(under)];
        found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), text]);
    }
    return found;
}"""
READABLE = 4.5  # times as light as what is behind it, or as dark: WCAG 2.2, level AA
THEMES = ("JupyterLab Dark", "JupyterLab Light")  # the last one is the one that the other tests see
CELLS_MS = 1_800_000  # for a notebook to run to its end


class Lab:
    """A JupyterLab server in a folder of its own, with copies of the notebooks, and its runs in another."""

    def __init__(self, home: Path) -> None:
        self.home, self.notebooks = home, home / "notebooks"
        self.notebooks.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.base = f"http://127.0.0.1:{free.getsockname()[1]}"
        news = home / "settings/@jupyterlab/apputils-extension"
        news.mkdir(parents=True)
        (news / "notification.jupyterlab-settings").write_text('{"fetchNews":"false","checkForUpdates":false}')
        cells = home / "settings/@jupyterlab/notebook-extension"
        cells.mkdir(parents=True)  # all cells are in the page, also those that are off the screen
        (cells / "tracker.jupyterlab-settings").write_text('{"windowingMode":"none"}')
        if finished := os.environ.get("QA_BROWSER_RUNS"):  # runs that notebooks need not train again
            shutil.copytree(finished, home / "runs")
        environment = notebook_environment("quick", home / "runs") | {
            "TQDM_DISABLE": "0",  # as a reader has it: progress bars are widgets, too
            "JUPYTER_CONFIG_DIR": f"{home}/config",
            "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings",
            "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces",
            "JUPYTER_RUNTIME_DIR": f"{home}/runtime",
            "IPYTHONDIR": f"{home}/ipython",
        }
        self.log = home / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
                    *(f"--port={self.base.rsplit(':')[-1]}", "--ServerApp.port_retries=0"),
                    *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.notebooks}"),
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until the server answers."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.base}/api?token={TOKEN}", timeout=5).close()
            except OSError:
                time.sleep(0.25)
            else:
                return
        raise RuntimeError(f"JupyterLab did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """End the server; its kernels end with it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class NotebookPage:
    """A notebook in JupyterLab, in a browser's page: its cells, and what is in their outputs."""

    def __init__(self, page: Any, lab: Lab, name: str) -> None:
        """Open it and wait for its kernel."""
        self.page, self.name = page, name
        page.goto(f"{lab.base}/lab/tree/{name}?token={TOKEN}&reset")
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=PATIENCE_MS)
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.cells = self.panel.locator(".jp-CodeCell")

    def run_all(self) -> None:
        """Run all cells, and wait for the last one."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        last = self.cells.last.locator(".jp-InputPrompt")
        expect(last).to_have_text(re.compile(r"\[\d+\]:"), timeout=CELLS_MS)
        self.has_no_error()

    def run_by_keyboard(self) -> None:
        """Run the first cell without a mouse; it then has the focus."""
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+Enter")
        prompt = self.cells.first.locator(".jp-InputPrompt")
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=PATIENCE_MS)

    def tab_to(self, name: str) -> None:
        """Press Tab until a control with this label, or text, has the focus."""
        for _ in range(MOST_TABS):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(FOCUSED) == name:
                return
        raise AssertionError(f"{MOST_TABS} times Tab did not lead to {name!r}")

    def run_cell(self, source: str) -> None:
        """Run the one code cell whose source holds a text once more, and wait for it."""
        cell = self.cells.filter(has_text=source).last
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before)
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"))

    def is_readable_in_both_themes(self, name: str, part: Any) -> None:
        """All of our text in a part of the page stands out from what is behind it; a picture of each theme is kept."""
        for theme in THEMES:
            self.page.get_by_role("menuitem", name="Settings", exact=True).click()
            for entry in ("Theme", theme):  # by text: JupyterLab's submenus have a role without a name
                self.page.locator(".lm-Menu-itemLabel").filter(has_text=re.compile(f"^{entry}$")).click()
            expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", theme)
            self.shot(f"{name}-{theme.split()[-1].lower()}", part)
            found = [one for block in part.locator(".qa").all() for one in block.evaluate(CONTRASTS)]
            assert found
            assert [one for one in found if one[0] < READABLE] == []

    def has_no_error(self) -> None:
        """No cell shows an exception."""
        errors = self.panel.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']")
        assert [text for text in errors.all_inner_texts() if "Error" in text] == []

    def output(self, source: str) -> Any:
        """The output of the one code cell whose source holds a text."""
        return self.cells.filter(has_text=source).last.locator(".jp-Cell-outputArea")

    def shot(self, name: str, part: Any = None, height: int = 640) -> None:
        """Keep a picture of the page, or of the upper end of a part of it."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        area = None
        if part is not None:
            part.evaluate("it => it.scrollIntoView({block: 'start'})")
            area = part.bounding_box()
            area["height"] = min(area["height"], height)
        self.page.screenshot(path=SHOTS / f"{name}.png", clip=area)


@contextmanager
def watched_page(lab: Lab, chromium: Any, name: str) -> Iterator[Any]:
    """A fresh page; at the end, no request has left this machine and the console has shown no error."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1400})
    outside: list[str] = []
    wrong: list[str] = []
    ours = (lab.base, lab.base.replace("http", "ws"), "data:", "blob:")
    context.on("request", lambda request: None if request.url.startswith(ours) else outside.append(request.url))
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("websocket", lambda socket: None if socket.url.startswith(ours) else outside.append(socket.url))
    page.on("console", lambda said: wrong.append(f"{said.text} {said.location}") if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    try:
        yield page
    finally:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}-end.png")  # also of a test that failed
        context.close()
    assert outside == []
    assert wrong == []


# ---- notebooks ---------------------------------------------------------------------------------------------------
def put(lab: Lab, name: str, ids: Sequence[str] = ()) -> str:
    """Copy a notebook of the course, without its outputs, into the server's folder; of it these code cells, or all."""
    notebook = read_notebook(ROOT / "notebooks" / f"{name}.ipynb")
    forget_outputs(notebook)
    if ids:
        notebook.cells = [cell for cell in notebook.cells if cell.id in ids]
        assert [cell.id for cell in notebook.cells] == list(ids)
    return write(lab, notebook, f"{name}{'-part' if ids else ''}.ipynb")


def write(lab: Lab, notebook: Any, name: str) -> str:
    """Write a notebook into the server's folder; its name there."""
    normalise(notebook)  # it names its kernel, so that JupyterLab does not ask
    (lab.notebooks / name).write_text(nbformat.writes(notebook), encoding="utf-8")
    return name
