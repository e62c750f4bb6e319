"""Attention maps on an HTML page that has a figure to point at (hover.py): those of the segment that is clicked.

The maps are sent as they are, a byte per cell, and drawn by the reader's browser as `draw_heat` draws them.
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .attention import BACKGROUND_BRIGHTNESS as DARKENED
from .attention import HEAT, HEAT_GAMMA, ObjectAttention, percent
from .attention import HEAT_BRIGHTNESS as LIGHT
from .attention import MAX_COVERAGE as MOST_COVERED

SCRIPT = Path(__file__).with_name("attention_panel.js")
MARKUP = '<div class="attention" aria-live="polite" hidden></div>'
STYLE = """
.segments .attention h3 { font-size: 1.1rem; margin: .5rem 0; }
.segments .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr)); gap: .75rem; }
.segments .maps figure { margin: 0; } .segments .maps canvas { width: 100%; height: auto; display: block; }
.segments .maps figcaption { font-size: .85rem; line-height: 1.3; padding-top: .2rem; }
"""


def attention_data(attentions: Iterable[ObjectAttention]) -> dict[str, Any]:
    """What the script's `connectAttention(root, owner, data)` takes as `data.attention`, ready for JSON.

    Args:
        attentions: of the segments, at least one, in the order of the figure's list; all of one image. They are gone
            through once, so that no more than one need be in memory with its mask.

    Returns:
        For each object its title and maps: the sum of the mask head's heads, the mean of the heads of each decoder
        layer, and each head of the mask head, these in one scale. Cells of padding are left out.
    """
    objects = []
    for attention in attentions:
        (height, width), stride = attention.processed_size, attention.stride
        rows, columns = -(-height // stride), -(-width // stride)
        objects.append({"title": attention.title, "maps": _maps(attention, rows, columns)})
    return {
        "heat": {
            "colors": HEAT.astype(int).tolist(),
            "gamma": HEAT_GAMMA,
            "darkened": DARKENED,
            "most_covered": MOST_COVERED,
            "light": LIGHT,
        },
        "cell": [stride / width, stride / height],  # shares of the picture, which may end within a cell
        "rows": rows,
        "columns": columns,
        "objects": objects,
    }


def _maps(attention: ObjectAttention, rows: int, columns: int) -> list[dict[str, str]]:
    heads = attention.mask_maps[:, :rows, :columns]
    layers = attention.cross_maps.mean(1)[:, :rows, :columns]
    peak = float(heads.max())
    return [
        _map("mask head, sum of its heads", heads.sum(0)),
        *(_map(f"decoder layer {i}, mean of its heads", layer) for i, layer in enumerate(layers, start=1)),
        *(
            _map(f"mask head, head {i}: {percent(attention.mask_maps[i - 1].sum())}", head, peak=peak)
            for i, head in enumerate(heads, start=1)
        ),
    ]


def _map(caption: str, maps: np.ndarray, *, peak: float | None = None) -> dict[str, str]:
    shares = maps / (peak or maps.max() or 1)
    values = np.rint(255 * shares).astype(np.uint8).tobytes()
    return {"caption": caption, "values": base64.b64encode(values).decode("ascii")}
