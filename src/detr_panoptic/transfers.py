"""Copies between the CPU and a GPU that make the CPU wait as rarely as possible.

A copy of an ordinary tensor makes the CPU wait until the GPU has finished all its work. Copies to the GPU from pinned
memory wait for nothing; copies to the CPU have to be waited for, but once for all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ASYNCHRONOUS = "cuda"
"""The type of devices that work while the CPU does something else."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor on the CPU to a device, without waiting for a GPU; a tensor elsewhere is moved as usual."""
    if device.type != ASYNCHRONOUS or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_rows(rows: Sequence[Any], device: torch.device) -> Sequence[Tensor]:
    """Copies arrays (n_i,) of one type to a device in a single transfer."""
    together = torch.from_numpy(np.concatenate(rows))
    return upload(together, device).split([len(row) for row in rows])


def fetch(*tensors: Tensor) -> list[Tensor]:
    """Copies tensors to the CPU, waiting once."""
    copies = [tensor.detach().to("cpu", non_blocking=tensor.device.type == ASYNCHRONOUS) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.device.type == ASYNCHRONOUS}:
        torch.cuda.current_stream(device).synchronize()
    return copies
