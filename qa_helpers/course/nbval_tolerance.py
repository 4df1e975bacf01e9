"""pytest plugin beside nbval: compares a notebook's numbers within a tolerance, and stops where it breaks.

nbval collects the cells, and compares and reports their outputs; this plugin executes them through
`notebooks.notebook_kernel`, the way in which their outputs were stored, and adds:

- the cell tag `nbval-tol:rel=0.05;abs=0.01`: floats in that cell's outputs may differ from the stored ones by
  abs + rel x |stored|. Integers and all other text stay exact. Cells without the tag are compared exactly.
  A comma may stand for the semicolon, but the notebook format forbids commas in tags: a refresh replaces it.
- after an exception, a timeout or the death of the kernel, the notebook's later cells are skipped.
- a cell without a stored run fails (nbval compares it with nothing and lets it pass).
- neither stderr nor images are compared, nor those within HTML, as a widget's static form holds them.

What it simplifies: a float is a number with digits on both sides of a point, or with an exponent (`12.5`,
`1e-05`), or nan or inf. `12.` is an integer at the end of a sentence, `1,234.5` the integer 1 and the float
234.5, and `2.5x` or `1.2.3` are text: print numbers with a fixed number of decimals. In a tagged cell the
padding around words and numbers and the length of dashed rules are not compared, for they follow the
width of the numbers. A display that a later cell updates is compared as its own cell left it. nbval's options
for kernels and coverage have no effect: the kernel is the Python that runs pytest.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbval.plugin import IPyNbCell, IPyNbFile, coalesce_streams, metadata_tags

from qa_helpers.course.notebooks import TOLERANCE_TAG as TAG
from qa_helpers.course.notebooks import describe_failure, notebook_kernel

EXAMPLE = "nbval-tol:rel=0.05;abs=0.01"

# A sign belongs to the number unless a word or number precedes it, as in a range 0.1-0.2.
FLOAT = re.compile(
    r"""(?<![\w.]) [-+−]?
        (?: \d+\.\d+ (?:[eE][-+]?\d+)?          # 12.5, 1.25e-05
          | \d+ [eE][-+]\d+                     # 1e-05, but not the hash 53e4
          | (?i:nan|inf) )
        (?! \w | \.\w )                         # not the beginning of 1.2.3 or 2.5x
    """,
    re.VERBOSE,
)
RULE = re.compile(r"([-=_─━═])\1{2,}")
EMBEDDED_IMAGE = re.compile(r"(data:image/(?:png|jpeg);base64,)[A-Za-z0-9+/=]+")
LABEL = re.compile(r"([^\W\d_][\w /-]*?)[\s:=]*$")


# ---- the tag -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far a float may be from its stored value: abs + rel x |stored|."""

    rel: float = 0.0
    abs: float = 0.0

    def allowed(self, stored: float) -> float:
        """The greatest difference from `stored` that is accepted."""
        return self.abs + self.rel * math.fabs(stored)

    def accepts(self, stored: float, new: float) -> bool:
        """Whether `new` may stand for `stored`; nan only stands for nan."""
        if not (math.isfinite(stored) and math.isfinite(new)):
            return math.isnan(stored) and math.isnan(new)
        # The factor accepts a difference of exactly the tolerance: 0.4 - 0.1 is a little over 0.3.
        return math.fabs(stored - new) <= self.allowed(stored) * (1 + 1e-9)


def parse_tolerance(tags: Sequence[str]) -> Tolerance | None:
    """The tolerance that a cell's tags give, or None. Raises ValueError for a tag that cannot be meant so."""
    tolerances = [_parse_tag(tag) for tag in tags if tag.startswith(TAG)]
    for tag in tags:
        if tag.startswith("nbval-") and not tag.startswith(TAG) and tag not in metadata_tags:
            raise ValueError(f"the tag {tag!r} is unknown; use one of {', '.join(sorted(metadata_tags))}.")
    if len(tolerances) > 1:
        raise ValueError(f"there are {len(tolerances)} {TAG} tags; write one, like {EXAMPLE}.")
    return tolerances[0] if tolerances else None


def _parse_tag(tag: str) -> Tolerance:
    values: dict[str, float] = {}
    for part in re.split("[;,]", tag.removeprefix(TAG).removeprefix(":")):
        key, _, text = (piece.strip() for piece in part.partition("="))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if key not in ("rel", "abs"):
            problem = f"has the unknown key {key!r}"
        elif key in values:
            problem = f"gives {key} twice"
        elif not text:
            problem = f"has no value for {key}"
        elif not (math.isfinite(value) and value >= 0):
            problem = f"gives {key} as {text!r}, which is not a number of zero or more"
        else:
            values[key] = value
            continue
        raise ValueError(f"the tag {tag!r} {problem}; write it like {EXAMPLE}.")
    return Tolerance(**values)


# ---- comparison ----------------------------------------------------------------------------------------


def snap(stored: Any, new: Any, tolerance: Tolerance, misses: list[str] | None = None, label: str = "") -> Any:
    """`new`, with each float that is within tolerance of its stored partner replaced by that partner.

    Takes texts, numbers, and dicts and lists of them; the result equals `stored` exactly if the comparison
    passes. A line to read about each float outside the tolerance is added to `misses`.
    """
    misses = [] if misses is None else misses
    if isinstance(stored, str) and isinstance(new, str):
        lines = stored.split("\n"), new.split("\n")
        if len(lines[0]) != len(lines[1]):
            return new
        return "\n".join(_snap_line(old, line, tolerance, misses) for old, line in zip(*lines, strict=True))
    if isinstance(stored, dict) and isinstance(new, dict):
        return {
            key: snap(stored[key], value, tolerance, misses, str(key)) if key in stored else value
            for key, value in new.items()
        }
    if isinstance(stored, list) and isinstance(new, list) and len(stored) == len(new):
        return [snap(old, value, tolerance, misses, label) for old, value in zip(stored, new, strict=True)]
    # A notebook saved in a browser holds 38.0 as 38: the kernel's own value tells whether it is a float.
    if isinstance(new, float) and type(stored) in (int, float):
        return stored if _snap_float(str(stored), str(new), tolerance, misses, label) == str(stored) else new
    return new


def _snap_line(stored: str, new: str, tolerance: Tolerance, misses: list[str]) -> str:
    words, floats = FLOAT.split(new), FLOAT.findall(stored)
    if [_without_padding(text) for text in words] != [_without_padding(text) for text in FLOAT.split(stored)]:
        return new
    snapped = [
        _snap_float(old, number, tolerance, misses, _label(before))
        for old, number, before in zip(floats, FLOAT.findall(new), words, strict=False)  # words also follow the last
    ]
    if snapped == floats:
        return stored
    return words[0] + "".join(number + after for number, after in zip(snapped, words[1:], strict=True))


def _snap_float(stored: str, new: str, tolerance: Tolerance, misses: list[str], label: str) -> str:
    before, now = (float(text.replace("−", "-")) for text in (stored, new))  # the minus sign of typesetting
    if stored == new or tolerance.accepts(before, now):
        return stored
    misses.append(f"{label and label + ': '}stored {stored}, now {new}, allowed ±{tolerance.allowed(before):.3g}")
    return new


def _label(before: str) -> str:
    """What the text before a number calls it; in HTML, a tag's name is no label."""
    label = LABEL.search(before) if "<" not in before else None
    return label[1] if label else ""


def _without_padding(text: str) -> str:
    """`text` with what depends on the width of the numbers around it reduced to one form."""
    return RULE.sub(r"\1\1\1", " ".join(text.split()))


def _snap_output(stored: Any, new: Any, tolerance: Tolerance, misses: list[str]) -> Any:
    """A copy of the notebook output `new` with what it shows snapped to the output `stored`."""
    snapped = copy.copy(new)
    for key in ("text", "data"):
        if key in stored and key in new:
            snapped[key] = snap(stored[key], new[key], tolerance, misses)
    return snapped


def _without_images(output: Any) -> Any:
    """A copy of a notebook output without the bytes of images in its HTML: they depend on the compressor's version."""
    shown = output.get("data", {}).get("text/html")
    if not isinstance(shown, str):
        return output
    bare = copy.copy(output)
    bare["data"] = output["data"] | {"text/html": EMBEDDED_IMAGE.sub(r"\1", shown)}
    return bare


# ---- nbval's notebooks and cells -----------------------------------------------------------------------


class CourseNotebook(IPyNbFile):
    """A notebook whose cells run as `python -m qa_helpers notebooks` runs them."""

    stopped_by: str | None = None  # the cell after which no other can run

    def collect(self) -> Iterator[CourseCell]:
        """nbval's cells, each with its tolerance; a bad tag is a collection error."""
        self.skip_compare += ("image/svg+xml",)  # vector images; nbval itself leaves out PNG and JPEG
        for cell in super().collect():
            try:
                tolerance = parse_tolerance(cell.cell.metadata.get("tags", []))
            except ValueError as error:
                raise self.CollectError(f"{self.nodeid}, {cell.name}: {error}") from None
            options = cell.options | {"tolerance": tolerance}
            yield CourseCell.from_parent(self, name=cell.name, cell_num=cell.cell_num, cell=cell.cell, options=options)

    def setup(self) -> None:
        """Start the kernel, on a copy of the notebook, so that the stored outputs stay as they are."""
        self.setup_sanitize_files()
        self.timeout = self.config.option.nbval_cell_timeout
        fresh = copy.deepcopy(self.nb)
        self.code_cells = [(index, cell) for index, cell in enumerate(fresh.cells) if cell.cell_type == "code"]
        opened = ExitStack()
        self.addfinalizer(opened.close)  # stops the kernel and removes its folder of runs
        self.client = opened.enter_context(notebook_kernel(fresh, self.path.parent, timeout=self.timeout))


class CourseCell(IPyNbCell):
    """A code cell, executed and compared with its stored outputs."""

    comparison_traceback: list[str]  # what differs, one part a line; nbval sets it in each comparison

    def setup(self) -> None:
        """Skip the cell if an earlier one broke off: what it needs is not there."""
        if self.parent.stopped_by:
            pytest.skip(f"not run: {self.parent.nodeid} stopped at {self.parent.stopped_by}")

    def runtest(self) -> None:
        """Execute the cell and compare its outputs; nbval shows the exception raised here."""
        if self.options["skip"]:
            pytest.skip("tagged nbval-skip")
        self.test_outputs = coalesce_streams(self.execute())
        if self.cell.source.strip() and self.cell.execution_count is None:
            self.raise_cell_error(
                "The notebook holds no run of this cell to compare with; "
                f"run `python -m qa_helpers notebooks --refresh {self.parent.nodeid}`."
            )
        if self.options["check"] and not self.compare_outputs(self.test_outputs, coalesce_streams(self.cell.outputs)):
            self.raise_cell_error("Cell outputs differ", "\n".join(self.comparison_traceback))

    def execute(self) -> list[Any]:
        """Run the cell in the notebook's kernel and return its outputs.

        Raises nbval's NbCellError if it does not run to its end; the later cells are then skipped.
        """
        notebook = self.parent
        index, cell = notebook.code_cells[self.cell_num]
        notebook.client.allow_errors = self.options["check_exception"]
        try:
            notebook.client.execute_cell(cell, index)
        except CellExecutionError:
            notebook.stopped_by = self.name
            traceback = [line for output in cell.outputs for line in output.get("traceback", [])]
            self.raise_cell_error("Cell execution caused an exception", "\n".join(traceback))
        except (CellTimeoutError, DeadKernelError) as error:
            notebook.stopped_by = self.name
            self.raise_cell_error(describe_failure(error, notebook.timeout))
        return list(cell.outputs)

    def compare_outputs(self, test: list[Any], ref: list[Any], skip_compare: Any = None) -> bool:
        """nbval's comparison after snapping floats within tolerance; the others are listed first."""
        test, ref = (
            [_without_images(output) for output in outputs if output.get("name") != "stderr"] for outputs in (test, ref)
        )
        misses: list[str] = []
        tolerance = self.options["tolerance"]
        if tolerance and len(test) == len(ref):
            test = [_snap_output(old, new, tolerance, misses) for old, new in zip(ref, test, strict=True)]
        same: bool = super().compare_outputs(test, ref, skip_compare)
        # A table comes as text and as HTML: each number once. nbval may add values that are no text.
        self.comparison_traceback = [*dict.fromkeys(misses), *map(str, self.comparison_traceback)]
        return same


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Any:
    """Put a CourseNotebook in the place of each notebook that nbval collects."""
    collected = yield
    return [
        CourseNotebook.from_parent(node.parent, path=node.path) if isinstance(node, IPyNbFile) else node
        for node in collected
    ]
