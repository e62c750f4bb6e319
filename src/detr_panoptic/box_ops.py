"""Operations on boxes, after util/box_ops.py of facebookresearch/detr (29901c5).

Formats are in the names: `cxcywh` centre and size, `xyxy` left, top, right, bottom.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre-size boxes (..., 4) to corner boxes (..., 4), in the same units."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corner boxes (..., 4) to centre-size boxes (..., 4), in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def generalized_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Generalized IoU (arXiv 1902.09630) of broadcast corner boxes (..., 4) and (..., 4): (...) in [-1, 1].

    Two boxes of no area count as apart (IoU 0) where the formula divides zero by zero, so that an empty target gives a
    finite loss.
    """
    area = _area(first_xyxy) + _area(second_xyxy)
    overlap = _area(
        torch.cat(
            (
                torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2]),
                torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:]),
            ),
            dim=-1,
        )
    )
    hull = _area(
        torch.cat(
            (
                torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2]),
                torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:]),
            ),
            dim=-1,
        )
    )
    union = area - overlap
    smallest = torch.finfo(union.dtype).tiny
    return overlap / union.clamp(min=smallest) - (hull - union) / hull.clamp(min=smallest)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks: (T, H, W) bool to (T, 4) float32 xyxy in pixels, edges included (a pixel has width 1).

    An empty mask has the box of zeros.
    """
    rows, columns = masks.any(2), masks.any(1)
    top, bottom = _extent(rows)
    left, right = _extent(columns)
    return torch.stack((left, top, right, bottom), dim=-1).float()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; wider tensors stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _area(boxes_xyxy: Tensor) -> Tensor:
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First True and one past the last, of each row of (T, N) bool; both 0 where there is none."""
    length = occupied.shape[-1]
    first = occupied.int().argmax(-1)
    end = length - occupied.flip(-1).int().argmax(-1)
    return first, torch.where(occupied.any(-1), end, 0)
