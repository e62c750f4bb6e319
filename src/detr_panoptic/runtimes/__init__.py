"""What computes a model's outputs: PyTorch, OpenVINO or ONNX Runtime."""

from .choice import RUNTIMES, Choice, Runtime, open_if_prepared, open_runtime
from .pytorch import TorchRuntime

__all__ = ["RUNTIMES", "Choice", "Runtime", "TorchRuntime", "open_if_prepared", "open_runtime"]
