"""Images per second and core from files to batches: decoding, augmentation, and the image processor with its targets.

    python benchmarks/loading.py --data FOLDER --limit 100

FOLDER is a dataset as `detr-panoptic train --data` takes it; without it, generated scenes of 480x640 are written as
JPEG and PNG and read again. One thread; times are the process' own (CPU), so what else the machine does counts little.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from cases import describe_run, markdown_table
from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data import LargeScaleJitter, PanopticCollator, RandomAugmentation, read_panoptic
from detr_panoptic.data.augmentation import (
    PAPER_CROP_RANGE,
    PAPER_CROP_SCALES,
    PAPER_SCALES,
    Augmentation,
    sample_seed,
)
from detr_panoptic.data.records import Record, panoptic_features
from detr_panoptic.scenes import make_scene

Result = TypeVar("Result")
HEIGHT, WIDTH = 480, 640
JPEG_QUALITY = 92


def main() -> None:
    """Prints a table: a row per augmentation, a column per step."""
    arguments = _arguments()
    torch.set_num_threads(1)
    with _dataset(arguments.data, arguments.limit) as dataset:
        print(describe_run("cpu"))
        decoding = [decode(dataset, column) for column in ("image", "segmentation")]
        records, reading = milliseconds(lambda: list(dataset), len(dataset))
        print(f"{len(dataset)} images of {_mean_size(record['image'] for record in records)} on average\n")
        print(f"JPEG {decoding[0]:.1f} ms, PNG of the map {decoding[1]:.1f} ms, read as records {reading:.1f} ms\n")
        rows = [row(name, augmentation, records, reading, arguments.batch) for name, augmentation in cases().items()]
    header = ["", "size", "read", "augment", "batch and targets", "sum, ms", "images/s and core", "decoding's share"]
    print(markdown_table(header, [[*cells, f"{reading / total:.0%}"] for cells, total in rows]))


def cases() -> dict[str, Augmentation]:
    """The augmentations, at the photographs' own size and at the paper's."""
    ratio = HEIGHT / max(PAPER_SCALES)
    small = RandomAugmentation(
        [round(ratio * scale) for scale in PAPER_SCALES],
        max_size=WIDTH,
        crop_scales=[round(ratio * scale) for scale in PAPER_CROP_SCALES],
        crop_range=(round(ratio * PAPER_CROP_RANGE[0]), round(ratio * PAPER_CROP_RANGE[1])),
    )
    flip = RandomAugmentation((HEIGHT,), max_size=WIDTH, crop_probability=0)
    return {
        f"flip, {HEIGHT}x{WIDTH}": flip,
        f"paper's in proportion to {HEIGHT}x{WIDTH}": small,
        f"large-scale jitter, {WIDTH}": LargeScaleJitter(WIDTH),
        "paper's, 800x1333": RandomAugmentation(),
        "large-scale jitter, 1024": LargeScaleJitter(),
    }


def row(
    name: str, augmentation: Augmentation, records: Sequence[Record], reading: float, batch: int
) -> tuple[list[str], float]:
    """Cells of one augmentation, and the milliseconds per image of all steps."""

    def augment() -> list[Record]:
        return [augmentation(record, sample_seed(0, 0, record["image_id"])) for record in records]

    collate = PanopticCollator(DetrPanopticImageProcessor(do_resize=False), as_maps=True)

    def make_batches() -> None:
        for start in range(0, len(augmented), batch):
            collate(augmented[start : start + batch])

    augmented, augmenting = milliseconds(augment, len(records))
    _, batching = milliseconds(make_batches, len(records))
    total = reading + augmenting + batching
    steps = [f"{value:.1f}" for value in (reading, augmenting, batching, total)]
    return [name, _mean_size(record["image"] for record in augmented), *steps, f"{1000 / total:.0f}"], total


def decode(dataset: Dataset, column: str) -> float:
    """Milliseconds per picture that decoding alone takes."""
    encoded = dataset.cast_column(column, ImageFeature(decode=False))[column]
    paths = [picture["path"] for picture in encoded]

    def read() -> None:
        for path in paths:
            Image.open(path).load()

    return milliseconds(read, len(paths))[1]


def milliseconds(run: Callable[[], Result], count: int) -> tuple[Result, float]:
    """The result of the second of two runs, and its CPU time per image."""
    run()
    start = time.process_time()
    result = run()
    return result, 1000 * (time.process_time() - start) / count


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


def _mean_size(pictures: Iterator[Image.Image]) -> str:
    width, height = np.mean([picture.size for picture in pictures], axis=0)
    return f"{height:.0f}x{width:.0f}"


def _arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", metavar="FOLDER", help="instead of scenes")
    result.add_argument("--limit", type=int, default=48, metavar="N", help="images")
    result.add_argument("--batch", type=int, default=4, metavar="B", help="images per batch")
    return result.parse_args()


if __name__ == "__main__":
    main()
