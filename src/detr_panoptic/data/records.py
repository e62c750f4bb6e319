"""The canonical record: what every reader of a dataset returns and the image processor takes.

`image` is an RGB picture, `segmentation` its id map as an RGB picture of the same size (id = R + 256 G + 256² B,
0 = void), and `segments_info` has one entry per segment of the map. Nothing in a record is a path that must exist
beside the dataset.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value
from PIL import Image as PILImage

from ..segment_ids import rgb_to_ids

Record = dict[str, Any]


def panoptic_features() -> Features:
    """Columns of the canonical record, for `datasets`."""
    return Features(
        {
            "image": Image(mode="RGB"),  # grayscale photographs exist in COCO
            "image_id": Value("int64"),
            "segmentation": Image(mode="RGB"),
            "segments_info": List(
                {
                    "id": Value("int64"),
                    "label_id": Value("int64"),
                    "iscrowd": Value("int64"),
                    "area": Value("int64"),
                    "bbox": List(Value("int64"), length=4),
                }
            ),
        }
    )


def segmentation_ids(segmentation: PILImage.Image | np.ndarray) -> np.ndarray:
    """Id map (H, W) int64 of a record's `segmentation`: an RGB picture, or an id map already."""
    if isinstance(segmentation, PILImage.Image):
        return np.asarray(rgb_to_ids(np.asarray(segmentation.convert("RGB")))).astype(np.int64)
    return np.asarray(segmentation).astype(np.int64)


def measure_segments(ids: np.ndarray, segments_info: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries with `area` and `bbox` [x, y, width, height] as the id map has them, in pixels.

    Args:
        ids: (H, W) integers.
        segments_info: entries with `id`; other keys are kept.

    Returns:
        New entries in the same order, without those of which no pixel is left.
    """
    measured = []
    for segment in segments_info:
        mask = ids == segment["id"]
        columns = np.flatnonzero(mask.any(axis=0))
        if not columns.size:
            continue
        rows = np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        bbox = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        measured.append({**segment, "area": int(np.count_nonzero(mask)), "bbox": bbox})
    return measured
