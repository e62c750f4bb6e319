"""Makes targets for training from panoptic annotations, and from COCO's annotations of instances.

Follows datasets/coco_panoptic.py of facebookresearch/detr (29901c5); docs/deviations.md lists the differences.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.detr.image_processing_detr import prepare_coco_detection_annotation

from .box_ops import xyxy_to_cxcywh
from .image_reading import read_picture
from .segment_ids import VOID_ID, nearest_positions, rgb_to_ids, segment_extents


def training_target(
    annotation: Mapping[str, Any],
    image: Tensor,
    size: Sequence[int],
    *,
    settings: Mapping[str, Any],
    with_masks: bool | None = None,
    masks_path: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Returns the targets that the losses compare the predictions for one image with.

    Annotation, result and errors are as in `DetrPanopticImageProcessor.preprocess`, the `settings` its `category_ids`
    and `format`. `size` is the (h, w) of the image (3, H, W) as the model sees it, without padding.
    """
    known, category_ids = settings["format"], settings["category_ids"]
    found = "coco_detection" if "annotations" in annotation else "coco_panoptic"
    if known not in (None, found):
        raise ValueError(f"`format` must be {found!r} for annotations of {sorted(annotation)}, got {known!r}.")
    if found == "coco_detection":
        return _detection_target(annotation, image, size, category_ids, bool(with_masks))
    if masks_path is not None and "segmentation" not in annotation and "file_name" in annotation:
        if Path(annotation["file_name"]).anchor or ".." in Path(annotation["file_name"]).parts:
            raise ValueError(f"`file_name` must lie in `masks_path` {masks_path}, got {annotation['file_name']!r}.")
        annotation = {**annotation, "segmentation": read_picture(Path(masks_path) / annotation["file_name"])}
    return _panoptic_target(annotation, tuple(image.shape[-2:]), size, category_ids, with_masks is not False)


def _detection_target(
    annotation: Mapping[str, Any], image: Tensor, size: Sequence[int], category_ids: Any, with_masks: bool
) -> dict[str, Tensor]:
    """Returns the targets of COCO's instances without crowds."""
    image_id, entries = annotation.get("image_id", "?"), [e for e in annotation["annotations"] if not e.get("iscrowd")]
    for entry in (annotation, *entries):
        needed = {"image_id"} if entry is annotation else {"bbox", "area", *["segmentation"] * with_masks}
        if not needed <= set(entry):
            raise ValueError(f"Image {image_id}: COCO annotations must have {sorted(needed)}, got {sorted(entry)}.")
    entries = [{**e, "category_id": _label_id(e, category_ids, image_id)} for e in entries]
    target = prepare_coco_detection_annotation(image.cpu(), {**annotation, "annotations": entries}, with_masks)
    (height, width), (new_height, new_width) = image.shape[-2:], size
    target["boxes"] = xyxy_to_cxcywh(target["boxes"]) / torch.tensor([width, height, width, height])
    target["area"] *= new_height * new_width / (height * width)
    target["size"] = torch.tensor([new_height, new_width])
    if with_masks:
        rows, columns = nearest_positions(height, new_height), nearest_positions(width, new_width)
        target["masks"] = target["masks"].bool()[:, rows[:, None], columns]
    return target


def _panoptic_target(
    annotation: Mapping[str, Any], image_size: Sequence[int], size: Sequence[int], category_ids: Any, with_masks: bool
) -> dict[str, Tensor]:
    """Returns the targets of a panoptic annotation in memory."""
    if not {"image_id", "segmentation", "segments_info"} <= set(annotation):
        wanted = "`image_id`, `segments_info` and `segmentation` (or `file_name`, with `masks_path`)"
        raise ValueError(f"An annotation must have {wanted}, got {sorted(annotation)}.")
    image_id, segments = annotation["image_id"], list(annotation["segments_info"])
    ids = _id_map(annotation["segmentation"], image_id)
    if ids.shape != image_size:
        raise ValueError(f"Image {image_id}: `segmentation` must have the image's size {image_size}, got {ids.shape}.")
    found = segment_extents(ids)
    _check_ids(found.ids.tolist(), [int(segment["id"]) for segment in segments], image_id)
    labels = [_label_id(segment, category_ids, image_id) for segment in segments]

    height, width = size
    if ids.shape != (height, width):
        ids = ids.take(nearest_positions(ids.shape[1], width), 1).take(nearest_positions(ids.shape[0], height), 0)
        found = segment_extents(ids)
    places = {segment_id: place for place, segment_id in enumerate(found.ids.tolist())}
    kept = [i for i, segment in enumerate(segments) if int(segment["id"]) in places]
    where = [places[int(segments[i]["id"])] for i in kept]
    x, y, box_width, box_height = torch.from_numpy(found.boxes[where]).float().unbind(-1)
    boxes_xyxy = torch.stack((x, y, x + box_width, y + box_height), dim=-1)
    return {
        "class_labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64),
        "boxes": xyxy_to_cxcywh(boxes_xyxy) / torch.tensor([width, height, width, height]),
        **({"masks": torch.from_numpy(ids == found.ids[where][:, None, None])} if with_masks else {}),
        "area": torch.from_numpy(found.areas[where]).float(),
        "iscrowd": torch.tensor([int(segments[i].get("iscrowd", 0)) for i in kept], dtype=torch.int64),
        "image_id": torch.tensor([int(image_id)]),
        "size": torch.tensor([height, width]),
        "orig_size": torch.tensor(list(image_size)),
    }


def _id_map(segmentation: Image.Image | np.ndarray | Tensor, image_id: int) -> np.ndarray:
    """Returns the (H, W) map, uint8, int32 or int64, of what an annotation holds."""
    if isinstance(segmentation, Image.Image) and segmentation.mode not in ("RGB", "L", "I", "I;16"):
        raise ValueError(f"Image {image_id}: `segmentation` must be RGB, L, I or I;16, got mode {segmentation.mode}.")
    ids = segmentation.cpu().numpy() if isinstance(segmentation, Tensor) else np.asarray(segmentation)
    if ids.ndim == 3 and 3 in (ids.shape[0], ids.shape[2]) and ids.dtype == np.uint8:
        ids = rgb_to_ids(ids if ids.shape[2] == 3 else ids.transpose(1, 2, 0))
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        expected = "an (H, W) map of integers or (H, W, 3) or (3, H, W) uint8 colors"
        raise ValueError(f"Image {image_id}: `segmentation` must be {expected}, got {ids.shape} of {ids.dtype}.")
    return ids if ids.dtype in (np.uint8, np.int32) else ids.astype(np.int64)


def _check_ids(in_map: Collection[int], listed: list[int], image_id: int) -> None:
    """Raises a ValueError unless map and entries hold the same ids, each once."""
    if len(set(listed)) < len(listed) or VOID_ID in listed:
        wrong = sorted({i for i in listed if listed.count(i) > 1 or i == VOID_ID})
        raise ValueError(f"Image {image_id}: `segments_info` must list each id once and not {VOID_ID}, got {wrong}.")
    wanted, found = set(listed), set(in_map) - {VOID_ID}
    places = {"an entry in `segments_info`": found - wanted, "pixels in `segmentation`": wanted - found}
    for place, lacking in places.items():
        if lacking:
            raise ValueError(f"Image {image_id}: segment ids {sorted(lacking)[:8]} must have {place}, got none.")


def _label_id(segment: Mapping[str, Any], category_ids: Sequence[int] | None, image_id: int) -> int:
    """Returns the label of a segment, checked as far as the labels are known."""
    name = f"Image {image_id}: segment {segment.get('id')}"
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
