"""Weights, and with calibration also maps, of an ONNX file as 8-bit integers, by ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np


def quantize_dynamic(source: Path, target: Path) -> None:
    """Weights of the linear layers as int8; what they are multiplied with is quantized at every run.

    Args:
        source: ONNX file in float32.
        target: file to write.

    Raises:
        ImportError: the extra `export` is not installed.
    """
    from onnxruntime import quantization

    with _quiet():
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )


def quantize_static(source: Path, target: Path, batches: Iterable[dict[str, np.ndarray]]) -> None:
    """Weights and inputs of the convolutions as int8, by the ranges that some images show.

    Args:
        source: ONNX file in float32.
        target: file to write.
        batches: inputs of the graph by name; gone through once.

    Raises:
        ImportError: the extra `export` is not installed.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with _quiet():
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice to optimize the graph before, which has been done; it goes to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
