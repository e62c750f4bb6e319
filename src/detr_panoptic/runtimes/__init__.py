"""What computes a model's outputs: PyTorch, OpenVINO or ONNX Runtime."""

from .choice import Choice, open_if_prepared, open_runtime
from .running import GraphRuntime

__all__ = ["Choice", "GraphRuntime", "open_if_prepared", "open_runtime"]
