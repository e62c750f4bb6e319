r"""From picture to merged map in every runtime, beside transformers' DETR, Mask2Former, EoMT; what int8 costs in PQ.

    python benchmarks/runtimes.py time --folder runs/runtimes --sizes 800x1066 480x640
    python benchmarks/runtimes.py quality --folder runs/runtimes --scenes 300

`time` gives R50 the same random weights everywhere, checks that float32 results agree, and runs all in turns in one
process. `quality` measures the bundled checkpoint on unseen scenes.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from PIL import Image
from torch import nn
from transformers import DetrForSegmentation, DetrImageProcessor

from cases import (
    bias_that_keeps,
    describe_run,
    markdown_table,
    median_and_range,
    our_model,
    parser,
    rivals,
    time_in_turns,
    transformers_model,
)
from detr_panoptic import DetrPanopticImageProcessor, Predictor, evaluate, quantize
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticData
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset

KEPT = 20  # of R50's 100 queries
TOLERANCE = 1e-4  # of logits and masks in float32
THEIRS = "transformers, DETR"
UNSEEN_SEED = 77_000_000  # not a seed of the training scenes
PAUSE = 0.5  # seconds: each library has threads of its own, which wait for more work at full speed
WAYS = (
    *(("torch", dtype) for dtype in ("float32", "bfloat16")),
    *(("openvino", dtype) for dtype in ("float32", "bfloat16", "int8")),
    *(("onnxruntime", dtype) for dtype in ("float32", "int8")),
)


def main() -> None:
    """Runs one part."""
    arguments = parser(str(__doc__).partition("\n")[0], size="800x1066")
    arguments.add_argument("part", choices=("time", "quality"))
    arguments.add_argument("--folder", type=Path, required=True, help="where the models are written")
    arguments.add_argument("--scenes", type=int, default=300, help="scenes to measure PQ on")
    arguments.add_argument("--without-transformers", action="store_true", help="leave out the slow contestant")
    arguments.add_argument("--cpu-seconds", action="store_true", help="of all threads, for a machine that others use")
    options = arguments.parse_args()
    torch.set_grad_enabled(False)
    options.folder /= "benchmark"
    shutil.rmtree(options.folder, ignore_errors=True)
    print(describe_run("cpu") + f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__}\n")
    {"time": compare_times, "quality": compare_quality}[options.part](options)


def compare_times(arguments: argparse.Namespace) -> None:
    """Prints a table per size."""
    theirs = transformers_model().eval()
    for size in arguments.sizes:
        folder = arguments.folder / f"{size[0]}x{size[1]}"
        print(f"### From a picture to its map, {size[0]}x{size[1]}, {KEPT} kept\n")
        print(times_of(theirs, folder, size, arguments))


def times_of(theirs: DetrForSegmentation, folder: Path, size: tuple[int, int], arguments: argparse.Namespace) -> str:
    """Returns a table with a row for each contestant."""
    picture = smooth_picture(size)
    write_models(theirs, folder, size, picture)
    predictors = {
        f"{runtime}, {dtype}": Predictor.from_pretrained(
            folder / ("int8" if dtype == "int8" else "float"), runtime=runtime, dtype=dtype, device="cpu"
        )
        for runtime, dtype in WAYS
    }
    first = predictors["torch, float32"]
    differences = {name: difference(predictor, first, picture) for name, predictor in predictors.items()}
    for name, (logits, _) in differences.items():
        if "float32" in name and logits > TOLERANCE:
            raise ValueError(f"{name} differs by {logits}.")
    contestants: dict[str, Callable[[], Any]] = {
        name: partial(predictor, picture, threshold=0.0) for name, predictor in predictors.items()
    }
    if not arguments.without_transformers:
        contestants[THEIRS] = partial(run_transformers, theirs, DetrImageProcessor(size=size_of(size)), picture, 0.0)
        for name, (model, _, processor) in rivals(theirs, size).items():
            scores = model(**processor(picture, return_tensors="pt")).class_queries_logits.softmax(-1).amax(-1)
            threshold = scores.flatten().sort(descending=True).values[KEPT].item()  # merging depends on their number
            contestants[name] = partial(run_transformers, model, processor, picture, threshold)
    times = time_in_turns(
        contestants,
        arguments.repeats,
        "cpu",
        pause=PAUSE,
        clock=time.process_time if arguments.cpu_seconds else time.perf_counter,
    )
    first_time = statistics.median(times[THEIRS if THEIRS in times else next(iter(times))])
    rows = []
    for name, values in times.items():
        logits, pixels = differences.get(name, (float("nan"), float("nan")))
        factor = f"{first_time / statistics.median(values):.1f}"
        rows.append([name, median_and_range(values), factor, f"{logits:.1e}", f"{100 * pixels:.2f}"])
    base = "transformers' DETR" if THEIRS in times else "PyTorch in float32"
    header = ["", "seconds: median (range)", f"times as fast as {base}", "difference of logits", "% of pixels"]
    return markdown_table(header, rows)


def write_models(theirs: DetrForSegmentation, folder: Path, size: tuple[int, int], picture: Image.Image) -> None:
    """Writes R50 with the weights of transformers' model, as it is and in int8."""
    model = our_model(theirs).eval()
    processor = DetrPanopticImageProcessor.for_model(model.config, size=size_of(size))
    inputs = processor(picture, return_tensors="pt")
    shift = bias_that_keeps(model(**inputs, mask_queries=0).logits, KEPT)
    model.class_head.bias[-1] += shift
    model.config.mask_queries = KEPT  # rounding must not change the work
    # `quantize` measures PQ on scenes, so some labels have their names. It is close to 0 with random weights.
    names = dict(enumerate(SCENE_CATEGORIES.names))
    model.config.id2label = {label: names.get(label, f"other {label}") for label in model.config.id2label}
    model.save_pretrained(folder / "float")
    processor.save_pretrained(folder / "float")
    picture.save(folder / "picture.png")
    quantize(folder / "float", "scenes", folder / "int8", calibration=folder / "picture.png", limit=1)


def difference(predictor: Predictor, first: Predictor, picture: Image.Image) -> tuple[float, float]:
    """Returns the largest difference of logits, and the share of pixels with another label."""
    inputs = first.processor(picture, return_tensors="pt")
    found, expected = (
        (each.network or each.model)(**inputs, mask_queries=None).logits.float() for each in (predictor, first)
    )
    maps = []
    for each in (predictor, first):
        prediction = each(picture, threshold=0.0)
        labels = np.array([-1, *(segment.label_id for segment in prediction.segments)])
        maps.append(labels[prediction.segmentation])
    return (found - expected).abs().max().item(), float((maps[0] != maps[1]).mean())


def run_transformers(model: nn.Module, processor: Any, picture: Image.Image, threshold: float) -> Any:
    """Segments a picture as transformers' documentation does."""
    outputs = model(**processor(picture, return_tensors="pt"))
    sizes = [picture.size[::-1]]
    return processor.post_process_panoptic_segmentation(outputs, threshold=threshold, target_sizes=sizes)


def size_of(size: tuple[int, int]) -> dict[str, int]:
    """Returns the size as image processors take it."""
    return {"shortest_edge": min(size), "longest_edge": 2 * max(size)}


def smooth_picture(size: tuple[int, int]) -> Image.Image:
    """Returns a picture of 480 rows with areas, of the shape of `size`."""
    areas = np.random.default_rng(0).integers(256, size=(9, 11, 3), dtype=np.uint8)
    return Image.fromarray(areas).resize((round(480 * size[1] / size[0]), 480), Image.Resampling.BICUBIC)


def compare_quality(arguments: argparse.Namespace) -> None:
    """Prints the PQ of the bundled checkpoint on unseen scenes in every runtime."""
    scenes = PanopticData(scenes_dataset(arguments.scenes, seed=UNSEEN_SEED), SCENE_CATEGORIES)
    int8 = arguments.folder / "int8"
    quantize(BUNDLED, scenes, int8, calibration="scenes", limit=1)
    rows = []
    for runtime, dtype in WAYS:
        options: Any = {
            "runtime": runtime,
            "dtype": dtype,
            "device": "cpu",
            "average_precision": False,
            "progress": False,
        }
        quality = evaluate(str(int8 if dtype == "int8" else BUNDLED), scenes, **options)
        values = [f"{100 * value:.2f}" for value in (quality.pq, quality.things.pq, quality.stuff.pq)]
        rows.append([f"{runtime}, {dtype}", *values])
    print(f"{arguments.scenes} scenes of 256x256\n\n{markdown_table(['', 'PQ', 'things', 'stuff'], rows)}")


if __name__ == "__main__":
    main()
