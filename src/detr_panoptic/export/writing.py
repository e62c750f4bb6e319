"""A model as a file for other programs: ONNX, or PyTorch's exported program."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim

from .graph import CANVAS_STEP, ExportGraph, GraphOptions
from .same_padding import pad_in_whole_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

FILE_NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
OPSET = 20  # of ONNX: what torch 2.15 writes without converting
MAX_BATCH, MAX_SIDE = 256, 8192  # of a dynamic graph, for the solver that proves its shapes
FOLDED_BYTES = 2**31  # the largest constant that is computed at export: all
EXAMPLE = (2, 3 * CANVAS_STEP + 1, 4 * CANVAS_STEP + 3)  # batch and sides that a dynamic graph is traced with


def trace(
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    options: GraphOptions,
    *,
    batch: int = 1,
    canvas: tuple[int, int] | None = None,
    half: bool = False,
) -> ExportedProgram:
    """The model as a graph of PyTorch's operations, without Python.

    Args:
        model: stays as it is.
        processor: its image processor.
        options: what the graph takes and returns; with `any_size` batch, height and width are free.
        batch: images of a graph of one size.
        canvas: (height, width) of a graph of one size, padding included.
        half: compute in float16.

    Raises:
        ValueError: sizes are missing, or given for a graph that takes any.
    """
    if (canvas is None) != options.any_size:
        raise ValueError(f"`canvas` must be given unless the graph takes any size, got {canvas}.")
    model = copy.deepcopy(model).cpu().eval()
    # Written out: the fused kernel stands for a graph with more steps, which guard against what is not possible here.
    model.set_attn_implementation("eager")
    pad_in_whole_numbers(model)
    graph = ExportGraph(model.half() if half else model, processor, options)
    batch, height, width = EXAMPLE if canvas is None else (batch, *canvas)
    shape = (batch, height, width, 3) if options.uint8 else (batch, 3, height, width)
    pixels = torch.zeros(shape, dtype=torch.uint8 if options.uint8 else torch.float32)
    mask = torch.ones(batch, height, width, dtype=torch.int64)
    with torch.no_grad():
        return torch.export.export(
            graph,
            (pixels, mask),
            dynamic_shapes=_free_dimensions(options) if options.any_size else None,
            prefer_deferred_runtime_asserts_over_guards=options.any_size,
        )


def write_torch(program: ExportedProgram, file: Path) -> None:
    """Writes a program that `torch.export.load` reads, anywhere where PyTorch is."""
    torch.export.save(program, file)


def write_onnx(program: ExportedProgram, file: Path, options: GraphOptions, *, labels: Mapping[Any, str]) -> None:
    """Writes a program as ONNX, with everything computed that does not depend on the images.

    Args:
        program: what `trace` returned.
        file: `.onnx`, weights inside.
        options: of the graph; they name its inputs and outputs.
        labels: names by label id; they are written into the file, as JSON under `id2label`.

    Raises:
        ImportError: the extra `export` is not installed.
    """
    from onnxscript import optimizer

    with _quiet():
        written: Any = torch.onnx.export(
            program,
            input_names=options.input_names,
            output_names=options.output_names,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=_free_dimensions(options) if options.any_size else None,  # for the names of the axes
        )
        optimizer.optimize(written.model)
        # That leaves large constants alone, and with them the frozen norms: the graph would scale the weights of its
        # convolutions anew at every image.
        optimizer.fold_constants(
            written.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES, should_fold=_is_worth_folding
        )
        optimizer.remove_unused_nodes(written.model)
    written.model.metadata_props["id2label"] = json.dumps(dict(labels))
    written.save(file, external_data=False)


def _free_dimensions(options: GraphOptions) -> tuple[dict[int, Any], dict[int, Any]]:
    """Names of the axes that are free, of both inputs."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    height, width = (Dim(name, min=CANVAS_STEP + 1, max=MAX_SIDE) for name in ("height", "width"))
    first = 1 if options.uint8 else 2
    return {0: batch, first: height, first + 1: width}, {0: batch, 1: height, 2: width}


def _is_worth_folding(node: Any) -> bool | None:
    """False for maps filled with one number, which would be megabytes of the file; None: by its size."""
    return False if node.op_type in ("Expand", "ConstantOfShape") else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the libraries: operations that are not folded, axes that share a name as they should."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name")
            yield
    finally:
        logger.setLevel(level)
