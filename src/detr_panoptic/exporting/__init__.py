"""Export to ONNX, `torch.export`, AOTInductor and transformers' own DETR; int8."""

from .exported import ExportedModel, export
from .graph import GraphOptions
from .inputs import graph_inputs
from .quantization import QuantizedModel, quantize

__all__ = ["ExportedModel", "GraphOptions", "QuantizedModel", "export", "graph_inputs", "quantize"]
