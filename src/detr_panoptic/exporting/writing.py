"""Traces a model and writes it as ONNX or as a program for `torch.export.load`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..runtimes.graphs import MAX_BATCH, MAX_SIDE
from ..runtimes.onnx_files import write_program
from ..runtimes.same_padding import traceable_copy
from .graph import CANVAS_STEP, ExportGraph, GraphOptions

EXAMPLE = (2, 3 * CANVAS_STEP + 1, 4 * CANVAS_STEP + 3)  # batch, height and width for tracing a dynamic graph


def trace(
    model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, options: GraphOptions
) -> ExportedProgram:
    """Traces a copy of a model to a graph of PyTorch operations, without Python."""
    model = traceable_copy(model)
    graph = ExportGraph(model.half() if options.half else model.float(), processor, options)
    options = graph.options
    batch, height, width = EXAMPLE if options.size is None else (options.batch_size, *options.size)
    shape = (batch, height, width, 3) if options.uint8 else (batch, 3, height, width)
    pixels = torch.zeros(shape, dtype=torch.uint8 if options.uint8 else torch.float32)
    mask = torch.ones(batch, height, width, dtype=torch.int64)
    with torch.no_grad():
        return torch.export.export(
            graph,
            (pixels, mask),
            dynamic_shapes=_free_dimensions(options) if options.dynamic else None,
            prefer_deferred_runtime_asserts_over_guards=options.dynamic,
        )


def write_onnx(program: ExportedProgram, file: Path, options: GraphOptions, *, labels: Mapping[Any, str]) -> None:
    """Writes a program as ONNX; the labels' names go into the metadata."""
    free = _free_dimensions(options) if options.dynamic else None
    names: dict[str, Any] = {"inputs": options.input_names, "outputs": options.output_names}
    write_program(program, file, free_dimensions=free, labels=labels, **names)


def _free_dimensions(options: GraphOptions) -> tuple[dict[int, Any], dict[int, Any]]:
    """Returns the free axes of both inputs by name."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    height, width = (Dim(name, min=CANVAS_STEP + 1, max=MAX_SIDE) for name in ("height", "width"))
    first = 1 if options.uint8 else 2
    return {0: batch, first: height, first + 1: width}, {0: batch, 1: height, 2: width}
