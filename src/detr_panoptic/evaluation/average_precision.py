"""Average precision of boxes and of masks, counted by pycocotools.

As the reference measures it: every query is a detection, with its own box and its own mask, whatever the merging made
of it. Its class is the most probable one that is not "no object", its score that probability, and no threshold drops
any. Things only.

Difference: the truth is the panoptic annotation. The reference's published box and mask AP compare with COCO's
instance annotations of the same images, whose masks overlap and whose small objects are more.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..box_ops import cxcywh_to_xyxy
from ..panoptic_merging import ImageSizes, query_masks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ..data.categories import Categories

Instance = dict[str, Any]
"""One thing: `label_id`, `bbox` [x, y, width, height] in pixels; of the truth `area` and `iscrowd`, of a detection
`score`; and `counts`, the run-length code of its mask as text, where masks are measured."""

KINDS = {"box": "bbox", "mask": "segm"}  # of AP, and pycocotools' words for them
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first six of COCOeval.stats
QUERIES_AT_ONCE = 16  # masks of the image's size that are held at once


def true_instances(
    segment_map: NDArray[Any], segments_info: Sequence[Mapping[str, Any]], is_thing: Sequence[bool]
) -> list[Instance]:
    """The annotated things of an image.

    Args:
        segment_map: (H, W) integer ids.
        segments_info: {id, label_id, iscrowd} each; those without a pixel are left out.
        is_thing: by label id.
    """
    things = [segment for segment in segments_info if is_thing[segment["label_id"]]]
    codes = _encode(segment_map.T[None] == np.array([thing["id"] for thing in things]).reshape(-1, 1, 1))
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


def detected_instances(
    outputs: Any, index: int, size: tuple[int, int], labels: Mapping[int, int], *, with_masks: bool
) -> list[Instance]:
    """What the queries of one image detect.

    Args:
        outputs: the model's, of a batch; with masks for all queries if `with_masks`.
        index: of the image in the batch.
        size: (height, width) of the image.
        labels: the thing labels that count, by the model's label id; other detections are left out.
        with_masks: also the masks.
    """
    scores, model_labels = outputs.logits[index].float().softmax(-1)[:, :-1].max(-1)
    counted = torch.tensor([label in labels for label in model_labels.tolist()], device=scores.device)
    scale = torch.tensor(size, device=scores.device).flip(0).repeat(2)
    boxes = cxcywh_to_xyxy(outputs.pred_boxes[index].float())[counted] * scale
    instances = [
        {"label_id": labels[label], "score": score, "bbox": [left, top, right - left, bottom - top]}
        for label, score, (left, top, right, bottom) in zip(
            model_labels[counted].tolist(), scores[counted].tolist(), boxes.tolist(), strict=True
        )
    ]
    if with_masks:
        sizes = image_sizes(outputs, index, size)
        for start in range(0, len(instances), QUERIES_AT_ONCE):
            some = slice(start, start + QUERIES_AT_ONCE)
            masks = query_masks(outputs.pred_masks[index][counted][some], sizes)
            codes = _encode(masks.permute(2, 1, 0).contiguous().cpu().numpy())
            for instance, code in zip(instances[some], codes, strict=True):
                instance["counts"] = code["counts"].decode("ascii")
    return instances


def image_sizes(outputs: Any, index: int, size: tuple[int, int]) -> ImageSizes:
    """The sizes of one image of a batch; `size` is its own (height, width)."""
    return ImageSizes(_pair(outputs.image_sizes[index]), _pair(outputs.canvas_sizes[index]), size)


def average_precision(
    images: Iterable[tuple[tuple[int, int], Sequence[Instance], Sequence[Instance]]],
    categories: Categories,
    kinds: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """AP over images.

    Args:
        images: (height, width), true and detected instances of each.
        categories: of their label ids.
        kinds: "box" and "mask", or one of them.

    Returns:
        For each kind the `FIGURES`, all in [0, 1] and None where there is nothing to measure, and `per_class`: the AP
        of each label id, alike. All are means over IoU thresholds from 0.5 to 0.95, for at most 100 detections.
    """
    names = [{"id": label, "name": name} for label, name in categories.id2label.items() if categories.is_thing[label]]
    sizes: list[dict[str, int]] = []
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (size, true, detected) in enumerate(images):
        sizes.append({"id": number, "height": size[0], "width": size[1]})
        for instances, listed in ((true, truth), (detected, found)):
            # From 1: COCOeval takes a match with the id 0 for none.
            listed += [
                _annotation(instance, number, size, number_in_all)
                for number_in_all, instance in enumerate(instances, start=len(listed) + 1)
            ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        true_side, found_side = (
            _coco({"images": sizes, "annotations": side, "categories": names}) for side in (truth, found)
        )
        return {kind: _evaluate(true_side, found_side, kind, len(categories)) for kind in kinds}


def _evaluate(truth: COCO, found: COCO, kind: str, num_labels: int) -> dict[str, Any]:
    for annotation in found.dataset["annotations"]:  # small, medium, large: by the area of what is compared
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


def _annotation(instance: Instance, image: int, size: tuple[int, int], number: int) -> dict[str, Any]:
    annotation = {
        "id": number,
        "image_id": image,
        "category_id": instance["label_id"],
        "bbox": instance["bbox"],
        "iscrowd": instance.get("iscrowd", 0),
        "area": instance.get("area"),
    }
    if "score" in instance:
        annotation["score"] = instance["score"]
    if "counts" in instance:
        annotation["segmentation"] = {"size": list(size), "counts": instance["counts"]}
    return annotation


def _coco(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _encode(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Run-length codes of masks (N, W, H): columns first, as pycocotools counts."""
    return rle.encode(np.ascontiguousarray(masks).view(np.uint8).transpose(2, 1, 0)) if len(masks) else []


def _pair(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return height, width


def _or_none(value: float) -> float | None:
    """COCOeval says -1 where there is nothing to measure."""
    return None if value < 0 else float(value)
