"""`detr-panoptic export`: a model as a file for programs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.old_loading import load_model
from .frame import CommandError, add_command
from .sources import SCENES, expand_images, read_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from ..export import GraphOptions
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from .frame import CommandParser

FORMATS = ("onnx", "torch-export")
QUANTIZATIONS = ("dynamic", "static")
DEFAULT_QUERIES = 20
SCENE_SEED = 78_000_000  # neither those of training nor those of the demo
CALIBRATION_IMAGES = 64
FLOAT_FILE = "float.onnx"
DESCRIPTION = """
Write a model as one graph from pixels to logits, boxes and masks. The folder OUT gets

  model.onnx                for ONNX Runtime, OpenVINO and TensorRT; or
  model.pt2                 for torch.export.load (--format torch-export)
  config.json               names of the labels, and which are stuff
  preprocessor_config.json  how to prepare images for this graph

A graph is made for images of one size, or for any (--dynamic). It makes the masks of the most confident queries, a
fixed number per image. docs/export.md tells inputs and outputs, speed, and what int8 costs.
"""
EXAMPLES = """
detr-panoptic export my_model exported --size 800x1066
detr-panoptic export my_model exported --dynamic --with-merging
detr-panoptic export my_model exported --size 640x640 --quantize static --calibration photos/
detr-panoptic export my_model exported --format torch-export --dynamic --half
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
        "--size", type=_size, metavar="HxW", help="pixels of the canvas (default: the model's own, if it is square)"
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
    _check(arguments)
    import torch

    model, processor = load_model(arguments.model, torch.device("cpu"))
    canvas = _canvas(arguments, processor)

    from ..export import FILE_NAMES, GraphOptions, for_canvas, trace, write_onnx, write_torch

    wanted = min(DEFAULT_QUERIES, model.config.num_queries)
    options = GraphOptions(
        mask_queries=wanted if arguments.mask_queries is None else arguments.mask_queries,
        uint8=arguments.uint8,
        with_merging=arguments.with_merging,
        any_size=arguments.dynamic,
    )
    program = trace(model, processor, options, batch=arguments.batch_size, canvas=canvas, half=arguments.half)
    processor = processor if canvas is None else for_canvas(processor, canvas)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / FILE_NAMES[arguments.format]
    if arguments.format == "torch-export":
        write_torch(program, file)
    else:
        _require_runtime(quantizes=arguments.quantize is not None)
        write_onnx(program, file, options, labels=model.config.id2label or {})
        if arguments.quantize is not None:
            _quantize(file, arguments, processor, options)
    # Not `save_pretrained`, which would lay the Hub's code beside.
    model.config.to_json_file(arguments.output / "config.json")
    processor.to_json_file(arguments.output / "preprocessor_config.json")
    _print_summary(file, options, canvas, arguments)
    return 0


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"expected HxW, as in 800x1066, got {text}")
    return int(height), int(width)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot go together before anything is loaded."""
    if arguments.output.is_file():
        raise CommandError(f"{arguments.output} is a file: name a folder to write to.")
    if arguments.batch_size < 1:
        raise CommandError(f"`--batch-size` must be at least 1, got {arguments.batch_size}.")
    if arguments.dynamic and (arguments.size is not None or arguments.batch_size != 1):
        raise CommandError("`--dynamic` takes every size and batch: leave out `--size` and `--batch-size`.")
    if arguments.quantize is not None and (arguments.format != "onnx" or arguments.half):
        raise CommandError("`--quantize` is for `--format onnx` in float32.")
    if (arguments.quantize == "static") != (arguments.calibration is not None):
        raise CommandError("`--quantize static` and `--calibration` need each other.")


def _canvas(arguments: argparse.Namespace, processor: DetrPanopticImageProcessor) -> tuple[int, int] | None:
    """Height and width of the graph; None for any."""
    if arguments.dynamic or arguments.size is not None:
        return arguments.size
    size: Any = processor.size
    sides = {size.shortest_edge, size.longest_edge} - {None}
    if len(sides) != 1:
        raise CommandError(
            f"Images of this model have many sizes ({size.shortest_edge} to {size.longest_edge} pixels): "
            "give `--size HxW` or `--dynamic`."
        )
    (side,) = sides
    return side, side


def _require_runtime(*, quantizes: bool) -> None:
    """Say what is to be installed, before the model is traced."""
    from importlib.util import find_spec

    needed = ("onnx", "onnxscript", "onnxruntime") if quantizes else ("onnx", "onnxscript")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise CommandError(f"ONNX needs {', '.join(missing)}: pip install 'detr-panoptic[export]'")


def _quantize(
    file: Path, arguments: argparse.Namespace, processor: DetrPanopticImageProcessor, options: GraphOptions
) -> None:
    """Replace the file by its int8 version."""
    from ..export import quantize_dynamic, quantize_static

    source = file.with_name(FLOAT_FILE)
    file.rename(source)
    try:
        if arguments.quantize == "dynamic":
            quantize_dynamic(source, file)
        else:
            quantize_static(source, file, _calibration(arguments, processor, options))
    finally:
        source.unlink()


def _calibration(
    arguments: argparse.Namespace, processor: DetrPanopticImageProcessor, options: GraphOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the graph from the user's images."""
    from ..export import graph_inputs

    pictures = list(_pictures(arguments))
    for start in range(0, len(pictures) - arguments.batch_size + 1, arguments.batch_size):
        yield graph_inputs(pictures[start : start + arguments.batch_size], processor, options)


def _pictures(arguments: argparse.Namespace) -> Iterator[Any]:
    from ..inference.old_prediction import read_image

    if arguments.calibration == [SCENES]:
        data = read_source(SCENES, scene_seed=SCENE_SEED, limit=CALIBRATION_IMAGES)
        yield from (record["image"] for record in data.records)
        return
    paths, missing = expand_images(arguments.calibration, output=arguments.output)
    if missing:
        raise CommandError(missing[0])
    yield from (read_image(path) for path in paths[:CALIBRATION_IMAGES])


def _print_summary(
    file: Path, options: GraphOptions, canvas: tuple[int, int] | None, arguments: argparse.Namespace
) -> None:
    from rich.console import Console

    size = "any size" if canvas is None else f"{arguments.batch_size} x {canvas[0]}x{canvas[1]} pixels"
    text = (
        f"Wrote {file}, {file.stat().st_size / 1e6:.1f} MB, for {size}: "
        f"{', '.join(options.input_names)} to {', '.join(options.output_names)}, {options.mask_queries} masks"
    )
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
