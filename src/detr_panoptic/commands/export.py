"""`detr-panoptic export`: a model as a file for programs without this package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .frame import add_command

if TYPE_CHECKING:
    from .frame import CommandParser

FORMATS = ("onnx", "torch")
QUANTIZATIONS = ("dynamic", "static")
DEFAULT_QUERIES = 20
CALIBRATION_IMAGES = 64
SCENES = "scenes"
DESCRIPTION = """
Write a model as one graph from pixels to logits, boxes and masks. The folder OUT gets

  model.onnx                for ONNX Runtime, OpenVINO and TensorRT; or
  model.pt2                 for torch.export.load (--format torch)
  config.json               names of the labels, and which are stuff
  preprocessor_config.json  how to prepare images for this graph

A graph is made for images of one size, or for any (--dynamic). It makes the masks of the most confident queries, a
fixed number per image. docs/export.md tells inputs and outputs, speed, and what int8 costs.
"""
EXAMPLES = """
detr-panoptic export my_model exported --size 800x1066
detr-panoptic export my_model exported --dynamic --with-merging
detr-panoptic export my_model exported --size 640x640 --quantize static --calibration photos/
detr-panoptic export my_model exported --format torch --dynamic --half
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "export",
        run,
        summary="write a model as ONNX or as PyTorch's exported program",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its name on the Hugging Face Hub")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="kind of file")
    parser.add_argument(
        "--size", metavar="HxW", help="pixels of the canvas (default: the model's own, if it is square)"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once, with a size")
    parser.add_argument("--dynamic", action="store_true", help="any batch, height and width, in place of a size")
    parser.add_argument("--half", action="store_true", help="compute in float16, for GPUs; inputs stay float32")
    parser.add_argument(
        "--mask-queries", type=int, metavar="K", help=f"masks per image (default: {DEFAULT_QUERIES}, or all if fewer)"
    )
    parser.add_argument("--uint8", action="store_true", help="take pictures (B, H, W, 3) uint8 and normalize inside")
    parser.add_argument("--with-merging", action="store_true", help="return the panoptic map and its segments")
    parser.add_argument(
        "--quantize", choices=QUANTIZATIONS, help="int8: the linear layers (dynamic), or the convolutions (static)"
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGE",
        help=f"images or folders that show --quantize static its ranges, or `{SCENES}`; up to {CALIBRATION_IMAGES}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..exporting import export

    names = ("format", "size", "dynamic", "batch_size", "half", "mask_queries", "uint8", "with_merging", "quantize")
    options = {name: getattr(arguments, name) for name in (*names, "calibration")}
    sys.stdout.write(f"Wrote {export(arguments.model, arguments.output, **options)}\n")
    return 0
