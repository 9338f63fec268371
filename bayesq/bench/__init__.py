"""The benchmarks, one module each: it measures on a folder of pictures, prints tables and writes JSON."""

from pathlib import Path

from bayesq.errors import ImageError
from bayesq.io import SUFFIXES


def pictures(folder: str | Path, limit: int | None = None) -> list[Path]:
    """The picture files directly in ``folder`` by name, at most ``limit`` of them.

    Raises:
        ImageError: there is none.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ImageError(f"{folder}: no pictures here")
    return paths[:limit]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right, padded to read as plain text."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *others]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])
