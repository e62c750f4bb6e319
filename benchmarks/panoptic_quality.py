r"""CPU time of panoptic quality per image: the official evaluator's steps and ours, with and without decoding PNG.

    python benchmarks/panoptic_quality.py --data FOLDER     # a folder in COCO panoptic layout

Truth are the annotations of the folder; predictions are made from them: moved by some pixels, some segments left out,
some with another class. The sums must agree before anything is timed.

The official steps are those of cocodataset/panopticapi (it is on GitHub, not on PyPI), written down plainly in
`official_steps`: the picture as 32-bit integers, ids, `np.unique` of the prediction and of the joint map in 64 bits, a
dictionary of pairs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from cases import describe_run, markdown_table, median_and_range
from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.evaluation.files import read_ids
from detr_panoptic.inference import write_segmentation

SHIFT = (5, 3)  # pixels down and right
LEFT_OUT, RENAMED = 9, 7  # one segment of so many
BASE = 256**3
VOID = 0
MILLISECONDS = 1000
Sums = dict[int, list[float]]  # by category id: summed IoU, tp, fp, fn
Annotation = Mapping[str, Any]


class Pair(NamedTuple):
    """Annotations and files of one image."""

    truth: Annotation
    prediction: Annotation
    files: tuple[Path, Path]


def main() -> None:
    """Prints a table."""
    arguments = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    arguments.add_argument("--data", type=Path, required=True, help="a folder in COCO panoptic layout")
    arguments.add_argument("--images", type=int, help="take only so many")
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pairs, categories = make_pairs(options.data, Path(folder), limit=options.images)
        print(describe_run("cpu"))
        print(compare(pairs, categories, repeats=options.repeats))


def make_pairs(data: Path, folder: Path, *, limit: int | None) -> tuple[list[Pair], Categories]:
    """Writes predictions made from the annotations of a dataset; returns pairs of both, and the categories."""
    truth = json.loads((data / "panoptic.json").read_text())
    categories = Categories.from_coco(truth["categories"])
    pairs = []
    for entry in truth["annotations"][:limit]:
        file = data / "panoptic" / entry["file_name"]
        ids, guess = perturb(read_ids(file), entry, list(categories.category_ids))
        write_segmentation(folder / entry["file_name"], ids)
        pairs.append(Pair(entry, guess, (file, folder / entry["file_name"])))
    return pairs, categories


def perturb(ids: np.ndarray, entry: Annotation, category_ids: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
    """A prediction that is right in part: the map and its annotation."""
    moved = np.roll(ids, SHIFT, axis=(0, 1)).astype(np.int64)
    segments = []
    for number, segment in enumerate(entry["segments_info"]):
        if number % LEFT_OUT == LEFT_OUT - 1:
            moved[moved == segment["id"]] = VOID
            continue
        category = segment["category_id"]
        if number % RENAMED == RENAMED - 1:
            category = category_ids[(category_ids.index(category) + 1) % len(category_ids)]
        segments.append({"id": segment["id"], "category_id": category})
    return moved, {"image_id": entry["image_id"], "file_name": entry["file_name"], "segments_info": segments}


def compare(pairs: list[Pair], categories: Categories, *, repeats: int) -> str:
    """Returns the CPU milliseconds per image of all contestants, in turns, after checking that their sums agree."""
    category_ids = list(categories.category_ids)
    colors = [[_colors(file) for file in pair.files] for pair in pairs]
    ids = [[read_ids(file) for file in pair.files] for pair in pairs]
    contestants: dict[str, Callable[[], Sums]] = {
        "official steps": partial(
            official, category_ids, pairs, lambda number: [_colors(file) for file in pairs[number].files]
        ),
        "ours": partial(ours, categories, pairs, lambda number: [read_ids(file) for file in pairs[number].files]),
        "official steps, PNG decoded before": partial(official, category_ids, pairs, colors.__getitem__),
        "ours, PNG decoded before": partial(ours, categories, pairs, ids.__getitem__),
        "decoding alone, through PIL": lambda: _decode(pairs, _colors),
        "decoding alone, ours": lambda: _decode(pairs, read_ids),
    }
    expected, *others = [run() for run in list(contestants.values())[:4]]
    for sums in others:
        for category_id in category_ids:
            np.testing.assert_allclose(sums[category_id], expected[category_id], rtol=1e-12, err_msg=str(category_id))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.process_time()  # of all threads: per core
            run()
            times[name].append(MILLISECONDS * (time.process_time() - start) / len(pairs))
    middle = [statistics.median(values) for values in times.values()]
    rows = [
        [name, median_and_range(values), f"{middle[number // 2 * 2] / middle[number]:.1f}"]
        for number, (name, values) in enumerate(times.items())
    ]
    matches, wrong, missed = (sum(row[column] for row in expected.values()) for column in (1, 2, 3))
    note = f"{len(pairs)} images, {matches} matches, {wrong} wrong predictions, {missed} missed segments\n\n"
    return note + markdown_table(["", "CPU ms per image: median (range)", "times as fast"], rows)


def ours(categories: Categories, pairs: list[Pair], maps_of: Callable[[int], Any]) -> Sums:
    """Sums of all images with this package."""
    quality = PanopticQuality(categories)
    for number, pair in enumerate(pairs):
        truth_map, guess_map = maps_of(number)
        quality.update({**pair.truth, "segmentation": truth_map}, {**pair.prediction, "segmentation": guess_map})
    rows = quality.compute().per_class.values()
    return {row.category_id: [row.sq * row.tp, row.tp, row.fp, row.fn] for row in rows}


def official(category_ids: list[int], pairs: list[Pair], maps_of: Callable[[int], Any]) -> Sums:
    """Sums of all images, step by step as the official evaluator."""
    sums: Sums = {category_id: [0.0, 0, 0, 0] for category_id in category_ids}
    for number, pair in enumerate(pairs):
        for category_id, column, value in official_steps(pair, *maps_of(number)):
            sums[category_id][column] += value
    return sums


def official_steps(  # noqa: C901  one function, as there
    pair: Pair, truth_rgb: np.ndarray, guess_rgb: np.ndarray
) -> Iterator[tuple[int, int, float]]:
    """One image's (category id, column of the sums, what to add), from colors (H, W, 3) uint32."""
    truth_map, guess_map = (
        rgb[..., 0] + 256 * rgb[..., 1] + 256 * 256 * rgb[..., 2] for rgb in (truth_rgb, guess_rgb)
    )
    truth = {segment["id"]: segment for segment in pair.truth["segments_info"]}
    guess = {segment["id"]: dict(segment) for segment in pair.prediction["segments_info"]}
    for label, count in zip(*np.unique(guess_map, return_counts=True), strict=True):
        if label in guess:
            guess[label]["area"] = count
    overlaps = {}
    joint = truth_map.astype(np.uint64) * BASE + guess_map.astype(np.uint64)
    for label, count in zip(*np.unique(joint, return_counts=True), strict=True):
        overlaps[label // BASE, label % BASE] = count
    matched_truth, matched_guess = set(), set()
    for (i, j), overlap in overlaps.items():
        if i not in truth or j not in guess or truth[i]["iscrowd"] == 1:
            continue
        category_id = truth[i]["category_id"]
        if category_id != guess[j]["category_id"]:
            continue
        iou = overlap / (guess[j]["area"] + truth[i]["area"] - overlap - overlaps.get((VOID, j), 0))
        if iou > 0.5:
            yield category_id, 0, iou
            yield category_id, 1, 1
            matched_truth.add(i)
            matched_guess.add(j)
    crowds = {}
    for i, segment in truth.items():
        if i not in matched_truth and segment["iscrowd"] == 1:
            crowds[segment["category_id"]] = i
        elif i not in matched_truth:
            yield segment["category_id"], 3, 1
    for j, segment in guess.items():
        excused = overlaps.get((VOID, j), 0) + overlaps.get((crowds.get(segment["category_id"], -1), j), 0)
        if j not in matched_guess and excused / segment["area"] <= 0.5:
            yield segment["category_id"], 2, 1


def _decode(pairs: list[Pair], read: Callable[[Path], np.ndarray]) -> Sums:
    for pair in pairs:
        for file in pair.files:
            read(file)
    return {}


def _colors(file: Path) -> np.ndarray:
    """(H, W, 3) uint32, as the official evaluator opens a map."""
    with Image.open(file) as image:
        return np.array(image, dtype=np.uint32)


if __name__ == "__main__":
    main()
