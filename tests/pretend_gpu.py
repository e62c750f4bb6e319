"""A GPU that is none: it computes on the CPU and counts what a GPU would be given, and when the CPU would wait for it.

Tensors on it say that they are on the device "meta". What they hold lies on the CPU, where every operation runs.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from detr_panoptic import box_ops

GPU = torch.device("meta")
WAIT_FOR_VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}
COPIES = {"_to_copy", "copy_"}


class Held(Tensor):
    """A tensor on the pretended GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        like: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, **like, device=GPU)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return PretendedGpu().__torch_dispatch__(func, types, args, kwargs)


class PretendedGpu(TorchDispatchMode):
    """Counts the operations on the GPU, views left out, and the times when the CPU waits for it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copied = 0  # tensors that reached the GPU from the CPU

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inside = [leaf for leaf in leaves if isinstance(leaf, Held)]
        wanted = kwargs.get("device")
        on_gpu = bool(inside) if wanted is None else torch.device(wanted) == GPU
        args_held, kwargs_held = tree_map_only(Held, lambda tensor: tensor.held, (args, kwargs))
        if wanted is not None:
            kwargs_held["device"] = torch.device("cpu")
        if inside or on_gpu:
            self._count(func, name, args, kwargs, leaves, on_gpu=on_gpu)
        result = func(*args_held, **kwargs_held)
        if name in COPIES and result is args_held[0] and not func._schema.is_mutable:
            result = result.clone()
        if not on_gpu:
            return result
        wrapped = tree_map_only(Tensor, Held, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if func.is_view or inside else wrapped

    def _count(self, func: Any, name: str, args: tuple, kwargs: dict, leaves: list[Tensor], *, on_gpu: bool) -> None:
        outside = [leaf for leaf in leaves if not isinstance(leaf, Held) and leaf.ndim]
        if name in COPIES:
            moves = bool(outside) if on_gpu else True
            self.copied += moves and on_gpu
            if moves and not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
                self.waits[f"{name} {'to' if on_gpu else 'from'} the GPU"] += 1
        elif outside:
            self.waits[f"{name} with a tensor of the CPU"] += 1
        picks = name in {"index", "index_put", "index_put_"} and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if picks or name in WAIT_FOR_VALUES:
            self.waits[name] += 1
        if not func.is_view and name != "detach":
            self.operations[name] += 1


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """Turns the GPU on; `box_ops` treats it as CUDA."""
    gpu = PretendedGpu()

    class Stream:
        def synchronize(self) -> None:
            gpu.waits["fetch"] += 1

    monkeypatch.setattr(box_ops, "ASYNCHRONOUS", GPU.type)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream())
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    with gpu:
        yield gpu


def to_gpu(value: Any) -> Any:
    """Moves tensors, in any nesting, or a model's parameters and buffers."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, parameter in [*module._parameters.items()]:
                if parameter is not None:
                    moved = nn.Parameter(Held(parameter.detach()), requires_grad=parameter.requires_grad)
                    module._parameters[name] = moved
            for name, buffer in [*module._buffers.items()]:
                module._buffers[name] = buffer if buffer is None else Held(buffer)
        return value
    return tree_map_only(Tensor, Held, value)


def to_cpu(tensor: Any) -> Tensor:
    """Reads a tensor of the GPU without counting it."""
    return tensor.held
