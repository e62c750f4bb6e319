"""Reports as one HTML file each: tables, bars and pictures, with nothing to load from elsewhere.

The functions here return HTML and escape every text they are given, so what they return can be put together as it is.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NewType

from PIL import Image

from ..data.plain_text import one_line
from .embedding import picture_tag

Html = NewType("Html", str)
"""Text that is escaped already."""
PICTURE_SIDE = 560  # pixels of the longer side
NUMBER = ' class="number"'
SEVERITIES = ("error", "warning", "note")
STYLE = """
:root { color-scheme: light dark; --line: #8886; --error: #d33; --warning: #c80; --note: #58a; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; border-bottom: 1px solid var(--line); }
th { text-align: left; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 18rem; }
td.bar div { height: .8rem; border-radius: .2rem; min-width: 1px; box-shadow: 0 0 0 1px #0002; }
.error { color: var(--error); font-weight: 600; } .warning { color: var(--warning); font-weight: 600; }
.note { color: var(--note); }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; margin-bottom: 1rem; }
figure { margin: 0; flex: 0 1 24rem; } figure img { width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""


class Bar(NamedTuple):
    """One row of a chart: what stands before the bar, its length (0 to 1), and its color, red, green and blue."""

    cells: Sequence[object]
    length: float
    color: tuple[int, int, int]


def write_page(file: Path, title: str, parts: Iterable[Html]) -> None:
    """Write a page; its folder is made if it does not exist."""
    name = escaped(title)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")


def escaped(value: object) -> Html:
    """Any text, on one line, as text and nothing else."""
    return Html(html.escape(one_line(str(value))))


def heading(text: str) -> Html:
    """A section's title."""
    return Html(f"<h2>{escaped(text)}</h2>")


def paragraph(text: str) -> Html:
    """A paragraph of plain text."""
    return Html(f"<p>{escaped(text)}</p>")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table; numbers stand at the right, and a cell that says "error", "warning" or "note" has its color."""
    return _table(header, [[_cell(cell) for cell in row] for row in rows])


def bar_chart(header: Sequence[str], bars: Iterable[Bar]) -> Html:
    """A table with a bar in the last column, which has a title, too."""
    rows = []
    for bar in bars:
        color = "rgb({}, {}, {})".format(*bar.color)
        width = f"{100 * min(max(bar.length, 0.0), 1.0):.1f}%"
        drawn = f'<div style="width: {width}; background: {color}"></div>' if bar.length else ""
        rows.append([*(_cell(cell) for cell in bar.cells), f'<td class="bar">{drawn}</td>'])
    return _table(header, rows)


def gallery(pictures: Iterable[tuple[Image.Image, str]], *, columns: int | None = None) -> Html:
    """Pictures with their captions, inside the page itself; as many in a row as fit, or `columns`."""
    figures = []
    for picture, caption in pictures:
        image = picture_tag(picture, alt="", max_side=PICTURE_SIDE)
        figures.append(f"<figure>{image}<figcaption>{escaped(caption)}</figcaption></figure>")
    grid = "" if columns is None else f' style="display: grid; grid-template-columns: repeat({columns}, max-content)"'
    return Html(f'<div class="gallery"{grid}>' + "\n".join(figures) + "</div>")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of finished cells; titles stand as the cells of the first row do."""
    first = rows[0] if rows else [""] * len(header)
    titles = "".join(
        f"<th{NUMBER if cell.startswith(f'<td{NUMBER}') else ''}>{escaped(title)}</th>"
        for title, cell in zip(header, first, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return Html(f"<table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table>")


def _cell(value: object) -> str:
    text = escaped(value)
    if isinstance(value, (int, float)) or text.endswith("%"):
        return f"<td{NUMBER}>{text}</td>"
    return f'<td class="{text}">{text}</td>' if text in SEVERITIES else f"<td>{text}</td>"
