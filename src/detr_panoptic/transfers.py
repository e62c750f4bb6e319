"""Copies between the CPU and a GPU that make the CPU wait as rarely as possible.

An ordinary copy waits until the GPU has finished all its work, one to the GPU from pinned memory for nothing.
"""

import torch
from torch import Tensor

ASYNCHRONOUS = "cuda"  # the type of devices that work while the CPU does something else


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor on the CPU to a device, without waiting for a GPU; a tensor elsewhere is moved as usual."""
    if device.type != ASYNCHRONOUS or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> list[Tensor]:
    """Copies tensors to the CPU, waiting once."""
    copies = [tensor.detach().to("cpu", non_blocking=tensor.device.type == ASYNCHRONOUS) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.device.type == ASYNCHRONOUS}:
        torch.cuda.current_stream(device).synchronize()
    return copies
