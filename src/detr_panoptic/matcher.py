"""Bipartite matching of queries and targets.

Follows models/matcher.py of facebookresearch/detr (29901c5), with these differences:
  * costs are float32 at least, whatever the model's precision, and the layers of the decoder and the images of a batch
    are computed together, with one transfer to the processor for all of them;
  * costs and assignment are two functions.

Legend: B images, Q queries, K labels, L decoder layers, T targets of one image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

try:  # a dependency of the package; code loaded from the Hub may run without it until it trains
    from scipy.optimize import linear_sum_assignment
except ImportError:
    linear_sum_assignment = None  # type: ignore[assignment]

from .box_ops import at_least_float32, cxcywh_to_xyxy, generalized_iou


class Matching(NamedTuple):
    """Matched pairs of a batch, image by image: three int64 tensors (N,) on the processor."""

    image: Tensor
    query: Tensor
    target: Tensor
    """Index into the targets of all images, one image's after the other's."""


def matching_costs(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    target: dict[str, Any],
    *,
    class_cost: float,
    bbox_cost: float,
    giou_cost: float,
) -> Tensor:
    """What each query would cost for each target, of one image or of a batch.

    Args:
        logits: (L, Q, K+1), or (L, B, Q, K+1).
        boxes_cxcywh: (L, Q, 4) or (L, B, Q, 4), in [0, 1].
        target: `class_labels` (T,) and `boxes` (T, 4), cxcywh; or (B, T) and (B, T, 4).
        class_cost: weight of the negative probability of the target's class.
        bbox_cost: weight of the L1 distance.
        giou_cost: weight of the negative generalized IoU.

    Returns:
        (L, Q, T) or (L, B, Q, T), float32 at least.
    """
    boxes = at_least_float32(boxes_cxcywh)[..., None, :]
    target_boxes = at_least_float32(target["boxes"])[..., None, :, :]
    probs = at_least_float32(logits).softmax(-1)
    classes = target["class_labels"][..., None, :].expand(*probs.shape[:-1], -1)
    class_term = -probs.gather(-1, classes)
    box_term = (boxes - target_boxes).abs().sum(-1)
    giou_term = -generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return class_cost * class_term + bbox_cost * box_term + giou_cost * giou_term


@torch.no_grad()
def match(
    logits: Tensor, boxes_cxcywh: Tensor, labels: Sequence[dict[str, Any]], **cost_weights: float
) -> list[Matching]:
    """Assigns to each target the query that makes the sum of costs least.

    Args:
        logits: (L, B, Q, K+1).
        boxes_cxcywh: (L, B, Q, 4).
        labels: B targets, see `matching_costs`. An image with more targets than queries leaves some without one.
        **cost_weights: `class_cost`, `bbox_cost` and `giou_cost`.

    Returns:
        L matchings; queries ascend within an image.

    Raises:
        ImportError: scipy is not installed.
        FloatingPointError: a prediction or a box of a target is not finite.
    """
    if linear_sum_assignment is None:
        raise ImportError("Matching needs scipy: `pip install scipy`.")
    # One computation for all images: a GPU waits longer for a hundred small ones than it works on them.
    padded = {
        "class_labels": pad_sequence([target["class_labels"] for target in labels], batch_first=True),
        "boxes": pad_sequence([target["boxes"] for target in labels], batch_first=True, padding_value=0.5),
    }
    on_processor = matching_costs(logits, boxes_cxcywh, padded, **cost_weights).cpu()  # (L, B, Q, T)
    if not on_processor.isfinite().all():
        raise FloatingPointError(
            "Matching met logits or boxes that are not finite, in the predictions or the targets."
        )
    counts = [len(target["class_labels"]) for target in labels]
    return [_assign(layer, counts) for layer in on_processor]


def _assign(costs: Tensor, counts: Sequence[int]) -> Matching:
    """One layer's costs (B, Q, T), of each image as many of the T as `counts` says, to its matching."""
    images, queries, targets, first = [], [], [], 0
    for i, count in enumerate(counts):
        query, target = (torch.as_tensor(index) for index in linear_sum_assignment(costs[i, :, :count]))
        images.append(torch.full_like(query, i))
        queries.append(query)
        targets.append(target + first)
        first += count
    return Matching(torch.cat(images), torch.cat(queries), torch.cat(targets))
