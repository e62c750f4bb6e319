"""Folders of predictions: what exists is done, and all of it can be read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ..data.categories import Categories
from ..data.files import write_file
from ..data.plain_text import counted
from ..data.writing import write_parquet
from ..runtimes.cache import hash_of
from .pictures import Pictures, unique_stems
from .prediction import JSON, MAP, OVERLAY, Prediction, coco_annotation

Layout = Literal["files", "coco", "parquet"]

SETTINGS = ".settings.json"
MAPS, SEGMENTS = "panoptic", "segments"  # folders of the layouts "coco" and "parquet"
SHOWN = 5  # predictions that `print` lists
RECORD_KEYS = ("id", "label_id", "area", "bbox", "score")


class PredictionFolder:
    """The predictions of a source of images, as files. `layout` is the argument `to` of `Predictor.predict`.

    Iterating yields each record with its prediction, in the order of the images. `failures` are messages about images
    that could not be read, and `num_earlier` is the number of predictions that were there before.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic import Predictor
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> folder = Predictor.from_pretrained(BUNDLED).predict("scenes", tempfile.mkdtemp(), limit=2, progress=False)
        >>> [prediction.name for record, prediction in folder], folder.failures
        (['scene_0.png', 'scene_1.png'], [])
    """

    def __init__(
        self, output: str | Path, pictures: Pictures, categories: Categories, *, layout: Layout = "files"
    ) -> None:
        self.output = Path(output)
        self.pictures, self.categories, self.layout = pictures, categories, layout
        self.folder = self.output / ("" if layout == "files" else SEGMENTS)
        self.maps = self.output / ("" if layout == "files" else MAPS)
        paths = [pictures.path_of(index) for index in range(len(pictures))]
        self._stems = unique_stems(paths, (OVERLAY, MAP, JSON), output=self.output)
        self.failures: list[str] = []
        self.num_earlier = 0
        self._shown: list[str] = []

    def open(self, settings: Mapping[str, Any]) -> None:
        """Creates the folder; ValueError if it has other files, results of other settings, or of other images."""
        replaced = {"files": (), "coco": (MAPS, f"{MAPS}.json"), "parquet": ("data",)}[self.layout]
        if not (self.output / SETTINGS).is_file() and (taken := [n for n in replaced if (self.output / n).exists()]):
            raise ValueError(f"`output` must not have {taken[0]!r}, which the results would replace: {self.output}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        claim_folder(self.output, {**settings, "to": self.layout})
        for index, content in self._contents():
            size = self.pictures.bytes_of(index)
            if content.get("image_bytes", size) != size:  # earlier versions did not write it
                raise ValueError(
                    f"`output` {str(self.output)!r} holds a result of another image of the name {content['image']!r}: "
                    "choose another folder or remove it."
                )
            self.num_earlier += 1

    def is_done(self, index: int) -> bool:
        """Returns whether the prediction of an image exists."""
        return self._file(index).is_file()

    def write(self, record: Mapping[str, Any], prediction: Prediction, *, overlay: bool) -> None:
        """Writes the files of one image. The JSON file is the last, as it marks the image as done."""
        stem, size = self._stems[record["index"]], self.pictures.bytes_of(record["index"])
        source = {"image_id": record["image_id"], "image_bytes": size}
        prediction.save(self.folder, stem, maps=self.maps, overlay=overlay, source=source)
        if len(self._shown) < SHOWN:
            self._shown.append(str(prediction))

    def finish(self) -> None:
        """Writes the files that list all images, for the layouts "coco" and "parquet"."""
        if self.layout == "coco":
            self._write_coco()
        elif self.layout == "parquet" and len(self):
            with TemporaryDirectory(prefix=".packing_", dir=self.output) as packing:
                write_parquet(packing, self._records(), self.categories, with_scores=True)
                shutil.rmtree(self.output / "data", ignore_errors=True)
                Path(packing, "data").rename(self.output / "data")

    def _write_coco(self) -> None:
        images, annotations = [], []
        for index, content in self._contents():
            name = Path(content["image"]).name if Path(content["image"]).is_absolute() else content["image"]
            size = {"width": content["width"], "height": content["height"]}
            image_id = self.pictures.id_of(index)  # of files it is their place, which a new file changes
            images.append({"id": image_id, "file_name": name, **size})
            file_name = f"{self._stems[index]}{MAP}"
            annotations.append(coco_annotation(content["segments_info"], image_id, file_name))
        content = {"images": images, "annotations": annotations, "categories": self.categories.to_coco()}
        write_file(self.output / f"{MAPS}.json", json.dumps(content))

    def __len__(self) -> int:
        """Returns the number of predictions."""
        return sum(map(self.is_done, range(len(self.pictures))))

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], Prediction]]:
        """Yields each record with its prediction."""
        for index, content in self._contents():
            record = self.pictures[index]
            prediction = Prediction.load(record["image"], content, self.maps, self.categories.id2label)
            yield {**record, "index": index}, prediction

    def __str__(self) -> str:
        """Returns the first predictions and the number of all."""
        lines, count = list(self._shown), len(self)  # counting looks at every file
        if self._shown and count > len(self._shown):
            lines.append(f"… and {count - len(self._shown)} more")
        earlier = f", {self.num_earlier} of them from earlier runs" if self.num_earlier else ""
        skipped = f", {len(self.failures)} could not be read" if self.failures else ""
        lines.append(f"{counted(count, 'image')}{earlier}{skipped}; results in {self.output}")
        return "\n".join(lines)

    def _file(self, index: int) -> Path:
        return self.folder / f"{self._stems[index]}{JSON}"

    def _contents(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(self.pictures)):
            if self.is_done(index):
                yield index, json.loads(self._file(index).read_text(encoding="utf-8"))

    def _records(self) -> Iterable[dict[str, Any]]:
        for index, content in self._contents():
            ids = {"path": str(self.maps / content["segmentation"]), "bytes": None}
            segments = [{key: s[key] for key in RECORD_KEYS} | {"iscrowd": 0} for s in content["segments_info"]]
            yield {**self.pictures.stored(index), "segmentation": ids, "segments_info": segments}


def claim_folder(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings into a folder; ValueError if it has results of others, with the first one that differs."""
    file = output / SETTINGS
    expected = json.loads(json.dumps(settings))
    if file.is_file():
        found = json.loads(file.read_text())
        for name, value in expected.items():
            if found.get(name) != value:
                raise ValueError(
                    f"`output` {str(output)!r} holds results with `{name}` {found.get(name)!r}, not {value!r}: choose "
                    "another folder or remove it."
                )
    else:
        write_file(file, json.dumps(expected))


def fingerprint(model: Any, processor: Any) -> str:
    """Returns a hash of all weights, labels and settings of the image processor."""
    names = ("id2label", "stuff_label_ids", "category_ids")
    values = (*(getattr(model.config, name, None) for name in names), processor.to_dict())
    return hash_of(model, json.dumps(values, sort_keys=True, default=str))
