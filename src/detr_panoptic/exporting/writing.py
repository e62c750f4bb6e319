"""Traces a model and writes it as ONNX or as a program for `torch.export.load`."""

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .graph import CANVAS_STEP, ExportGraph, GraphOptions
from .same_padding import pad_in_whole_numbers

OPSET = 20  # the ONNX opset that torch 2.15 writes without conversion
MAX_BATCH, MAX_SIDE = 256, 8192  # bounds for the shape solver of a dynamic graph
FOLDED_BYTES = 2**31  # fold constants of any size
EXAMPLE = (2, 3 * CANVAS_STEP + 1, 4 * CANVAS_STEP + 3)  # batch, height and width for tracing a dynamic graph


def trace(
    model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, options: GraphOptions
) -> ExportedProgram:
    """Traces a copy of a model to a graph of PyTorch operations, without Python."""
    model = copy.deepcopy(model).cpu().eval()
    # The fused kernel is traced as a graph with more steps, which handle cases that cannot occur here.
    model.set_attn_implementation("eager")
    pad_in_whole_numbers(model)
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
    """Writes a program as ONNX with its weights, all constants folded; the labels' names go into the metadata."""
    from onnxscript import optimizer

    with _quiet():
        written: Any = torch.onnx.export(
            program,
            input_names=options.input_names,
            output_names=options.output_names,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=_free_dimensions(options) if options.dynamic else None,  # for the names of the axes
        )
        optimizer.optimize(written.model)
        # The optimizer keeps large constants, and with them the frozen norms: the graph would scale the weights of
        # its convolutions again for every image.
        optimizer.fold_constants(
            written.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES, should_fold=_is_worth_folding
        )
        optimizer.remove_unused_nodes(written.model)
    written.model.metadata_props["id2label"] = json.dumps(dict(labels))
    written.save(file, external_data=False)


def _free_dimensions(options: GraphOptions) -> tuple[dict[int, Any], dict[int, Any]]:
    """Returns the free axes of both inputs by name."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    height, width = (Dim(name, min=CANVAS_STEP + 1, max=MAX_SIDE) for name in ("height", "width"))
    first = 1 if options.uint8 else 2
    return {0: batch, first: height, first + 1: width}, {0: batch, 1: height, 2: width}


def _is_worth_folding(node: Any) -> bool | None:
    """Returns False for maps filled with one number, which would add megabytes. None: decide by size."""
    return False if node.op_type in ("Expand", "ConstantOfShape") else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences notes about operations that are not folded and about axes that share a name on purpose."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name")
            yield
    finally:
        logging.disable(logging.NOTSET)


def quantize_file(file: Path, kind: str, batches: Iterable[dict[str, np.ndarray]]) -> None:
    """Replaces a float32 ONNX file by its int8 version.

    Args:
        file: the ONNX file.
        kind: "dynamic" quantizes the weights of the linear layers, and their inputs in every run. "static" quantizes
            weights and inputs of the convolutions.
        batches: for "static", inputs of the graph by name. They show the value ranges; read once.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        remaining = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.remaining, None)

    weights: dict[str, Any] = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    source = file.rename(file.with_name("float.onnx"))
    try:
        with _quiet():  # the quantizer tells the root logger that the graph should be optimized: it is
            if kind == "dynamic":
                quantization.quantize_dynamic(source, file, op_types_to_quantize=["MatMul", "Gemm"], **weights)
            else:
                weights["activation_type"] = quantization.QuantType.QUInt8
                quantization.quantize_static(source, file, Reader(), op_types_to_quantize=["Conv"], **weights)
    finally:
        source.unlink()
