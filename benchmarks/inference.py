r"""Time of a prediction: transformers' DETR, its detector alone, and ours with the same weights; Mask2Former, EoMT.

    python benchmarks/inference.py          # a minute or two
    python benchmarks/inference.py --sizes 800x1066 480x640 --batches 1 4 --kept 5 10 20 50 100 \
        --dtypes float32 bfloat16 --compile --whole

Their time does not depend on the queries that are kept, so they run once per size and batch, in float32. Of a batch
their mask head takes one image after the other: four of 480x640 at once need more than 24 GB.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DetrForSegmentation, pipeline
from transformers.utils import ModelOutput

from cases import (
    bias_that_keeps,
    describe_run,
    markdown_table,
    median_and_range,
    our_model,
    parser,
    peak_gigabytes,
    random_images,
    rivals,
    set_precision,
    time_in_turns,
    transformers_model,
)
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.inference.fast_form import fast_form
from detr_panoptic.mask_head import SKIPPED_MASK_LOGIT

THEIRS, DETECTOR = "transformers", "transformers, boxes only"
COMPARED = ("logits", "pred_boxes", "pred_masks")
TOLERANCE = 1e-4  # in float32; less precise numbers are not compared


def main() -> None:
    """Prints a table per size and batch."""
    arguments = _arguments()
    torch.set_grad_enabled(False)
    set_precision(arguments)
    theirs = transformers_model().eval()
    ours = our_model(theirs).eval()
    theirs, ours = theirs.to(arguments.device), ours.to(arguments.device)
    print(describe_run(arguments.device))
    for size in arguments.sizes:
        for batch in arguments.batches:
            print(f"### {batch} x {size[0]}x{size[1]}\n")
            print(compare(theirs, ours, random_images(batch, size), arguments))
    if arguments.whole:
        for size in arguments.sizes:
            print(f"### From picture to segments, {size[0]}x{size[1]}, {arguments.kept[-1]} kept\n")
            print(compare_whole(ours, size, arguments))


def compare(
    theirs: DetrForSegmentation,
    ours: DetrPanopticForSegmentation,
    images: dict[str, Tensor],
    arguments: argparse.Namespace,
) -> str:
    """Times all contestants for one batch, after checking that their outputs agree."""
    images = {name: value.to(arguments.device) for name, value in images.items()}
    expected = one_by_one(theirs, images)
    contestants: dict[str, Callable[[], object]] = {
        THEIRS: lambda: one_by_one(theirs, images),
        DETECTOR: lambda: theirs.detr(**images),
    }
    batch, *size = images["pixel_mask"].shape
    for name, (model, own_size, _) in rivals(theirs, size).items():
        pixels = random_images(batch, own_size)["pixel_values"].to(arguments.device)
        contestants[name] = partial(model.to(arguments.device), pixel_values=pixels)
    differences = dict.fromkeys(contestants, "")
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        inputs = images | {"pixel_values": images["pixel_values"].to(dtype)}
        for kept in arguments.kept:
            model = copy.deepcopy(ours).to(dtype)
            shift = bias_that_keeps(model(**inputs, mask_queries=0).logits, kept)
            model.class_head.bias[-1] += shift
            for name, run in _ways(model, kept, arguments.compile).items():
                name = f"ours, {kept} kept{name}, {str(dtype).removeprefix('torch.')}"
                differences[name] = _check(run(**inputs), expected, shift, tolerance(dtype, arguments))
                contestants[name] = partial(run, **inputs)
    times = time_in_turns(contestants, arguments.repeats, arguments.device)
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        [
            name,
            median_and_range(values),
            f"{middle[THEIRS] / middle[name]:.1f}",
            f"{middle[name] / middle[DETECTOR]:.2f}",
            differences[name],
            peak_gigabytes(contestants[name], arguments.device),
        ]
        for name, values in times.items()
    ]
    header = [
        "",
        "seconds: median (range)",
        "times as fast as transformers",
        "time over that of its detector",
        "difference",
        "GB of the GPU beside the weights",
    ]
    return markdown_table(header, rows)


def one_by_one(theirs: DetrForSegmentation, images: dict[str, Tensor]) -> ModelOutput:
    """The outputs that are compared, of one image after the other."""
    outputs = [
        theirs(**{name: value[i : i + 1] for name, value in images.items()}) for i in range(len(images["pixel_mask"]))
    ]
    return ModelOutput({name: torch.cat([output[name] for output in outputs]) for name in COMPARED})


def compare_whole(ours: DetrPanopticForSegmentation, size: tuple[int, int], arguments: argparse.Namespace) -> str:
    """Times reading, the model, merging, and the pipeline around them, for one picture of 480 rows."""
    height, width = size
    pixels = np.random.default_rng(0).integers(256, size=(480, round(480 * width / height), 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    processor = DetrPanopticImageProcessor(size={"shortest_edge": height, "longest_edge": 2 * height})
    inputs = processor(picture, return_tensors="pt").to(arguments.device)
    model = copy.deepcopy(ours)
    model.class_head.bias[-1] += bias_that_keeps(model(**inputs, mask_queries=0).logits, arguments.kept[-1])
    outputs = model(**inputs)
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor, device=arguments.device)
    target = [picture.size[::-1]]
    contestants = {
        "model": lambda: model(**inputs),
        "preprocess": lambda: processor(picture, return_tensors="pt"),
        "merge": lambda: processor.post_process_panoptic_segmentation(outputs, threshold=0.0, target_sizes=target),
        "pipeline, all of it": lambda: segmenter(picture, threshold=0.0),
    }
    times = time_in_turns(contestants, max(arguments.repeats, 5), arguments.device)
    model_time = statistics.median(times["model"])
    rows = [
        [name, median_and_range(values), f"{statistics.median(values) / model_time:.3f}"]
        for name, values in times.items()
    ]
    return markdown_table(["", "seconds: median (range)", "over the model's"], rows)


def tolerance(dtype: torch.dtype, arguments: argparse.Namespace) -> float:
    """How far outputs may be from transformers' in float32."""
    return TOLERANCE if dtype == torch.float32 and not arguments.tf32 else float("inf")


def _ways(model: DetrPanopticForSegmentation, kept: int, with_compiled: bool) -> dict[str, Callable]:
    """The model as it is, as a predictor runs it, and, if asked for, compiled: for shapes that stay."""
    fast = fast_form(model)  # a predictor drops a mask that masks nothing
    ways: dict[str, Callable] = {"": model, " (predictor)": lambda pixel_values, **_: fast(pixel_values)}
    if with_compiled:
        ways[" (compiled)"] = partial(torch.compile(model), mask_queries=kept)
    return ways


def _check(output: Any, expected: Any, shift: float, largest: float) -> str:
    """The largest difference of logits, boxes and kept masks.

    Raises:
        ValueError: it is larger than `largest`.
    """
    kept = output.logits.argmax(-1) != output.logits.shape[-1] - 1
    made = kept & (output.pred_masks.amax((-2, -1)) > SKIPPED_MASK_LOGIT)
    # A fixed number of masks per image, or rounding, may leave one or two at the border of being kept without a mask.
    if made.sum() < 0.9 * kept.sum():
        raise ValueError(f"Only {made.sum()} of {kept.sum()} kept queries have a mask.")
    logits = output.logits.float().clone()
    logits[..., -1] -= shift
    pairs = [
        (logits, expected.logits),
        (output.pred_boxes, expected.pred_boxes),
        (output.pred_masks[made], expected.pred_masks[made]),
    ]
    difference = max((a.float() - b).abs().max().item() for a, b in pairs if a.numel())
    if difference > largest:
        raise ValueError(f"Outputs differ by {difference}.")
    return f"{difference:.1e}"


def _arguments() -> argparse.Namespace:
    arguments = parser(str(__doc__).partition("\n")[0], size="480x640")
    arguments.add_argument("--batches", nargs="+", type=int, default=[1])
    arguments.add_argument("--kept", nargs="+", type=int, default=[20], help="queries per image that see an object")
    arguments.add_argument("--dtypes", nargs="+", default=["float32"])
    arguments.add_argument("--compile", action="store_true", help="run ours compiled as well")
    arguments.add_argument("--whole", action="store_true", help="also what stands before and after the model")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
