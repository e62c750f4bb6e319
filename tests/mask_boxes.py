"""Boxes of masks, by their definition."""

import numpy as np
import torch
from torch import Tensor


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Returns xyxy boxes (T, 4) float32 of masks (T, H, W), edges included; of an empty mask, zeros."""
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0])
    return torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)
