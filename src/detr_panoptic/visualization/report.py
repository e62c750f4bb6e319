"""Reports: tables and pictures on one HTML page that a phone shows, too."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.files import write_file
from ..data.plain_text import one_line

if TYPE_CHECKING:
    from PIL import Image

Table = tuple["Sequence[str]", "Sequence[Sequence[str]]"]
"""A header and rows of cells."""

MAX_WIDTH = 1600  # pixels of a picture
QUALITY = 85  # of JPEG


@dataclass
class Section:
    """A part of a report: lines of text, then tables, then pictures with their captions."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, Image.Image]] = field(default_factory=list)


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], *, figures: Sequence[tuple[str, str]] = ()
) -> Path:
    """Writes a page that contains its pictures, so that it can be sent as one file.

    Args:
        path: of the HTML file.
        title: of the page.
        sections: in their order.
        figures: names and values that stand in large letters at the top.

    Returns:
        The file.

    Examples:
        >>> from tempfile import mkdtemp
        >>> path = write_report(mkdtemp() + "/report.html", "A & B", [Section("Numbers", tables=[(["n"], [["1"]])])])
        >>> "A &amp; B" in path.read_text()
        True
    """
    environment = Environment(
        loader=PackageLoader("detr_panoptic", "visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: one_line(value) if isinstance(value, str) and not value.startswith("data:") else value,
    )
    shown = [
        {**vars(section), "pictures": [(caption, _as_address(picture)) for caption, picture in section.pictures]}
        for section in sections
    ]
    text = environment.get_template("report.html").render(title=title, figures=figures, sections=shown)
    write_file(path, text)
    return Path(path)


def _as_address(picture: Image.Image) -> str:
    """Returns the picture as a JPEG in a data URL."""
    small = picture.convert("RGB")
    small.thumbnail((MAX_WIDTH, small.height))
    file = BytesIO()
    small.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
