"""Models for other programs: ONNX (ONNX Runtime, OpenVINO, TensorRT) and PyTorch's exported programs."""

from .graph import ExportGraph, GraphOptions
from .inputs import for_canvas, graph_inputs
from .quantization import quantize_dynamic, quantize_static
from .writing import FILE_NAMES, trace, write_onnx, write_torch

__all__ = [
    "FILE_NAMES",
    "ExportGraph",
    "GraphOptions",
    "for_canvas",
    "graph_inputs",
    "quantize_dynamic",
    "quantize_static",
    "trace",
    "write_onnx",
    "write_torch",
]
