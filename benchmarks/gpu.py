"""The GPU rows of docs/performance.md in about ten minutes, beside transformers' DETR, Mask2Former and EoMT.

python benchmarks/gpu.py
python benchmarks/gpu.py --device cpu --sizes 64x96 --training-size 64x96 --batch 2 --repeats 1  # does it run?

Rows: one image, a batch, preprocessing, from picture to segments, a training step; times when the CPU waits, by
`torch.cuda.set_sync_debug_mode`; memory of each captured shape.
"""

import argparse
import copy
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from cases import (
    bias_that_keeps,
    describe_run,
    freeze_dropout,
    markdown_table,
    our_model,
    parser,
    random_images,
    rivals,
    time_in_turns,
    transformers_model,
)
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor, Predictor
from detr_panoptic.inference.cuda_graphs import CudaGraphs
from training_step import check_losses, rival_batch, training_batch, training_step

KEPT = 20  # queries per image that see an object
THEIRS = "transformers"


def main() -> None:
    """Prints a table per question."""
    arguments = _arguments()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    torch.backends.cudnn.benchmark = True  # few shapes, many runs
    print(describe_run(arguments.device))
    theirs = transformers_model().eval()
    ours = our_model(theirs).eval()
    with torch.no_grad():
        for size in arguments.sizes:
            model = kept_model(ours, size).to(arguments.device)
            predictions(theirs.to(arguments.device), model, size, arguments)
            pictures(model, size, arguments)
        memory_of_shapes(kept_model(ours, arguments.sizes[0]).to(arguments.device), arguments)
    theirs.cpu()
    training(arguments)


def kept_model(ours: DetrPanopticForSegmentation, size: tuple[int, int]) -> DetrPanopticForSegmentation:
    """Returns a copy of the model that keeps `KEPT` queries of a random image."""
    model = copy.deepcopy(ours)
    with torch.no_grad():
        model.class_head.bias[-1] += bias_that_keeps(model(**random_images(1, size), mask_queries=0).logits, KEPT)
    return model


def ways(model: DetrPanopticForSegmentation, device: str) -> dict[str, Callable]:
    """Returns the ways to run a model."""
    found: dict[str, Callable] = {"": model, ", 20 masks": partial(model, mask_queries=KEPT)}
    if device.startswith("cuda"):
        found |= {", CUDA graph": CudaGraphs(model)}
        found |= {", compiled": partial(torch.compile(model, mode="reduce-overhead"), mask_queries=KEPT)}
    return found


def predictions(
    theirs: Any,
    ours: DetrPanopticForSegmentation,
    size: tuple[int, int],
    arguments: argparse.Namespace,
) -> None:
    """Times forwards of one image and of a batch."""
    for batch in (1, arguments.batch):
        images = {name: value.to(arguments.device) for name, value in random_images(batch, size).items()}
        runs: dict[str, Callable[[], object]] = {}
        if batch == 1:
            half_images = images | {"pixel_values": images["pixel_values"].bfloat16()}
            runs[THEIRS] = partial(theirs, **images)
            for name, (model, own_size, _) in rivals(theirs, size).items():
                pixels = random_images(batch, own_size)["pixel_values"].to(arguments.device)
                runs[name] = partial(model.to(arguments.device), pixel_values=pixels)
            runs["transformers, bfloat16"] = partial(copy.deepcopy(theirs).bfloat16(), **half_images)
        for dtype in (torch.float32, torch.bfloat16):
            pixels = images["pixel_values"].to(dtype)
            name = f"ours, {str(dtype).removeprefix('torch.')}"
            for way, run in ways(copy.deepcopy(ours).to(dtype), arguments.device).items():
                runs[name + way] = partial(run, pixels)
        report(f"{batch} x {size[0]}x{size[1]}, {KEPT} kept", runs, batch, arguments)


def pictures(model: DetrPanopticForSegmentation, size: tuple[int, int], arguments: argparse.Namespace) -> None:
    """Times preprocessing on either side, merging, and the whole way from a picture to segments."""
    height, width = size
    shape = (max(64, round(0.6 * height)), max(64, round(0.6 * width)), 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
    processor = DetrPanopticImageProcessor(size={"shortest_edge": min(size), "longest_edge": 2 * max(size)})
    model = copy.deepcopy(model).bfloat16()
    inputs = processor(picture, return_tensors="pt").to(arguments.device, torch.bfloat16)
    outputs, target = model(inputs["pixel_values"]), [picture.size[::-1]]
    predictor = Predictor(model, processor)
    runs: dict[str, Callable[[], object]] = {
        "preprocessing on the CPU": lambda: processor(picture, return_tensors="pt").to(arguments.device),
        "preprocessing on the device": lambda: processor(picture, return_tensors="pt", device=arguments.device),
        "merging": lambda: processor.post_process_panoptic_segmentation(outputs, 0.0, target_sizes=target),
        "picture to segments": lambda: predictor(picture, threshold=0.0),
    }
    if arguments.device.startswith("cuda"):
        graphs = Predictor(model, processor, network=CudaGraphs(model))
        runs["picture to segments, CUDA graph"] = lambda: graphs(picture, threshold=0.0)
    report(f"Around the model, {height}x{width}, bfloat16", runs, 1, arguments)


def training(arguments: argparse.Namespace) -> None:
    """Times training steps of both models, after checking that their losses are equal."""
    theirs = transformers_model(auxiliary_loss=False)
    models: dict[str, nn.Module] = {THEIRS: theirs, "ours, float32": our_model(theirs)}
    for model in models.values():
        freeze_dropout(model.to(arguments.device).train())
    batch = training_batch(2, arguments.training_size, 8, arguments.device)
    check_losses(models, batch)
    runs: dict[str, Callable[[], object]] = {name: training_step(model, batch) for name, model in models.items()}
    for name, (model, own_size, _) in rivals(theirs, arguments.training_size).items():
        freeze_dropout(model.to(arguments.device).train())
        runs[name] = training_step(model, rival_batch(batch, own_size))
    half = training_step(copy.deepcopy(models["ours, float32"]), batch)

    def in_half_precision() -> None:
        with torch.autocast(arguments.device.partition(":")[0], torch.bfloat16):
            half()

    runs["ours, autocast to bfloat16"] = in_half_precision
    height, width = arguments.training_size
    report(f"Training step, 2 x {height}x{width}, 8 objects each", runs, 2, arguments)


def report(title: str, runs: dict[str, Callable[[], object]], images: int, arguments: argparse.Namespace) -> None:
    """Prints milliseconds, images per second, the factor over transformers, waits and memory of each run."""
    times = time_in_turns(runs, arguments.repeats, arguments.device)
    first = statistics.median(times[THEIRS]) if THEIRS in times else None
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        factor = "" if first is None else f"{first / middle:.1f}"
        row = [f"{1000 * middle:.1f}", f"{images / middle:.0f}", factor]
        rows.append([name, *row, *waits_and_memory(runs[name], arguments.device)])
    header = ["", "milliseconds", "images/s", "times as fast", "waits of the CPU", "GB beside the weights"]
    print(f"### {title}\n\n{markdown_table(header, rows)}")


def waits_and_memory(run: Callable[[], object], device: str) -> tuple[str, str]:
    """Returns how often the CPU waits for the GPU in a run, and the memory that it takes; empty on a CPU."""
    if not device.startswith("cuda"):
        run()
        return "", ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in caught)
    return str(waits), f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}"


def memory_of_shapes(model: DetrPanopticForSegmentation, arguments: argparse.Namespace) -> None:
    """Prints the memory that is held after each further captured shape."""
    if not arguments.device.startswith("cuda"):
        return
    graphs, rows = CudaGraphs(model.bfloat16()), []
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for count, (height, width) in enumerate(((800, 1066), (1066, 800), (800, 800), (800, 1200), (640, 853)), start=1):
        graphs(torch.zeros(1, 3, height, width, device=arguments.device, dtype=torch.bfloat16))
        torch.cuda.empty_cache()
        rows.append([f"{count}: {height}x{width}", f"{(torch.cuda.memory_reserved() - before) / 1e9:.2f}"])
    print(f"### Captured shapes\n\n{markdown_table(['', 'GB held'], rows)}")


def _arguments() -> argparse.Namespace:
    arguments = parser(str(__doc__).partition("\n")[0], size="800x1066")
    arguments.set_defaults(repeats=10)
    arguments.add_argument("--batch", type=int, default=8, help="images of a batch")
    arguments.add_argument("--training-size", type=_size, default=(480, 640), metavar="HxW")
    return arguments.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
