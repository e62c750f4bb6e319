"""Panoptic quality of files in COCO's panoptic format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.categories import Categories
from ..data.contained_paths import path_inside
from ..segment_ids import rgb_to_ids
from .panoptic_quality import PanopticQuality
from .results import PanopticQualityResult


def evaluate_files(
    truth_json: str | Path,
    prediction_json: str | Path,
    truth_dir: str | Path | None = None,
    prediction_dir: str | Path | None = None,
) -> PanopticQualityResult:
    """Measures the panoptic quality of files in COCO's panoptic format.

    Args:
        truth_json: annotations and categories.
        prediction_json: annotations with the same category ids; those of images without truth are ignored.
        truth_dir: folder of the PNG files; by default the JSON file's name without its suffix.
        prediction_dir: the same for the predictions.

    Raises:
        ValueError: an image has no prediction or a file cannot be read or compared; names the image and the file.
        FileNotFoundError: a JSON or PNG file is missing.

    Examples:
        >>> from detr_panoptic.evaluation import evaluate_files
        >>> print(evaluate_files("panoptic_val2017.json", "predictions/panoptic.json"))  # doctest: +SKIP
    """
    truth_json, prediction_json = Path(truth_json), Path(prediction_json)
    truth_dir = Path(truth_dir or truth_json.with_suffix(""))
    prediction_dir = Path(prediction_dir or prediction_json.with_suffix(""))
    truth = json.loads(truth_json.read_text())
    predictions = {entry["image_id"]: entry for entry in json.loads(prediction_json.read_text())["annotations"]}
    missing = [entry["image_id"] for entry in truth["annotations"] if entry["image_id"] not in predictions]
    if missing:
        raise ValueError(
            f"No prediction for the image with id {missing[0]} ({len(missing)} missing) in {prediction_json}."
        )
    categories = Categories.from_coco(truth["categories"])

    def compare(entry: Mapping[str, Any]) -> PanopticQuality:
        prediction = predictions[entry["image_id"]]
        truth_file = path_inside(truth_dir, entry["file_name"], str(truth_json))
        prediction_file = path_inside(prediction_dir, prediction["file_name"], str(prediction_json))
        maps = [{"segmentation": read_ids(file)} for file in (truth_file, prediction_file)]
        quality = PanopticQuality(categories)
        try:
            quality.update({**entry, **maps[0]}, {**prediction, **maps[1]})
        except ValueError as error:
            raise ValueError(f"Image {entry['image_id']} ({prediction_file}): {error}") from error
        return quality

    total = PanopticQuality(categories)
    with ThreadPoolExecutor() as threads:  # PNG decoding takes most of the time and releases the interpreter lock
        for quality in threads.map(compare, truth["annotations"]):
            total += quality
    return total.compute()


def read_ids(file: str | Path) -> NDArray[np.int32]:
    """Reads the segment ids (H, W) of a PNG file.

    Raises:
        ValueError: it is not an RGB image, or broken; names the file.
        FileNotFoundError: it does not exist.
    """
    try:
        with Image.open(file) as image:
            image.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # broken files raise anything from SyntaxError to struct.error
        raise ValueError(f"Cannot read {file}: {error}") from error
    if image.mode != "RGB":
        raise ValueError(f"{file} must be an RGB image, got mode {image.mode}.")
    return rgb_to_ids(np.asarray(image))
