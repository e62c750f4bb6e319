"""Tables in Markdown that a terminal shows well, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..data.plain_text import one_line


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, escape: Callable[[str], str] = one_line
) -> str:
    """Returns a Markdown table: the first column is aligned to the left, the others to the right.

    Examples:
        >>> print(format_table(["class", "PQ"], [["cat", "62.1"], ["sky", "9.0"]]))
        | class |   PQ |
        | :---- | ---: |
        | cat   | 62.1 |
        | sky   |  9.0 |
    """
    lines = [[escape(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def percent(value: float | None) -> str:
    """Returns a fraction in percent with one decimal, and "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"
