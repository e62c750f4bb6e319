"""Export to ONNX, `torch.export`, AOTInductor and transformers' own DETR."""

from .exported import ExportedModel, export
from .graph import GraphOptions
from .inputs import graph_inputs

__all__ = ["ExportedModel", "GraphOptions", "export", "graph_inputs"]
