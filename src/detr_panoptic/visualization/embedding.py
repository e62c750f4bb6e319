"""Pictures and data inside an HTML page, so that it needs no other file."""

import base64
import html
import io
import json
from typing import Any

from PIL import Image

from ..data.plain_text import one_line

JPEG_QUALITY = 82


def picture_tag(picture: Image.Image, *, alt: str, max_side: int) -> str:
    """An `<img>` that holds its picture, made smaller where a side is longer; `alt` is escaped."""
    small = picture.convert("RGB")
    small.thumbnail((max_side, max_side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    source = f'src="data:image/jpeg;base64,{data}"'
    return f'<img {source} width="{small.width}" height="{small.height}" alt="{html.escape(one_line(alt))}">'


def data_tag(data: Any) -> str:
    """A `<script>` element that holds JSON for another script to read; no text in it can close it."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'
