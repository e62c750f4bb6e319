"""One image's way: read, segmented, described, written. Imports torch; commands import it when they run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from transformers import PreTrainedConfig

from ..data.files import written_whole
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..image_reading import plain_picture, read_picture
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..visualization import draw_segments
from .results import write_segmentation

# By task, where it is not what the model's configuration says: in the semantic map the queries add up, also those
# whose best class is "no object".
MASK_QUERIES = {"semantic": "all"}
MaskThresholds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Prediction:
    """One image and its segments.

    Args:
        name: the image's file name.
        image: RGB, upright.
        segmentation: (H, W) int32 of the image's size, 0 is void.
        segments_info: what `describe_segments` returns, one entry per id.
    """

    name: str
    image: Image.Image
    segmentation: np.ndarray
    segments_info: list[dict[str, Any]]


def read_image(path: Path) -> Image.Image:
    """The picture as the model sees it: upright, RGB, 8 bits, whatever the file's mode.

    Raises:
        ValueError: it is no image, or only a part of one; names the file.
    """
    picture = read_picture(path)
    try:
        return plain_picture(picture)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def segment(
    images: Sequence[Image.Image],
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    *,
    task: str,
    threshold: float | None,
) -> list[Mapping[str, Any]]:
    """Run the model on one batch.

    Args:
        images: B upright RGB images of any sizes.
        model: in evaluation mode.
        processor: the model's.
        task: "panoptic", "instance" or "semantic".
        threshold: the least score of a segment; None: the processor's. Nothing in the semantic task.

    Returns:
        For each image `segmentation` (H, W) int32 of its own size, 0 is void and ids run from 1, and `segments_info`.
    """
    inputs = processor(images=list(images), return_tensors="pt").to(device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        outputs = model(**inputs, mask_queries=MASK_QUERIES.get(task))
    sizes = [(image.height, image.width) for image in images]
    return segments_of(outputs, processor, sizes, task=task, threshold=threshold)


def segments_of(
    outputs: Any,
    processor: DetrPanopticImageProcessor,
    sizes: Sequence[tuple[int, int]],
    *,
    task: str,
    threshold: float | None,
    mask_thresholds: MaskThresholds = (None, None),
) -> list[Mapping[str, Any]]:
    """The segments of a batch's outputs, as `segment` returns them.

    Args:
        outputs: the model's.
        processor: the model's.
        sizes: (height, width) of the images.
        task: "panoptic", "instance" or "semantic".
        threshold: the least score of a segment; None: the processor's. Nothing in the semantic task.
        mask_thresholds: `mask_threshold` and `overlap_mask_area_threshold`; None: the processor's.
    """
    if task == "semantic":
        label_maps: Any = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [_segments_of_labels(label_map) for label_map in label_maps]
    if task == "instance":
        merge: Any = processor.post_process_instance_segmentation
    else:
        merge = processor.post_process_panoptic_segmentation
    return list(merge(outputs, threshold, *mask_thresholds, target_sizes=sizes))


def describe_segments(
    segmentation: np.ndarray, segments_info: Sequence[Mapping[str, Any]], config: PreTrainedConfig
) -> list[dict[str, Any]]:
    """What a JSON file says of each segment.

    Args:
        segmentation: (H, W) integers, ids from 1.
        segments_info: as post-processing returns it: `id`, `label_id`, `area` and, except for semantic maps, `score`.
        config: the model's; knows names, kinds and category ids of labels.

    Returns:
        For each segment `id`, `label_id`, `category_id`, `label`, `score` (None without), `isthing` (0 or 1), and in
        pixels `area` and `bbox` [x, y, width, height].
    """
    extents = ndimage.find_objects(segmentation)
    id2label: dict[Any, str] = config.id2label or {}
    entries = []
    for info in segments_info:
        label_id = info["label_id"]
        rows, columns = extents[info["id"] - 1]
        entries.append(
            {
                "id": info["id"],
                "label_id": label_id,
                "category_id": config.category_ids[label_id] if config.category_ids else label_id,
                "label": id2label[label_id],
                "score": info.get("score"),
                "isthing": int(label_id not in config.stuff_label_ids),
                "area": info["area"],
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            }
        )
    return entries


def write_prediction(prediction: Prediction, folder: Path, stem: str, id2label: Mapping[int, str]) -> None:
    """Write the overlay, the id map and the JSON file of one image, `STEM_overlay.png`, `STEM.png` and `STEM.json`.

    Args:
        prediction: of the image.
        folder: that exists.
        stem: of the files' names.
        id2label: name of each label id of the model; all of them decide on the colors.
    """
    overlay = draw_segments(prediction.image, prediction.segmentation, prediction.segments_info, id2label)
    with written_whole(folder / f"{stem}_overlay.png") as part:
        overlay.save(part, format="PNG")
    write_segmentation(folder / f"{stem}.png", prediction.segmentation)
    with written_whole(folder / f"{stem}.json") as part:
        # Names of files may be no UTF-8.
        part.write_text(prediction_json(prediction, f"{stem}.png"), encoding="utf-8", errors="backslashreplace")


def prediction_json(prediction: Prediction, map_name: str) -> str:
    """The text of the JSON file of one image, whose id map is in a file of that name."""
    content = {
        "image": prediction.name,
        "width": prediction.image.width,
        "height": prediction.image.height,
        "segmentation": map_name,
        "segments_info": prediction.segments_info,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _segments_of_labels(label_map: Tensor) -> dict[str, Any]:
    """A map of labels (H, W) as segments, one per label, without scores."""
    labels, segmentation, areas = label_map.unique(return_inverse=True, return_counts=True)
    info = [
        {"id": index, "label_id": label, "area": area}
        for index, (label, area) in enumerate(zip(labels.tolist(), areas.tolist(), strict=True), start=1)
    ]
    return {"segmentation": (segmentation + 1).int(), "segments_info": info}
