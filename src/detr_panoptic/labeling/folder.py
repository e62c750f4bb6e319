"""Labeled images in COCO's panoptic layout, written one by one, so that an interrupted run goes on where it was."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.categories import Categories
from ..data.contained_paths import path_inside
from ..data.files import check_folder, check_new_folder, write_file
from ..data.lazy_records import name_of
from ..data.plain_text import counted
from ..data.records import segmentation_ids
from ..data.stored import map_file, picture_file
from ..data.writing import segment_entry
from ..inference.folder import SETTINGS, claim_folder
from ..inference.pictures import Pictures, unique_stems
from ..segment_ids import VOID_ID
from .filling import Filled

PROGRESS = ".progress"  # a JSON file for each image that is done
MAP = ".png"


class Labeled(NamedTuple):
    """What a run added to one image: `added` are pixels by label, `score` the mean over the pixels that were void."""

    place: int  # of the image in the source
    file_name: str
    added: dict[int, int]
    void_before: int  # pixels
    void_after: int
    pixels: int
    score: float  # void that stays void counts as 0; 1 where nothing was void


def check_output(output: str | Path, report: str | Path | None = None) -> None:
    """Raises ValueError unless a folder does not exist, is empty, or holds an earlier run; also for a bad report."""
    if not (Path(output) / SETTINGS).is_file():
        check_new_folder(output)
    if report is not None:
        check_folder(report, "report")


class LabelFolder:
    """A folder with `images/`, `panoptic/` and, when all images are done, `panoptic.json`.

    Args:
        output: a folder that does not exist, is empty, or holds an earlier run with the same settings and images.
        pictures: the images.
        categories: of the labels.
    """

    def __init__(self, output: str | Path, pictures: Pictures, categories: Categories) -> None:
        self.output, self.pictures, self.categories = Path(output), pictures, categories
        paths = [pictures.path_of(index) for index in range(len(pictures))]
        names = [path.as_posix() for path in paths]
        maps = {str(PurePosixPath(name).with_suffix(MAP)).casefold() for name in names}
        is_outside = any(path.is_absolute() for path in paths) or any(path.is_file() for path in paths[:1])
        if len(maps) < len(names) or is_outside:  # files of the user, not of a dataset
            stems = unique_stems(paths, (MAP,), output=self.output)
            names = [stem + path.suffix for stem, path in zip(stems, paths, strict=True)]
        self._names = names

    def open(self, settings: Mapping[str, Any]) -> int:
        """Creates the folder, and returns the number of images that are done.

        Raises ValueError if the folder holds something else, results of other settings, or labels of other images.
        """
        check_output(self.output)
        (self.output / PROGRESS).mkdir(parents=True, exist_ok=True)
        claim_folder(self.output, settings)
        self._check_images()
        return sum(map(self.is_done, range(len(self.pictures))))

    def is_done(self, index: int) -> bool:
        """Returns whether the labels of an image exist."""
        return self._progress(index).is_file()

    def write(self, record: Mapping[str, Any], filled: Filled, before: np.ndarray) -> None:
        """Writes the files of one image, the one that marks it as done last.

        Args:
            record: has its `index`.
            filled: its labels.
            before: (H, W) ids of its annotation.
        """
        index = record["index"]
        stored = {**record, "image": self.pictures.stored(index)["image"], "segmentation": filled.ids}
        name, contents = picture_file(stored)
        path = PurePosixPath(self._names[index])
        name, map_name = (str(path.with_suffix(suffix)) for suffix in (PurePosixPath(name).suffix, MAP))
        height, width = filled.ids.shape
        void = [int(np.sum(ids == VOID_ID)) for ids in (before, filled.ids)]
        content = {
            "source": str(self.pictures.path_of(index)),
            "image": {"file_name": name, "width": width, "height": height},
            "map": map_name,
            "segments_info": [segment_entry(entry, self.categories) for entry in filled.segments_info],
            "added": {str(label): pixels for label, pixels in filled.added.items()},
            "void": void,
            "score": filled.score_sum / void[0] if void[0] else 1.0,
        }
        for folder, file, data in (
            ("images", name, contents),
            ("panoptic", map_name, map_file(stored)),
            (PROGRESS, self._progress(index).name, json.dumps(content, ensure_ascii=False)),
        ):
            write_file(path_inside(self.output / folder, file, name_of(stored)), data)

    def finish(self, info: Mapping[str, Any]) -> list[Labeled]:
        """Writes `panoptic.json` with the images in the order of the source, and returns what was added to each."""
        images, annotations, labeled = [], [], []
        for index, content in self._contents():
            image_id, image = self.pictures.stored(index)["image_id"], content["image"]
            images.append({"id": image_id, **image})
            annotations.append(
                {"image_id": image_id, "file_name": content["map"], "segments_info": content["segments_info"]}
            )
            added = {int(label): pixels for label, pixels in content["added"].items()}
            size = image["width"] * image["height"]
            before, after = content["void"]
            labeled.append(Labeled(index, image["file_name"], added, before, after, size, content["score"]))
        document = {"info": dict(info), "images": images, "annotations": annotations}
        document["categories"] = self.categories.to_coco()
        write_file(self.output / "panoptic.json", json.dumps(document, ensure_ascii=False))
        return labeled

    def read(self, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Returns the ids (H, W) and segments, with `label_id`, of an image that is done."""
        content = json.loads(self._progress(index).read_text(encoding="utf-8"))
        with Image.open(self.output / "panoptic" / content["map"]) as picture:
            ids = segmentation_ids(picture)
        labels = self.categories.label_ids
        return ids, [{**entry, "label_id": labels[entry["category_id"]]} for entry in content["segments_info"]]

    def _check_images(self) -> None:
        """Raises ValueError if the folder holds labels of images that are not those of this run."""
        advice = "choose another folder or remove it."
        own = {self._progress(index).name for index in range(len(self.pictures))}
        found = (path.name for path in (self.output / PROGRESS).glob("[!.]*.json"))
        if others := sorted(name for name in found if name not in own):
            count = counted(len(others), "image")
            first = others[0].removesuffix(".json").replace("%2F", "/")
            raise ValueError(
                f"`output` {str(self.output)!r} holds labels of {count} not in the source, first {first!r}: {advice}"
            )
        for index, content in self._contents():
            source = str(self.pictures.path_of(index))
            if content.get("source") != source:
                raise ValueError(
                    f"`output` {str(self.output)!r} holds labels of {self._names[index]!r} from "
                    f"{content.get('source')!r}, not from {source!r}: {advice}"
                )

    def _progress(self, index: int) -> Path:
        return self.output / PROGRESS / (self._names[index].replace("/", "%2F") + ".json")

    def _contents(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(self.pictures)):
            if self.is_done(index):
                yield index, json.loads(self._progress(index).read_text(encoding="utf-8"))
