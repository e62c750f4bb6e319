"""Images per second and core from files to batches, beside the limit: what Pillow takes to decode the files alone.

    python benchmarks/loading.py --data FOLDER --limit 100

FOLDER is a dataset as `detr-panoptic train --data` takes it; without it, generated scenes of 480x640 are written as
JPEG and PNG and read again. One thread; times are the process' own (CPU), so what else the machine does counts little.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from cases import describe_run, markdown_table
from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data import LargeScaleJitter, PanopticCollator, RandomAugmentation, read_panoptic, segmentation_ids
from detr_panoptic.data.augmentation import build_augmentation, sample_seed
from detr_panoptic.data.records import Record, panoptic_features
from detr_panoptic.data.target_batch import map_target
from detr_panoptic.image_reading import image_to_tensor
from detr_panoptic.inference.loop import make_batch, plan_batches
from detr_panoptic.inference.pictures import open_pictures
from detr_panoptic.scenes import make_scene

HEIGHT, WIDTH = 480, 640
JPEG_QUALITY = 92
REPEATS = 7


def main() -> None:
    """Prints a table for prediction, one for training, and the parts of both."""
    arguments = _arguments()
    torch.set_num_threads(1)
    print(describe_run("cpu"))
    with _dataset(arguments.data, arguments.limit) as dataset:
        files = [paths(dataset, column) for column in ("image", "segmentation")]
        records = list(dataset)
        jpeg, png = (milliseconds(decoded, names) for names in files)
        print(f"{len(records)} images of {_mean_size(records)} on average, {arguments.batch} in a batch\n")
        print(f"### Prediction: decoding takes {jpeg:.2f} ms\n\n{prediction(files[0], jpeg, arguments.batch)}")
        print(f"### Training: decoding takes {jpeg + png:.2f} ms\n")
        print(training(dataset, records, jpeg + png, arguments.batch))
        print(f"### Parts\n\n{parts(records, jpeg, png)}")


def prediction(names: Sequence[str], decoding: float, batch: int) -> str:
    """Returns a table with a row for each size of the input."""
    pictures = open_pictures(names)
    plan = [i for indices in plan_batches(pictures, batch) for i in indices]  # similar shapes side by side
    reading = milliseconds(pictures.__getitem__, range(len(pictures)))
    records, rows = [pictures[i] for i in plan], []
    for title, processor in (("own size", _processor(do_resize=False)), ("800x1333", _processor())):
        for size in (1, batch):
            batching = milliseconds(partial(make_batch, processor), in_batches(records, size), len(records))
            rows.append([f"{title}, {size} in a batch", *_cells(reading, batching, decoding=decoding)])
    return markdown_table(["", "read", "batch", *SUMS], rows)


def training(dataset: Dataset, records: Sequence[Record], decoding: float, batch: int) -> str:
    """Returns a table with a row for each augmentation."""
    reading = milliseconds(dataset.__getitem__, range(len(dataset)))
    collate, rows = PanopticCollator(_processor(do_resize=False), as_maps=True), []
    for title, augmentation in cases().items():

        def augment(record: Record, augmentation: Any = augmentation) -> Record:
            return augmentation(record, sample_seed(0, 0, record["image_id"]))

        augmented = [augment(record) for record in records]
        steps = milliseconds(augment, records), milliseconds(collate, in_batches(augmented, batch), len(records))
        rows.append([title, _mean_size(augmented), *_cells(reading, *steps, decoding=decoding)])
    return markdown_table(["", "size", "read", "augment", "batch and targets", *SUMS], rows)


def parts(records: Sequence[Record], jpeg: float, png: float) -> str:
    """Returns the time of each part that no path can do without, for the images' own size and the paper's."""
    pixels = [image_to_tensor(record["image"]) for record in records]
    resize = partial(_processor(do_rescale=False, do_normalize=False, do_pad=False), return_tensors="pt")
    resized = [resize(image)["pixel_values"][0] for image in pixels]
    normalize = partial(_processor(do_resize=False, do_pad=False), return_tensors="pt")
    settings = {"format": None, "category_ids": None}
    rows = [
        ["decode the JPEG", f"{jpeg:.2f}", ""],
        ["an array of the pixels", f"{milliseconds(image_to_tensor, [r['image'] for r in records]):.2f}", ""],
        ["resize", "", f"{milliseconds(resize, pixels):.2f}"],
        ["to floats, normalize", *(f"{milliseconds(normalize, images):.2f}" for images in (pixels, resized))],
        ["decode the PNG of the map", f"{png:.2f}", ""],
        ["its ids", f"{milliseconds(segmentation_ids, [r['segmentation'] for r in records]):.2f}", ""],
        ["targets and map, of ids"],
    ]
    annotations = [record | {"segmentation": segmentation_ids(record["segmentation"])} for record in records]
    for sizes in (pixels, resized):
        pairs = [*zip(annotations, [image.shape[1:] for image in sizes], strict=True)]
        rows[-1].append(f"{milliseconds(lambda pair: map_target(pair[0], pair[1], settings), pairs):.2f}")
    return markdown_table(["ms per image", "own size", "800x1333"], rows)


def cases() -> dict[str, Any]:
    """The augmentations, at the photographs' own size and at the paper's."""
    sides: Any = {"short_side": HEIGHT, "long_side": WIDTH}
    return {
        f"flip, {HEIGHT}x{WIDTH}": build_augmentation("flip", **sides),
        f"paper's in proportion to {HEIGHT}x{WIDTH}": build_augmentation("paper", **sides),
        f"large-scale jitter, {WIDTH}": LargeScaleJitter(WIDTH),
        "paper's, 800x1333": RandomAugmentation(),
        "large-scale jitter, 1024": LargeScaleJitter(),
    }


def milliseconds(step: Callable[[Any], object], items: Sequence[Any], count: int | None = None) -> float:
    """CPU time of a step for each of `count` images: the median of some passes over all items, after one."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        for item in items:
            step(item)  # the result is dropped, as a loader's is once it has been sent
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:]) / (count or len(items))


def decoded(name: str) -> None:
    """Decodes a file."""
    Image.open(name).load()


def paths(dataset: Dataset, column: str) -> list[str]:
    """Returns the files of a column."""
    return [picture["path"] for picture in dataset.cast_column(column, ImageFeature(decode=False))[column]]


def in_batches(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """Returns the records in batches."""
    return [records[start : start + size] for start in range(0, len(records), size)]


SUMS = ("sum, ms", "images/s and core", "times decoding")


def _cells(*steps: float, decoding: float) -> list[str]:
    total = sum(steps)
    return [*(f"{step:.2f}" for step in steps), f"{total:.2f}", f"{1000 / total:.0f}", f"{total / decoding:.2f}"]


def _processor(**settings: Any) -> DetrPanopticImageProcessor:
    return DetrPanopticImageProcessor(**settings)


@contextmanager
def _dataset(source: str | None, limit: int) -> Iterator[Dataset]:
    if source is not None:
        yield read_panoptic(source, limit=limit).records
        return
    columns: dict[str, list[object]] = {name: [] for name in panoptic_features()}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(limit):
            scene = make_scene(seed, height=HEIGHT, width=WIDTH)
            files = {"image": Path(folder, f"{seed}.jpg"), "segmentation": Path(folder, f"{seed}.png")}
            scene["image"].save(files["image"], quality=JPEG_QUALITY)
            scene["segmentation"].save(files["segmentation"])
            for name, values in columns.items():
                values.append(str(files[name]) if name in files else scene[name])
        yield Dataset.from_dict(columns, features=panoptic_features())


def _mean_size(records: Sequence[Record]) -> str:
    width, height = np.mean([record["image"].size for record in records], axis=0)
    return f"{height:.0f}x{width:.0f}"


def _arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", metavar="FOLDER", help="instead of scenes")
    result.add_argument("--limit", type=int, default=48, metavar="N", help="images")
    result.add_argument("--batch", type=int, default=4, metavar="B", help="images per batch")
    return result.parse_args()


if __name__ == "__main__":
    main()
