"""The forms in which `predict` writes its results: files that each image has for itself, and a last step for all."""

import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..commands.frame import CommandError
from ..commands.predict import MAX_LISTED_IMAGES, output_stems
from ..data import write_parquet
from ..data.files import written_whole
from ..evaluation.journal import Journal
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .long_runs import journal_folder
from .loop import Batch
from .old_loading import model_categories
from .old_pictures import DatasetPictures, ImageFiles, file_name_of
from .old_prediction import Prediction, describe_segments, segments_of, write_prediction
from .results import write_coco_json, write_segmentation

MAPS = "panoptic"  # folder of the maps, and name of the JSON file beside it
PACKING = ".packing"  # folder of Parquet files that are not all written
MARK = "packed"  # file of the journal: number of images in the Parquet files
COCO_KEYS = ("id", "category_id", "isthing", "area", "bbox", "score")
RECORD_KEYS = ("id", "label_id", "area", "bbox", "score")


class Writer:
    """Makes the journal's entries of a batch, after it has written the images' files.

    Args:
        output: folder of the results; made if it does not exist.
        pictures: all images.
        model: knows its labels.
        processor: the model's.
        arguments: of `predict`.
    """

    def __init__(
        self,
        output: Path,
        pictures: ImageFiles | DatasetPictures,
        model: DetrPanopticForSegmentation,
        processor: DetrPanopticImageProcessor,
        arguments: Namespace,
    ) -> None:
        """Keep the parts."""
        self.output = output
        self.pictures = pictures
        self.config = model.config
        self.processor = processor
        self.arguments = arguments
        self.first: list[Prediction] = []
        """Those that this process made first, to be shown."""
        output.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: Batch, outputs: Any) -> Iterator[dict[str, Any]]:
        """An entry for each image."""
        arguments = self.arguments
        results = segments_of(outputs, self.processor, batch.sizes, task=arguments.task, threshold=arguments.threshold)
        for record, result in zip(batch.records, results, strict=True):
            segmentation = result["segmentation"].cpu().numpy()
            segments = describe_segments(segmentation, result["segments_info"], self.config)
            name = Path(file_name_of(record["file_name"], record["image_id"])).name
            prediction = Prediction(name, record["image"], segmentation, segments)
            if len(self.first) < MAX_LISTED_IMAGES:
                self.first.append(prediction)
            yield self.write(prediction, record)

    def write(self, prediction: Prediction, record: Any) -> dict[str, Any]:
        """Write the files of one image; returns what the last step needs of it."""
        raise NotImplementedError

    def finish(self, journal: Journal) -> None:
        """The last step, in one process."""
        raise NotImplementedError


class FileWriter(Writer):
    """Overlay, map and JSON file of each image. When all is done the journal goes: the next run starts anew."""

    def __init__(self, *parts: Any) -> None:
        """Find a name for each image."""
        super().__init__(*parts)
        self._stems = output_stems(self.pictures.paths, self.output)

    def write(self, prediction: Prediction, record: Any) -> dict[str, Any]:
        """Write the three files."""
        id2label: dict[Any, str] = self.config.id2label or {}
        write_prediction(prediction, self.output, self._stems[record["index"]], id2label)
        return {}

    def finish(self, journal: Journal) -> None:
        """Remove the journal."""
        journal.remove()


class CocoWriter(Writer):
    """COCO's panoptic format: a folder of maps, and one JSON file that also names the images."""

    def __init__(self, *parts: Any) -> None:
        """Make the folder."""
        super().__init__(*parts)
        (self.output / MAPS).mkdir(exist_ok=True)
        self.categories = model_categories(self.config)

    def write(self, prediction: Prediction, record: Any) -> dict[str, Any]:
        """Write the map."""
        file_name = f"{record['image_id']:012d}.png"
        write_segmentation(self.output / MAPS / file_name, prediction.segmentation)
        image = {"id": record["image_id"], "file_name": file_name_of(record["file_name"], record["image_id"])}
        height, width = prediction.segmentation.shape
        return {
            "image": {**image, "height": height, "width": width},
            "file_name": file_name,
            "segments_info": prediction.segments_info,
        }

    def finish(self, journal: Journal) -> None:
        """Write the JSON file."""
        annotations = (
            {
                "image_id": entry["image"]["id"],
                "file_name": entry["file_name"],
                "segments_info": [
                    {**{key: segment[key] for key in COCO_KEYS}, "iscrowd": 0} for segment in entry["segments_info"]
                ],
            }
            for entry in journal.entries()
        )
        images = (entry["image"] for entry in journal.entries())
        write_coco_json(
            self.output / f"{MAPS}.json", images=images, annotations=annotations, categories=self.categories.to_coco()
        )


class ParquetWriter(CocoWriter):
    """A dataset in Parquet files, pictures included; the maps are packed into it when all images are done."""

    def __init__(self, *parts: Any) -> None:
        """Refuse to replace what this program has not made."""
        super().__init__(*parts)
        if (self.output / "data").exists() and not (journal_folder(self.output) / MARK).exists():
            raise CommandError(f"`--output {self.output}` has a folder `data` that is no result of an earlier run.")

    def finish(self, journal: Journal) -> None:
        """Pack, unless an earlier run has; the maps stay as long as an image may still be added.

        The mark is written before the pack gets its name: a folder `data` with a mark is ours to replace.
        """
        data, packing, mark = self.output / "data", self.output / PACKING, journal.folder / MARK
        is_packed = data.is_dir() and mark.exists() and mark.read_text() == str(len(journal))
        shutil.rmtree(packing, ignore_errors=True)
        if len(journal) and not is_packed:
            write_parquet(packing, self._records(journal), self.categories, with_scores=True)
            if data.exists():
                data.rename(packing / "earlier")
            with written_whole(mark) as part:
                part.write_text(str(len(journal)))
            (packing / "data").rename(data)
            shutil.rmtree(packing)
        if not journal.failures:
            shutil.rmtree(self.output / MAPS)

    def _records(self, journal: Journal) -> Iterator[dict[str, Any]]:
        for entry in journal.entries():
            yield {
                **self.pictures.stored_picture(entry["index"]),
                "segmentation": {"path": str(self.output / MAPS / entry["file_name"]), "bytes": None},
                "segments_info": [
                    {**{key: segment[key] for key in RECORD_KEYS}, "iscrowd": 0} for segment in entry["segments_info"]
                ],
            }
