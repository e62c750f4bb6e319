"""The model itself as a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ..modeling_detr_panoptic import DetrPanopticForSegmentation


class TorchRuntime:
    """Runs a model in evaluation mode, on its device and in its dtype; its own mode is restored after each batch.

    Args:
        model: the model.
        compile: whether to run it compiled by `torch.compile`.
    """

    name = "torch"

    def __init__(self, model: DetrPanopticForSegmentation, *, compile: bool = False) -> None:
        self.model = model
        self._forward: Any = torch.compile(model) if compile else model

    @property
    def dtype(self) -> str:
        """The precision, such as "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor], *, mask_queries: str | int | None = None) -> Any:
        """Returns the outputs of a batch, given `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W)."""
        model = self.model
        pixels = inputs["pixel_values"].to(device=model.device, dtype=model.dtype)
        mask = inputs["pixel_mask"].to(model.device) if "pixel_mask" in inputs else None
        was_training = model.training
        if was_training:
            model.eval()
        try:
            return self._forward(pixel_values=pixels, pixel_mask=mask, mask_queries=mask_queries)
        finally:
            if was_training:
                model.train()
