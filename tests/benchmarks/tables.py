"""What the benchmarks print: a table below a line that says which machine it was measured on."""

from collections.abc import Sequence

from qa_helpers.common.device import describe_machine


def machine_line() -> str:
    """Such as `Intel(R) Xeon(R) Processor, 2 threads, bf16 autocast, torch 2.13.0, transformers 5.23.0`."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers"))
    return f"{machine['device_name']}, {machine['threads']} threads, {machine['precision']}, {versions}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
    """Print rows under a header: the first column to the left, the others to the right, floats to three digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n\n{title}\n{machine_line()}")
    for first, *others in cells:
        padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *padded]).rstrip())


def _cell(value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
