"""Boxes by center and size (cxcywh) or corners (xyxy), after facebookresearch/detr; copies to and from a GPU."""

import torch
from torch import Tensor

ASYNCHRONOUS = "cuda"  # the type of devices that work while the CPU does something else


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from center and size to corners, in the same units."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from corners to center and size, in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def generalized_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Computes the generalized IoU (arXiv 1902.09630) of broadcast corner boxes (..., 4): (...) in [-1, 1]."""
    area = _area(first_xyxy) + _area(second_xyxy)
    starts = first_xyxy[..., :2], second_xyxy[..., :2]
    ends = first_xyxy[..., 2:], second_xyxy[..., 2:]
    overlap = _area(torch.cat((torch.maximum(*starts), torch.minimum(*ends)), dim=-1))
    hull = _area(torch.cat((torch.minimum(*starts), torch.maximum(*ends)), dim=-1))
    union = area - overlap
    smallest = torch.finfo(union.dtype).tiny  # the IoU of two boxes without area counts as 0, not as 0 / 0
    return overlap / union.clamp(min=smallest) - (hull - union) / hull.clamp(min=smallest)


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32; wider types stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _area(boxes_xyxy: Tensor) -> Tensor:
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def upload(values: object, device: torch.device) -> Tensor:
    """Copies to a device: from the CPU to a GPU through pinned memory, which waits for nothing."""
    tensor = torch.as_tensor(values)
    if device.type != ASYNCHRONOUS or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> list[Tensor]:
    """Copies tensors to the CPU, waiting once."""
    copies = [tensor.detach().to("cpu", non_blocking=tensor.device.type == ASYNCHRONOUS) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.device.type == ASYNCHRONOUS}:
        torch.cuda.current_stream(device).synchronize()
    return copies
