"""ONNX files: traced programs to files with folded constants, and int8 versions of them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

OPSET = 20  # the ONNX opset that torch 2.15 writes without conversion
FOLDED_BYTES = 2**31  # fold constants of any size


def write_program(
    program: ExportedProgram,
    file: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    free_dimensions: Any = None,
    labels: Mapping[Any, str] | None = None,
) -> None:
    """Writes a program as ONNX with its weights, all constants folded.

    Args:
        program: what `torch.export` traced.
        file: the file to write.
        inputs: their names.
        outputs: their names.
        free_dimensions: `dynamic_shapes` of the program, for the names of the axes.
        labels: their names, which go into the metadata.
    """
    from onnxscript import optimizer

    with _quiet():
        written: Any = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=free_dimensions,
        )
        optimizer.optimize(written.model)
        # The optimizer keeps large constants, and with them the frozen norms: the graph would scale the weights of
        # its convolutions again for every image.
        optimizer.fold_constants(
            written.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES, should_fold=_is_worth_folding
        )
        optimizer.remove_unused_nodes(written.model)
    if labels is not None:
        written.model.metadata_props["id2label"] = json.dumps(dict(labels))
    written.save(file, external_data=False)


def quantize_file(source: Path, file: Path, kind: str, batches: Iterable[Mapping[str, np.ndarray]] = ()) -> None:
    """Writes the int8 version of a float32 ONNX file.

    Args:
        source: the file in float32.
        file: the file to write.
        kind: "dynamic" quantizes the weights of the linear layers, and their inputs in every run. "static" quantizes
            weights and inputs of the convolutions.
        batches: for "static", inputs of the graph by name. They show the value ranges; read once.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        remaining = iter(batches)

        def get_next(self) -> Any:
            return next(self.remaining, None)

    weights: dict[str, Any] = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    with _quiet():  # the quantizer tells the root logger that the graph should be optimized: it is
        if kind == "dynamic":
            quantization.quantize_dynamic(source, file, op_types_to_quantize=["MatMul", "Gemm"], **weights)
        else:
            weights["activation_type"] = quantization.QuantType.QUInt8
            quantization.quantize_static(source, file, Reader(), op_types_to_quantize=["Conv"], **weights)


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
