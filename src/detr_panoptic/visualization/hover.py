"""A segmentation on an HTML page: point at a segment, or go through the list with the keyboard, to see what it is.

What is returned needs no other file, and without scripts it is still the picture and the list.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ..segment_ids import VOID_ID
from .colors import segment_colors
from .embedding import data_tag, picture_tag
from .labels import class_name, label_text
from .overlays import draw_segments, index_map
from .report import Html, escaped

MAX_SIDE = 1600  # pixels; larger photographs are made smaller
SCRIPT = Path(__file__).with_name("hover.js")
START = """
{
  const root = document.currentScript.closest(".segments");
  connectSegments(root, JSON.parse(root.querySelector("script[type='application/json']").textContent));
}
"""
STYLE = """
.segments { display: flex; flex-wrap: wrap; gap: 1rem; align-items: start; }
.segments > * { flex: 1 1 100%; min-width: 0; }
/* The list stands beside the picture if both have room, else beneath it. */
.segments > .figure { flex: 3 1 20rem; } .segments > .list { flex: 1 1 15rem; }
.segments .view { position: relative; line-height: 0; cursor: crosshair; touch-action: manipulation; }
.segments .view > * { position: absolute; inset: 0; width: 100%; height: 100%; }
.segments .view > :first-child { position: static; height: auto; }
.segments .view > .tip { inset: auto; width: auto; height: auto; line-height: 1.3; padding: .25rem .5rem;
  border-radius: .3rem; background: #101216e6; color: #fff; font-size: .9rem; pointer-events: none;
  max-width: 100%; overflow-wrap: anywhere; }
.segments .view > .tip[hidden] { display: none; }
.segments:has(input:not(:checked)) .colors { visibility: hidden; }
.segments .list { max-height: 80vh; overflow: auto; }
.segments table { width: 100%; } .segments tr.shown { background: #8883; }
.segments button { all: unset; cursor: pointer; overflow-wrap: break-word; }
.segments td, .segments th { padding: .2rem .4rem; } .segments td:first-child { width: 100%; }
.segments button:focus-visible { outline: 2px solid #37f; outline-offset: 3px; border-radius: .2rem; }
.segments button[aria-pressed="true"] { font-weight: 600; }
.segments .swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: .2em;
  border: 1px solid #8888; vertical-align: -.05em; }
@media (max-width: 45rem) { .segments .list { max-height: none; } }
"""


class HoverParts(NamedTuple):
    """What a figure is made of.

    Args:
        markup: pictures and list, for the inside of an element of class "segments".
        data: what the script's `connectSegments(root, data)` takes, ready for JSON.
        order: the place of each segment in the list, as its index in `segments_info`, void left out.
    """

    markup: Html
    data: dict[str, Any]
    order: list[int]


def hover_figure(
    image: Image.Image,
    segmentation: ArrayLike,
    segments_info: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
    *,
    links: Mapping[int, str] | None = None,
) -> Html:
    """The overlay, a list of its segments, and what connects both.

    Args:
        image: photograph; any mode.
        segmentation: (H, W) integers of the image's size, on the CPU; 0 is void.
        segments_info: as `draw_segments` takes them.
        id2label: name of each label id.
        links: for segments with something more to see, by id: an address, such as "#segment-3".
    """
    markup, data, _ = hover_parts(image, segmentation, segments_info, id2label, links=links)
    script = SCRIPT.read_text(encoding="utf-8") + START
    return Html(
        f'<section class="segments"><style>{STYLE}</style>\n{markup}\n{data_tag(data)}\n<script>{script}</script>'
        f"</section>"
    )


def hover_parts(
    image: Image.Image,
    segmentation: ArrayLike,
    segments_info: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
    *,
    links: Mapping[int, str] | None = None,
) -> HoverParts:
    """The parts of `hover_figure`, whose arguments these are, for a page that connects them itself."""
    segment_map = np.asarray(segmentation)
    segments = [segment for segment in segments_info if segment["id"] != VOID_ID]
    order = index_map(segment_map, [segment["id"] for segment in segments])
    areas = np.bincount(order.ravel(), minlength=len(segments) + 1)[1:]
    rows = np.argsort(-areas, kind="stable")
    # The script's numbers are places in the list on the page, which has the largest segment first.
    place = np.zeros(len(segments) + 1, dtype=np.int64)
    place[rows + 1] = np.arange(1, len(segments) + 1)
    texts = [f"{label_text(segments[i], id2label)}, {_area_text(areas[i], order.size)}" for i in rows]
    colors = segment_colors(segments, id2label)
    lines = [_row(segments[i], id2label, colors[i], areas[i] / order.size, links or {}) for i in rows]
    small = _shrunk(place[order])
    data = {"width": small.shape[1], "height": small.shape[0], "runs": run_lengths(small), "segments": texts}
    photograph, overlay = _pictures(image, segment_map, segments, id2label)
    header = '<th>class</th><th class="number">score</th><th class="number">area</th>' + ("<th></th>" if links else "")
    markup = (
        f'<div class="figure"><div class="view">'
        f"{picture_tag(photograph, alt='the photograph', max_side=MAX_SIDE)}\n"
        f"{picture_tag(overlay, alt='its segments', max_side=MAX_SIDE).replace('<img', '<img class=colors', 1)}"
        f'<canvas aria-hidden="true"></canvas><div class="tip" hidden></div></div>\n'
        f'<p><label><input type="checkbox" checked> colors and labels</label></p></div>\n'
        f'<div class="list"><table><thead><tr>{header}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>'
    )
    return HoverParts(Html(markup), data, rows.tolist())


def run_lengths(values: np.ndarray) -> list[int]:
    """(H, W) integers row by row as a list of value, length, value, length and so on."""
    flat = values.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
    lengths = np.diff(starts, append=len(flat))
    return np.stack((flat[starts], lengths), axis=-1).ravel().tolist()


def _row(
    segment: Mapping[str, Any],
    id2label: Mapping[int, str],
    color: tuple[int, int, int],
    share: float,
    links: Mapping[int, str],
) -> str:
    """A line of the list."""
    name = escaped(class_name(segment["label_id"], id2label))
    score = segment.get("score")
    swatch = '<span class="swatch" style="background: rgb({}, {}, {})"></span>'.format(*color)
    cells = [
        f'<td><button type="button" aria-pressed="false">{swatch}{name}</button></td>',
        f'<td class="number">{"" if score is None else f"{score:.2f}"}</td>',
        f'<td class="number">{share:.1%}</td>',
    ]
    if links:
        link = links.get(segment["id"])
        cells.append("<td></td>" if link is None else f'<td><a href="{escaped(link)}">attention</a></td>')
    return f"<tr>{''.join(cells)}</tr>\n"


def _area_text(area: int, total: int) -> str:
    return f"{area / total:.1%} of the picture ({area} pixels)"


def _pictures(
    image: Image.Image,
    segment_map: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
) -> tuple[Image.Image, Image.Image]:
    """The photograph and its overlay in the size in which they are shown, so that labels can be read."""
    photograph = image.convert("RGB")
    photograph.thumbnail((MAX_SIDE, MAX_SIDE))
    if photograph.size != image.size:
        # Nearest: an id between two others would be a third segment.
        rows, columns = (
            ((np.arange(length) + 0.5) * whole / length).astype(int)
            for length, whole in zip(photograph.size[::-1], segment_map.shape, strict=True)
        )
        segment_map = segment_map[rows[:, None], columns]
    return photograph, draw_segments(photograph, segment_map, segments, id2label)


def _shrunk(values: np.ndarray) -> np.ndarray:
    """Every n-th row and column of (H, W), so few that no side is longer than the picture's."""
    stride = -(-max(values.shape) // MAX_SIDE)
    return values[::stride, ::stride]
