"""Writer of COCO instances, things and stuff alike, which annotation tools import as labels to correct."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .categories import Categories
from .contained_paths import path_inside
from .files import write_file
from .lazy_records import name_of, opened, upright_size
from .outlines import mask_polygons, mask_runs
from .records import Record, segmentation_ids
from .stored import picture_file

Masks = Literal["polygons", "rle"]
KINDS = ("stuff", "thing")
SCORE_DIGITS = 6


def write_coco_instances(
    folder: str | Path, records: Iterable[Record], categories: Categories, *, masks: Masks = "polygons"
) -> Path:
    """Writes `images/` and `instances.json`, which it returns: an annotation for each segment, with its `score`.

    Polygons and run lengths have exactly the pixels of the segments. A crowd has run lengths in any case.

    Raises:
        ValueError: two records have the same id or file name, or a name leads out of the folder.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
        >>> write_coco_instances(tempfile.mkdtemp(), [make_scene(0)], SCENE_CATEGORIES).name
        'instances.json'
    """
    folder = Path(folder)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for record in records:
        name, contents = picture_file(record)
        if record["image_id"] in images or (folder / "images" / name).exists():
            raise ValueError(f"{name_of(record)}: expected each id and file name once.")
        width, height = upright_size({"bytes": contents})
        write_file(path_inside(folder / "images", name, name_of(record)), contents)
        images[record["image_id"]] = {"id": record["image_id"], "file_name": name, "width": width, "height": height}
        stored = record["segmentation"]
        ids = segmentation_ids(stored if isinstance(stored, np.ndarray) else opened(stored))
        for segment in record["segments_info"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": categories.category_ids[segment["label_id"]],
                    **_annotation(ids == segment["id"], segment, masks),
                }
            )
    classes = [{**entry, "supercategory": KINDS[entry["isthing"]]} for entry in categories.to_coco()]
    document = {"images": list(images.values()), "annotations": annotations, "categories": classes}
    write_file(folder / "instances.json", json.dumps(document, ensure_ascii=False))
    return folder / "instances.json"


def _annotation(mask: np.ndarray, segment: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
    is_crowd = bool(segment.get("iscrowd"))
    shape: Any = mask_runs(mask) if masks == "rle" or is_crowd else mask_polygons(mask)
    found: dict[str, Any] = {"segmentation": shape, "bbox": segment["bbox"], "area": segment["area"]}
    # CVAT keeps what is in `attributes`, and takes `iscrowd` for "its mask is run lengths".
    attributes: dict[str, Any] = {"is_crowd": True} if is_crowd else {}
    if segment.get("score") is not None:
        found["score"] = attributes["score"] = round(float(segment["score"]), SCORE_DIGITS)
    return {**found, "iscrowd": int(is_crowd), "attributes": attributes}
