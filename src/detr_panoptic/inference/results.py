"""Predictions in COCO's panoptic format: one PNG of ids per image and one JSON file for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.files import written_whole
from ..segment_ids import ids_to_rgb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike


def coco_annotation(
    segments_info: Iterable[Mapping[str, Any]],
    *,
    category_ids: Sequence[int] | None,
    stuff_label_ids: Collection[int],
    image_id: int,
    file_name: str,
) -> dict[str, Any]:
    """The JSON entry of one image.

    Args:
        segments_info: {id, label_id, score, area} each, from a `post_process_panoptic_segmentation`.
        category_ids: the dataset's category id per label id; None if they are the same.
        stuff_label_ids: labels that are not things.
        image_id: the image's id in the dataset.
        file_name: name of the PNG file of the map.
    """
    segments = [
        {
            "id": segment["id"],
            "category_id": segment["label_id"] if category_ids is None else category_ids[segment["label_id"]],
            "isthing": int(segment["label_id"] not in stuff_label_ids),
            "iscrowd": 0,
            "area": segment["area"],
            "score": segment["score"],
        }
        for segment in segments_info
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def write_segmentation(file: str | Path, segmentation: ArrayLike) -> None:
    """Write (H, W) segment ids, array or CPU tensor, as a PNG file that is there whole or not at all."""
    with written_whole(Path(file)) as part:
        Image.fromarray(ids_to_rgb(segmentation)).save(part, format="PNG")


def write_coco_panoptic(
    folder: str | Path,
    results: Iterable[tuple[ArrayLike, Mapping[str, Any]]],
    *,
    categories: Sequence[Mapping[str, Any]],
    name: str = "panoptic",
) -> Path:
    """Write predictions as `folder/name.json` and `folder/name/*.png`, the layout that evaluators expect.

    Args:
        folder: made if it does not exist.
        results: the map (H, W) of each image, array or CPU tensor, and its `coco_annotation`; read once, so that a
            generator's maps need not all be in memory.
        categories: {id, name, isthing} each, for the file.
        name: of the JSON file and the folder of maps.

    Returns:
        The JSON file.
    """
    folder = Path(folder)
    (folder / name).mkdir(parents=True, exist_ok=True)
    json_file = folder / f"{name}.json"
    write_coco_json(json_file, annotations=_written(folder / name, results), categories=categories)
    return json_file


def write_coco_json(file: str | Path, **lists: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object of lists, each gone through once: none of them need be in memory."""
    with written_whole(Path(file)) as part, part.open("w", encoding="utf-8") as stream:
        for place, (name, items) in enumerate(lists.items()):
            stream.write(f"{', ' if place else '{'}{json.dumps(name)}: [")
            for number, item in enumerate(items):
                stream.write((",\n" if number else "\n") + json.dumps(item))
            stream.write("]")
        stream.write("}\n")


def _written(folder: Path, results: Iterable[tuple[ArrayLike, Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
    """The annotations of results, each after its map was written."""
    for segmentation, annotation in results:
        write_segmentation(folder / annotation["file_name"], segmentation)
        yield annotation
