"""Average precision of boxes and masks, computed by pycocotools.

As in the reference, every query is a detection with its own box and mask, whatever merging makes of it
(`inference.detections`), no score threshold applies, and only things count.

Difference: the truth is the panoptic annotation. The published box and mask AP of the reference compare with COCO's
instance annotations of the same images, whose masks overlap and which contain more small objects.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

if TYPE_CHECKING:
    from ..data.categories import Categories

Instance = dict[str, Any]
"""One thing: `label_id` and `bbox` (x, y, width, height in pixels); in the truth also `area` and `iscrowd`, in a
detection also `score`; and for masks `counts`, their COCO run-length encoding as text."""

KINDS = {"box": "bbox", "mask": "segm"}  # of AP, and what pycocotools calls them
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first six of COCOeval.stats


def true_instances(
    segmentation: NDArray[Any], segments_info: Sequence[Mapping[str, Any]], is_thing: Sequence[bool]
) -> list[Instance]:
    """Returns the annotated things of a map (H, W) of ids; segments without a pixel are left out."""
    things = [segment for segment in segments_info if is_thing[segment["label_id"]]]
    if not things:
        return []
    # pycocotools counts along columns: its memory order is (H, W, N) in Fortran's order, which is (N, W, H) in C's.
    masks = np.ascontiguousarray(segmentation.T[None] == np.array([thing["id"] for thing in things])[:, None, None])
    codes = rle.encode(masks.view(np.uint8).transpose(2, 1, 0))
    return [
        {
            "label_id": thing["label_id"],
            "iscrowd": thing.get("iscrowd", 0),
            "area": int(rle.area(code)),
            "bbox": rle.toBbox(code).tolist(),
            "counts": code["counts"].decode("ascii"),
        }
        for thing, code in zip(things, codes, strict=True)
        if rle.area(code)
    ]


def average_precision(
    images: Iterable[tuple[tuple[int, int], Sequence[Instance], Sequence[Instance]]],
    categories: Categories,
    kinds: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Computes AP over images: (height, width), true and detected instances of each.

    Returns:
        For each kind, "box" or "mask", the `FIGURES` and `per_class`, the AP of each label id: all in [0, 1], and None
        where there is nothing to measure. They are means over IoU thresholds from 0.5 to 0.95, for at most 100
        detections.
    """
    things = [{"id": label} for label in categories.id2label if categories.is_thing[label]]
    sizes: list[dict[str, int]] = []
    sides: tuple[list[Instance], list[Instance]] = ([], [])  # truth and detections
    for image_id, (size, *instances) in enumerate(images):
        sizes.append({"id": image_id, "height": size[0], "width": size[1]})
        for side, found in zip(sides, instances, strict=True):
            for instance in found:
                annotation = {"iscrowd": 0, **instance, "image_id": image_id, "category_id": instance["label_id"]}
                annotation["id"] = len(side) + 1  # COCOeval reads a match with the id 0 as no match
                if "counts" in instance:
                    annotation["segmentation"] = {"size": list(size), "counts": instance["counts"]}
                side.append(annotation)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        truth, detections = COCO(), COCO()
        for coco, annotations in zip((truth, detections), sides, strict=True):
            coco.dataset = {"images": sizes, "annotations": annotations, "categories": things}
            coco.createIndex()
        return {kind: _evaluate(truth, detections, kind, len(categories)) for kind in kinds}


def _evaluate(truth: COCO, found: COCO, kind: str, num_labels: int) -> dict[str, Any]:
    for annotation in found.dataset["annotations"]:  # small, medium and large by the area of what is compared
        width, height = annotation["bbox"][2:]
        annotation["area"] = int(rle.area(annotation["segmentation"])) if kind == "mask" else width * height
    evaluation = COCOeval(truth, found, KINDS[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = {name: _or_none(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}
    per_class: list[float | None] = [None] * num_labels
    for place, label in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]  # (thresholds, recalls), of all sizes
        per_class[label] = _or_none(precision[precision > -1].mean() if (precision > -1).any() else -1)
    return {**figures, "per_class": per_class}


def _or_none(value: float) -> float | None:
    """Returns None for COCOeval's -1, which means that there is nothing to measure."""
    return None if value < 0 else float(value)
