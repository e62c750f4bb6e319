"""Makes targets for training from panoptic annotations in memory.

Follows datasets/coco_panoptic.py of facebookresearch/detr (29901c5); docs/deviations.md lists the differences.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .box_ops import xyxy_to_cxcywh
from .segment_ids import VOID_ID, nearest_positions, rgb_to_ids, segment_extents


def panoptic_target(
    annotation: Mapping[str, Any],
    image_size: Sequence[int],
    processed_size: Sequence[int],
    category_ids: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Returns the targets that the losses compare the predictions for one image with.

    Args:
        annotation: `image_id`, `segmentation` (id map: (H, W) integers, or colors R + 256 G + 256² B as (H, W, 3) or
            picture; 0 is void) and `segments_info` (`id`, `label_id` or `category_id`, `iscrowd` if it is one).
        image_size: (H, W) of the original image.
        processed_size: (h, w) of the image as the model sees it, without padding.
        category_ids: the dataset's category id of each label; None where they are the same.

    Returns:
        `class_labels` (T,) int64, `boxes` (T, 4) float32 cxcywh relative to the image, `masks` (T, h, w) bool, `area`
        (T,) float32 in processed pixels, `iscrowd` (T,), `image_id` (1,), `size` (2,) and `orig_size` (2,) int64.
    """
    if not {"image_id", "segmentation", "segments_info"} <= set(annotation):
        raise ValueError(
            f"An annotation must have `image_id`, `segmentation` and `segments_info`, got {sorted(annotation)}."
        )
    image_id = annotation["image_id"]
    segments = list(annotation["segments_info"])
    ids = _id_map(annotation["segmentation"], image_id)
    if tuple(ids.shape) != tuple(image_size):
        raise ValueError(
            f"Image {image_id}: `segmentation` must have the image's size {tuple(image_size)}, got {tuple(ids.shape)}."
        )
    found = segment_extents(ids)
    _check_ids(found.ids.tolist(), [int(segment["id"]) for segment in segments], image_id)
    labels = [_label_id(segment, category_ids, image_id) for segment in segments]

    height, width = processed_size
    if ids.shape != (height, width):
        ids = ids[nearest_positions(ids.shape[0], height)][:, nearest_positions(ids.shape[1], width)]
        found = segment_extents(ids)
    places = {segment_id: place for place, segment_id in enumerate(found.ids.tolist())}
    kept = [i for i, segment in enumerate(segments) if int(segment["id"]) in places]
    where = [places[int(segments[i]["id"])] for i in kept]
    x, y, box_width, box_height = torch.from_numpy(found.boxes[where]).float().unbind(-1)
    boxes_xyxy = torch.stack((x, y, x + box_width, y + box_height), dim=-1)
    return {
        "class_labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64),
        "boxes": xyxy_to_cxcywh(boxes_xyxy) / torch.tensor([width, height, width, height]),
        "masks": torch.from_numpy(ids == found.ids[where][:, None, None]),
        "area": torch.from_numpy(found.areas[where]).float(),
        "iscrowd": torch.tensor([int(segments[i].get("iscrowd", 0)) for i in kept], dtype=torch.int64),
        "image_id": torch.tensor([int(image_id)]),
        "size": torch.tensor([height, width]),
        "orig_size": torch.tensor(list(image_size)),
    }


def _id_map(segmentation: Image.Image | np.ndarray | Tensor, image_id: int) -> np.ndarray:
    """Returns the (H, W) int32 or int64 map of what an annotation holds."""
    if isinstance(segmentation, Image.Image) and segmentation.mode not in ("RGB", "L", "I", "I;16"):
        modes = "RGB, or L, I, I;16 for an id map"
        raise ValueError(f"Image {image_id}: `segmentation` must have mode {modes}, got mode {segmentation.mode}.")
    ids = segmentation.cpu().numpy() if isinstance(segmentation, Tensor) else np.asarray(segmentation)
    if ids.ndim == 3 and ids.shape[2] == 3 and ids.dtype == np.uint8:
        ids = rgb_to_ids(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        expected = "an (H, W) map of integers or (H, W, 3) uint8 colors"
        raise ValueError(f"Image {image_id}: `segmentation` must be {expected}, got {ids.shape} of {ids.dtype}.")
    return ids if ids.dtype == np.int32 else ids.astype(np.int64)


def _check_ids(in_map: Collection[int], listed: list[int], image_id: int) -> None:
    """Raises a ValueError unless map and entries hold the same ids, each once."""
    if len(set(listed)) < len(listed) or VOID_ID in listed:
        wrong = sorted({i for i in listed if listed.count(i) > 1 or i == VOID_ID})
        raise ValueError(f"Image {image_id}: `segments_info` must list each id once and not {VOID_ID}, got {wrong}.")
    wanted, found = set(listed), set(in_map) - {VOID_ID}
    for lacking, place in (
        (found - wanted, "an entry in `segments_info`"),
        (wanted - found, "pixels in `segmentation`"),
    ):
        if lacking:
            raise ValueError(f"Image {image_id}: segment ids {sorted(lacking)[:8]} must have {place}, got none.")


def _label_id(segment: Mapping[str, Any], category_ids: Sequence[int] | None, image_id: int) -> int:
    """Returns the label of a segment, checked as far as the labels are known."""
    name = f"Image {image_id}: segment {segment['id']}"
    label: Any = segment.get("label_id")
    category: Any = segment.get("category_id")
    if label is None and category is None:
        raise ValueError(f"{name} must have a `label_id` or a `category_id`, got {sorted(segment)}.")
    if label is None and category_ids is not None:
        if category not in category_ids:
            raise ValueError(f"{name} must have a `category_id` out of {list(category_ids)}, got {category}.")
        return list(category_ids).index(category)
    label = int(category if label is None else label)
    if label < 0 or (category_ids is not None and label >= len(category_ids)):
        upper = "" if category_ids is None else f" to {len(category_ids) - 1}"
        raise ValueError(f"{name} must have a `label_id` from 0{upper}, got {label}.")
    return label
