"""Panoptic quality of files in COCO's panoptic format."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..data.contained_paths import path_inside
from ..segment_ids import MAX_ID, rgb_to_ids
from .panoptic_quality import ImageCounts, add_up, count_image, panoptic_quality

try:  # an extra, `fast-png`: three times as fast as Pillow
    from kornia_rs.io import read_image_png_u8
except ImportError:
    read_image_png_u8 = None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def evaluate_files(
    truth_json: str | Path,
    prediction_json: str | Path,
    truth_dir: str | Path | None = None,
    prediction_dir: str | Path | None = None,
) -> dict[str, dict[Any, Any]]:
    """Panoptic quality of files in COCO's panoptic format.

    Args:
        truth_json: annotations and categories.
        prediction_json: annotations; those of images that the truth does not have are ignored.
        truth_dir: the folder of the PNG files; the JSON's name without its ending if not given.
        prediction_dir: alike.

    Returns:
        What `panoptic_quality` returns.

    Raises:
        ValueError: if an image has no prediction, or for what `panoptic_stats` finds; the image and file are named.
        FileNotFoundError: if a JSON or PNG file is missing.
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
    is_thing = {category["id"]: category["isthing"] == 1 for category in truth["categories"]}

    def compare(entry: Mapping[str, Any]) -> ImageCounts:
        prediction = predictions[entry["image_id"]]
        files = (
            path_inside(truth_dir, entry["file_name"], str(truth_json)),
            path_inside(prediction_dir, prediction["file_name"], str(prediction_json)),
        )
        truth_map, prediction_map = (read_ids(file) for file in files)
        try:
            return count_image(
                truth_map, entry["segments_info"], prediction_map, prediction["segments_info"], list(is_thing)
            )
        except ValueError as error:
            raise ValueError(f"Image {entry['image_id']} ({files[1]}): {error}") from error

    with ThreadPoolExecutor() as threads:  # most of the time goes into decoding PNG, which holds no interpreter lock
        images = list(threads.map(compare, truth["annotations"]))
    stats = add_up(images, num_classes=len(is_thing))
    return panoptic_quality(stats, category_ids=list(is_thing), is_thing=list(is_thing.values()))


def read_ids(file: str | Path) -> NDArray[np.int32]:
    """Segment ids (H, W) of a PNG file.

    Raises:
        ValueError: if it is no RGB image, or a broken one; names the file.
        FileNotFoundError: if there is none.
    """
    if read_image_png_u8 is not None:
        # It refuses other modes and broken files; then Pillow tells what is wrong.
        with contextlib.suppress(Exception):
            return rgb_to_ids(read_image_png_u8(str(file), "rgb"))
    try:
        with Image.open(file) as image:
            image.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # broken files raise anything from SyntaxError to struct.error
        raise ValueError(f"Cannot read {file}: {error}") from error
    if image.mode != "RGB":
        raise ValueError(f"{file} must be an RGB image, got mode {image.mode}.")
    try:
        # Pillow holds four bytes per pixel, R G B and one more: these are the ids, and need not be copied.
        colors = pa.array(image).flatten().to_numpy()
    except ValueError:  # a picture of more than 16 MB lies in several blocks of memory
        return rgb_to_ids(np.asarray(image))
    return (colors.view("<u4") & np.uint32(MAX_ID)).view(np.int32).reshape(image.height, image.width)
