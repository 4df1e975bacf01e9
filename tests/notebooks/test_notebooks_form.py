"""The form of the stored notebooks: what a reader may rely on, checked without running a cell.

A check takes a notebook as its file holds it and returns what is wrong, one line each. Each check is first
shown to find its fault in a small notebook, then applied to every notebook of the course.
"""

import ast
import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nbformat.validator import iter_validate

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 30  # lines: as much as a screen shows beside its explanation
TABLE = re.compile(r"(plots\.table|Table|scores|compare|pd\.concat)\(")

MACHINE_TRACES = {
    "absolute path": r"""(?:^|[\s'"=(:\[]|file://)/(?:(?:tmp|home|root|usr)\b|[\w.+-]+/[\w.+-]+)|\b[A-Z]:\\+Users""",
    "memory address": r"\b0x[0-9a-fA-F]{6,}\b",
    "ISO timestamp": r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d",
}

Notebook = dict[str, Any]
Check = Callable[[Notebook], Iterator[str]]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each code cell with words to name it by."""
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] == "code":
            yield f"cell {number} ({source(cell).strip().partition(chr(10))[0][:60]!r})", cell


def tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def shown_texts(output: dict[str, Any]) -> Iterator[str]:
    """All that an output holds as text; PNG and JPEG images are left out."""
    if "text" in output:
        yield "".join(output["text"])
    for mime, data in output.get("data", {}).items():
        if mime not in ("image/png", "image/jpeg"):
            yield (data if isinstance(data, str) else "".join(map(str, data if isinstance(data, list) else [data])))


# ---- checks --------------------------------------------------------------------------------------------


def has_stored_runs(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        if cell["execution_count"] is None:
            yield f"{name} has no stored run; run python -m qa_helpers notebooks --refresh"


def has_no_errors_or_warnings(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"{name} stores the error {output['ename']}: {output['evalue']}"
            elif output.get("name") == "stderr":
                yield f"{name} stores text of stderr: {''.join(output['text'])[:200]!r}"


def has_no_machine_traces(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        for text in (text for output in cell["outputs"] for text in shown_texts(output)):
            for what, pattern in MACHINE_TRACES.items():
                if found := re.search(pattern, text, re.MULTILINE):
                    yield f"{name} shows the {what} {text[found.start() : found.end() + 40].strip()!r}"


def has_short_cells(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        if (lines := len(source(cell).splitlines())) > LONGEST_CELL:
            yield f"{name} has {lines} lines, more than {LONGEST_CELL}"


def shows_its_tables(notebook: Notebook) -> Iterator[str]:
    """A table is what Jupyter shows only as a cell's last expression."""
    for name, cell in code_cells(notebook):
        for statement in ast.parse(source(cell)).body[:-1]:
            if isinstance(statement, ast.Expr) and TABLE.match(ast.unparse(statement)):
                yield f"{name} makes a table that is not shown; let it be the cell's last expression"


def has_no_empty_cells(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        if not source(cell).strip():
            yield f"{name} is empty"


def explains_each_cell(notebook: Notebook) -> Iterator[str]:
    before = {id(cell): previous for previous, cell in zip([None, *notebook["cells"]], notebook["cells"], strict=False)}
    for name, cell in code_cells(notebook):
        previous = before[id(cell)]
        explained = previous is not None and previous["cell_type"] == "markdown"
        if not explained and "exercise-solution" not in tags(cell):
            yield f"{name} does not follow a markdown cell that says what to expect"


def says_why_outputs_are_ignored(notebook: Notebook) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        ignored = "nbval-ignore-output" in tags(cell) or "NBVAL_IGNORE_OUTPUT" in source(cell)
        if ignored and not re.search(r"^\s*# not compared: \S", source(cell), re.MULTILINE):
            yield f"{name} ignores its outputs; a comment '# not compared: ...' must say why"


def folds_solutions(notebook: Notebook) -> Iterator[str]:
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    without_code = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)  # a # there is a comment
    for section in re.split(r"^(?=#{1,6} )", without_code, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        is_exercise = heading.startswith("#") and re.search(r"\bexercise\b", heading, re.IGNORECASE)
        if is_exercise and not re.search(r"<details\b.*</details>", body, re.DOTALL):
            yield f"{heading.lstrip('# ')!r} has no <details>solution</details> before the next heading"


def names_the_python3_kernel(notebook: Notebook) -> Iterator[str]:
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"the kernel is {name!r}, not 'python3'"


def has_unique_ids(notebook: Notebook) -> Iterator[str]:
    for cell_id, count in Counter(cell.get("id") for cell in notebook["cells"]).items():
        if count > 1:
            yield f"{count} cells have the id {cell_id!r}"


def says_how_long_it_takes(notebook: Notebook) -> Iterator[str]:
    first = notebook["cells"][0] if notebook["cells"] else {"source": ""}
    if not re.search(r"\bminutes?\b.*\bquick scale\b|\bminutes?\b.*\bCPU cores\b", source(first)):
        yield "its first cell does not say how many minutes it takes on two CPU cores"


def links_to_its_neighbours(notebook: Notebook, before: str | None, after: str | None) -> Iterator[str]:
    """Whether its first and its last cell link to the notebooks before and after it, by their files' names."""
    for place, cell in (("first", notebook["cells"][0]), ("last", notebook["cells"][-1])):
        for neighbour in filter(None, (before, after)):
            if f"]({neighbour})" not in source(cell):
                yield f"its {place} cell does not link to {neighbour}"


def imports_what_the_package_has(notebook: Notebook) -> Iterator[str]:
    """In cells, and in the solutions that stand in Markdown."""
    folded = (
        text for cell in notebook["cells"] for text in re.findall(r"```python\n(.*?)```", source(cell), re.DOTALL)
    )
    for text in [*(source(cell) for _, cell in code_cells(notebook)), *folded]:
        lines = [line for line in text.splitlines() if not line.startswith(("%", "!"))]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qa_helpers":
                for name in (alias.name for alias in node.names):
                    try:
                        exec(f"from {node.module} import {name}", {})
                    except ImportError as error:
                        yield f"from {node.module} import {name}: {error}"


def is_valid(notebook: Notebook) -> Iterator[str]:
    for error in iter_validate(copy.deepcopy(notebook)):
        yield f"not valid: {error.message} at {'/'.join(map(str, error.absolute_path))}"


CHECKS: list[Check] = [
    has_stored_runs,
    has_no_errors_or_warnings,
    has_no_machine_traces,
    has_short_cells,
    shows_its_tables,
    has_no_empty_cells,
    explains_each_cell,
    says_why_outputs_are_ignored,
    folds_solutions,
    names_the_python3_kernel,
    has_unique_ids,
    says_how_long_it_takes,
    imports_what_the_package_has,
    is_valid,
]


# ---- the checks themselves -----------------------------------------------------------------------------


def markdown(text: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": f"md-{abs(hash(text))}", "metadata": {}, "source": text, **more}


def code(text: str, *outputs: dict[str, Any], tagged: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": f"code-{abs(hash(text))}",
        "metadata": {"tags": [tagged]} if tagged else {},
        "source": text,
        "outputs": list(outputs),
        "execution_count": 1,
        **more,
    }


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)}


def shown(**data: Any) -> dict[str, Any]:
    data = {mime.replace("__", "/"): value for mime, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def notebook_of(*cells: dict[str, Any], kernel: str = "python3") -> Notebook:
    kernelspec = {"name": kernel, "display_name": "Python 3"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec}, "cells": list(cells)}


GOOD = notebook_of(
    markdown("# Title\n\nWhat to expect; see https://example.org/home/page. **Two minutes** on two CPU cores."),
    code("print(1)", printed("EM 38.8 / 46.1 and/or data/dev.json, 2016-02-07, https://example.org/a/b/c\n")),
    markdown("## Exercises\n\nTwo of them."),
    markdown("### Exercise 1\n\nDo it.\n\n```python\n# Exercise in a comment\n```"),
    markdown("<details>\n<summary>Solution</summary>\nDone so.\n</details>"),
    code("plot()", shown(image__png="/tmp/AAAA", text__plain="<Figure size 640x480 with 1 Axes>")),
    code("solve()", tagged="exercise-solution"),
    markdown("A time, to be seen."),
    code("# not compared: the time differs in each run\nprint(time())", tagged="nbval-ignore-output"),
)

FAULTS: list[tuple[Check, Notebook]] = [
    (has_stored_runs, notebook_of(code("1", execution_count=None))),
    (has_no_errors_or_warnings, notebook_of(code("1", printed("careful", name="stderr")))),
    (
        has_no_errors_or_warnings,
        notebook_of(code("1", {"output_type": "error", "ename": "E", "evalue": "", "traceback": []})),
    ),
    *(
        (has_no_machine_traces, notebook_of(code("1", output)))
        for output in [
            printed("a\nsaved to /tmp/run\n"),
            printed("PosixPath('/home/ada')"),
            printed("in /usr"),
            printed("File /opt/data/x.json"),
            printed("file:///root/x"),
            printed(r"C:\Users\ada"),
            printed("<Model at 0x7f3a5c0d>"),
            shown(text__html="<td>2024-05-01T12:30:00</td>"),
            shown(**{"application/json": {"path": "/home/ada/x"}}),
        ]
    ),
    (has_short_cells, notebook_of(code("x = 1\n" * (LONGEST_CELL + 1)))),
    *(
        (shows_its_tables, notebook_of(code(f"{table}\nprint(1)", shown(text__html="another"))))
        for table in ("Table(rows, columns=names)", "scores(runs)[names]", "compare(a, b).rename(columns=names)")
    ),
    (has_no_empty_cells, notebook_of(code(" \n"))),
    (explains_each_cell, notebook_of(code("1"))),
    (explains_each_cell, notebook_of(markdown("a"), code("1"), code("2"))),
    (
        says_why_outputs_are_ignored,
        notebook_of(code("1  # not compared: hidden", tagged="nbval-ignore-output")),
    ),
    (says_why_outputs_are_ignored, notebook_of(code("# NBVAL_IGNORE_OUTPUT\n1"))),
    (folds_solutions, notebook_of(markdown("## Exercise 1"), markdown("Do it."))),
    (folds_solutions, notebook_of(markdown("## Exercise 1"), markdown("## B\n<details>x</details>"))),
    (names_the_python3_kernel, notebook_of(kernel="conda-env")),
    (has_unique_ids, notebook_of(code("1", id="same"), code("2", id="same"))),
    (says_how_long_it_takes, notebook_of(markdown("# Title"), markdown("Two minutes on two CPU cores."))),
    (imports_what_the_package_has, notebook_of(code("from qa_helpers import no_such_name"))),
    (imports_what_the_package_has, notebook_of(code("from qa_helpers.records import Run"))),
    (
        imports_what_the_package_has,
        notebook_of(markdown("```python\nfrom qa_helpers.data.squad import no_such_name\n```")),
    ),
    (is_valid, notebook_of(code("1", tagged="nbval-tol:rel=0.1,abs=1"))),
    (is_valid, notebook_of({"cell_type": "code", "source": ""})),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_accepts_a_good_notebook(check: Check) -> None:
    assert list(check(GOOD)) == []


@pytest.mark.parametrize(("check", "notebook"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_check_finds_its_fault(check: Check, notebook: Notebook) -> None:
    assert len(list(check(notebook))) >= 1


def test_every_check_is_shown_to_find_a_fault() -> None:
    assert {check for check, _ in FAULTS} == set(CHECKS)


# ---- the course ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, check: Check) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    problems = [f"{path.name}: {problem}" for problem in check(notebook)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("place", range(len(NOTEBOOKS)), ids=[path.stem for path in NOTEBOOKS])
def test_notebook_links_to_its_neighbours(place: int) -> None:
    before = NOTEBOOKS[place - 1].name if place else None
    after = NOTEBOOKS[place + 1].name if place + 1 < len(NOTEBOOKS) else None
    notebook = json.loads(NOTEBOOKS[place].read_text(encoding="utf-8"))
    assert list(links_to_its_neighbours(notebook, before, after)) == []


def test_a_missing_link_is_found() -> None:
    both = notebook_of(markdown("[← a](a.ipynb) · [c →](c.ipynb)"), markdown("[← a](a.ipynb)"))
    assert list(links_to_its_neighbours(both, "a.ipynb", None)) == []
    assert list(links_to_its_neighbours(both, "a.ipynb", "c.ipynb")) == ["its last cell does not link to c.ipynb"]
