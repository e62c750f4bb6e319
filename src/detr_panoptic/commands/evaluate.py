"""`detr-panoptic evaluate`: panoptic quality and average precision of a model on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frame import USER_ERROR, add_command
from .sources import add_source_options

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

AP_KINDS: dict[str, Any] = {"none": False, "box": "box", "mask": True}
DESCRIPTION = """
Measures panoptic quality (PQ, equal to the official evaluator's), SQ and RQ, and the AP of boxes and masks. Classes of
the model and of the data are matched by name. The output folder gets

  metrics.json, metrics.md   all numbers
  worst_images.png           the images with the lowest PQ: image, annotation and prediction
  predictions/               predictions in COCO's panoptic format; those that exist are used again

In several processes: accelerate launch scripts/evaluate.py with the same options.
"""
EXAMPLES = """
detr-panoptic evaluate --model my_model --data my_data
detr-panoptic evaluate --model my_model --data coco --split val2017 --output val2017 --workers 4
detr-panoptic evaluate --model my_model --data my_data --limit 200 --batch-size 8 --average-precision none
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Adds the command and its options."""
    parser = add_command(
        subparsers, "evaluate", run, summary="measure a model", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder, or name on the Hugging Face Hub")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="what `train --data` takes")
    add_source_options(parser)
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder for the results")
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="least score (default: the model's)")
    parser.add_argument("--average-precision", choices=AP_KINDS, default="mask", help="mask: of boxes and masks")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images in a forward")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that load images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="if an image cannot be read")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 0 if every image was measured."""
    from accelerate import PartialState

    from ..evaluation import evaluate

    evaluation = evaluate(
        arguments.model,
        arguments.data,
        split=arguments.split,
        data_format=arguments.format,
        limit=arguments.limit,
        output=arguments.output,
        average_precision=AP_KINDS[arguments.average_precision],
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        device=arguments.device,
        dtype=arguments.dtype,
        on_error=arguments.on_error,
    )
    if PartialState().is_main_process:
        print(f"{evaluation}\nResults are in {arguments.output}")
    return USER_ERROR if evaluation.failures else 0
