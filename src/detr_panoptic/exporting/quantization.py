"""Quantization of ONNX files to int8 with ONNX Runtime."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np


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
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    weights: dict[str, Any] = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    source = file.rename(file.with_name("float.onnx"))
    logging.disable(logging.WARNING)  # the quantizer tells the root logger that the graph should be optimized: it is
    try:
        if kind == "dynamic":
            quantization.quantize_dynamic(source, file, op_types_to_quantize=["MatMul", "Gemm"], **weights)
        else:
            quantization.quantize_static(
                source,
                file,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                activation_type=quantization.QuantType.QUInt8,
                **weights,
            )
    finally:
        logging.disable(logging.NOTSET)
        source.unlink()
