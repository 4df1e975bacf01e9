"""What a notebook says for others to use: figures for the closing table, and checks that hold on every machine."""

import math
import numbers
from typing import Any

FIGURES_MIME = "application/vnd.qa-helpers.figures+json"


def check(name: str, value: float, above: float = -math.inf, below: float = math.inf) -> None:
    """Print a line that is the same on every machine, or fail: for what must hold wherever the notebook runs.

    Raises:
        AssertionError: if `value` does not lie strictly between `above` and `below`.
    """
    bounds = [f"above {above:g}"] * (above > -math.inf) + [f"below {below:g}"] * (below < math.inf)
    expected = f"{name} is {' and '.join(bounds)}"
    if not above < value < below:
        raise AssertionError(f"expected: {expected}; it is {value:g}")
    print(f"check: {expected}")


def publish(**figures: float | str) -> None:
    """Show figures below the cell, as `EM 38.8 · F1 46.1`, and hand them to the closing table.

    Raises TypeError for a figure that is neither a number nor a string.
    """
    from IPython.display import display

    plain = {name: _plain_figure(name, value) for name, value in figures.items()}
    display({FIGURES_MIME: plain, "text/plain": format_figures(plain)}, raw=True)


def _plain_figure(name: str, value: object) -> float | str:
    """`value` as JSON can hold it: NumPy numbers as Python's, nan and infinity as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    raise TypeError(f"publish: figure {name!r} is a {type(value).__name__}; give a number or a string.")


def format_figures(figures: dict[str, float | str]) -> str:
    """`figures` in one line; floats always with a decimal point, so that a test tells them from counts."""
    return " · ".join(f"{name} {_format_figure(value)}" for name, value in figures.items())


def _format_figure(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:#.3g}"


def published_figures(notebook: Any) -> dict[str, float | str]:
    """All figures that the outputs of an executed notebook publish, in the order of its cells."""
    figures: dict[str, float | str] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figures.update(output.get("data", {}).get(FIGURES_MIME, {}))
    return figures
