"""What computes a model's outputs: PyTorch, OpenVINO or ONNX Runtime."""

from .choice import Choice, open_if_prepared, open_runtime
from .running import GraphRuntime, TorchRuntime

__all__ = ["Choice", "GraphRuntime", "TorchRuntime", "open_if_prepared", "open_runtime"]
