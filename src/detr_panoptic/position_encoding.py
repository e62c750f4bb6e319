"""Sine position encoding of a padded map.

Follows PositionEmbeddingSine of facebookresearch/detr (29901c5), except that the mask is True on the image and not on
the padding.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000
SCALE = 2 * math.pi
EPSILON = 1e-6


def sine_position_encoding(mask: Tensor, hidden_size: int) -> Tensor:
    """Encodes the position of each cell within the unpadded part of its image.

    Args:
        mask: (B, h, w) bool, True on the image, False on padding.
        hidden_size: D, a multiple of 4.

    Returns:
        (B, D, h, w) float32. The first half of D encodes the row, the second half the column.
    """
    real = mask.float()
    rows, columns = real.cumsum(1), real.cumsum(2)
    rows = rows / (rows[:, -1:, :] + EPSILON) * SCALE
    columns = columns / (columns[:, :, -1:] + EPSILON) * SCALE
    return torch.cat((_sines(rows, hidden_size // 2), _sines(columns, hidden_size // 2)), dim=1)


def _sines(phase: Tensor, channels: int) -> Tensor:
    """Returns alternating sines and cosines of falling frequency: phases (B, h, w) to (B, channels, h, w)."""
    pair = torch.arange(channels // 2, dtype=phase.dtype, device=phase.device)
    angle = phase[..., None] / TEMPERATURE ** (2 * pair / channels)  # (B, h, w, channels / 2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).movedim(-1, 1)
