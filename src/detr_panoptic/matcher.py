"""Bipartite matching of queries and targets.

Follows models/matcher.py of facebookresearch/detr (29901c5), but in float32 or wider, with one transfer to the CPU.

Legend: B images, Q queries, K labels, L decoder layers, T targets of one image, N matched pairs of the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

try:  # a dependency of the package; code loaded from the Hub may run without it until it trains
    from scipy.optimize import linear_sum_assignment
except ImportError:
    linear_sum_assignment = None  # type: ignore[assignment]

from .box_ops import at_least_float32, cxcywh_to_xyxy, fetch, generalized_iou, upload

BOX_SLACK = 0.01  # boxes of datasets may end a pixel beyond the image
Labels = Sequence[Mapping[str, Any]]
"""Targets of B images: `class_labels` (T,) int64, `boxes` (T, 4) cxcywh in [0, 1], and `masks` (T, H, W) if known; in
training also `query_costs` (T, Q) on the CPU, which are added to those of the matching."""


class Matching(NamedTuple):
    """Matched pairs of a batch for L layers, image by image: int64 tensors."""

    image: Tensor  # (N,), ascending and the same for every layer
    query: Tensor  # (L, N), ascending within an image
    target: Tensor  # (L, N), indices into the targets of all images in a row

    def to(self, device: torch.device) -> "Matching":
        """Returns the matching on another device."""
        return Matching(*(upload(index, device) for index in self))


class MatchedLayers(NamedTuple):
    """The predictions of the layers that the loss uses, and the pairs that they form with the targets."""

    labels: Labels
    logits: Tensor  # (L, B, Q, K+1), the last layer last
    boxes: Tensor  # (L, B, Q, 4)
    matching: Matching  # on the CPU

    @property
    def has_masks(self) -> bool:
        """Whether every target has masks."""
        return all("masks" in target for target in self.labels)

    def rows(self) -> Tensor:
        """Returns the last layer's queries with matched masks, as indices into the batch's B*Q: int64, ascending."""
        rows = self.matching.image * self.logits.shape[2] + self.matching.query[-1]
        return upload(rows[: len(rows) if self.has_masks else 0], self.logits.device)

    def auxiliary_outputs(self) -> list[dict[str, Tensor]]:
        """Returns the predictions of each layer but the last."""
        return [{"logits": x, "pred_boxes": b} for x, b in zip(self.logits[:-1], self.boxes[:-1], strict=True)]


def check_labels(labels: Labels, *, batch: int, num_labels: int) -> None:
    """Raises ValueError unless there is a target for each image, with classes and boxes that fit the model."""
    if isinstance(labels, (Tensor, Mapping)) or len(labels) != batch:
        raise ValueError(f"`labels` must be a list of {batch} targets, got {len(labels)} in {type(labels).__name__}.")
    for i, target in enumerate(labels):
        shapes = {name: tuple(x.shape) for name, x in target.items() if isinstance(x, Tensor)}
        count = (*shapes.get("class_labels", ()), 0)[0]
        if shapes.get("class_labels") != (count,) or shapes.get("boxes") != (count, 4):
            raise ValueError(f"`labels[{i}]` must have tensors `class_labels` (T,) and `boxes` (T, 4), got {shapes}.")
    rows = [torch.cat((target["class_labels"][:, None], target["boxes"].float()), dim=1) for target in labels]
    classes, boxes = torch.cat(rows).cpu().split((1, 4), dim=1)  # one wait for a GPU
    if wrong := sorted({label for label in classes.flatten().tolist() if label not in range(num_labels)}):
        expected = f"between 0 and {num_labels - 1} in a model with {num_labels} labels"
        raise ValueError(f"`class_labels` must lie {expected}, got [{', '.join(f'{label:g}' for label in wrong)}].")
    if len(outside := boxes[~((boxes - 0.5).abs() <= 0.5 + BOX_SLACK).all(1)]):
        expected = "(center x, center y, width, height) as fractions of the image, from 0 to 1"
        raise ValueError(f"`boxes` must be {expected}, got {outside[0].tolist()}.")
    if 0 < len(without := [i for i, target in enumerate(labels) if "masks" not in target]) < batch:
        raise ValueError(f"`labels` must have `masks` in all targets or in none; the targets {without} have none.")


def moved_labels(labels: Labels, device: torch.device) -> Labels:
    """Returns targets on a device, with `class_labels` of int64; what else they hold stays where it is."""
    names = ("class_labels", "boxes", "masks")
    moved = [dict(target) | {n: upload(target[n], device) for n in names if n in target} for target in labels]
    return [target | {"class_labels": target["class_labels"].long()} for target in moved]


def matching_costs(
    logits: Tensor, boxes_cxcywh: Tensor, target: Mapping[str, Tensor], *, costs: Mapping[str, float]
) -> Tensor:
    """Computes the cost (..., Q, T), float32 or wider, of assigning each query to each target.

    Takes logits (..., Q, K+1), boxes (..., Q, 4) in [0, 1], `class_labels` (T,) and `boxes` (T, 4), for a batch (B, T)
    and (B, T, 4), and the weights `class_cost`, `bbox_cost`, `giou_cost` of -probability, L1 distance and -IoU.
    """
    boxes = at_least_float32(boxes_cxcywh)[..., None, :]
    target_boxes = at_least_float32(target["boxes"])[..., None, :, :]
    probs = at_least_float32(logits).softmax(-1)
    class_term = -probs.gather(-1, target["class_labels"][..., None, :].expand(*probs.shape[:-1], -1))
    box_term = (boxes - target_boxes).abs().sum(-1)
    giou_term = -generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return costs["class_cost"] * class_term + costs["bbox_cost"] * box_term + costs["giou_cost"] * giou_term


@torch.no_grad()
def match(logits: Tensor, boxes_cxcywh: Tensor, labels: Labels, *, costs: Mapping[str, float]) -> Matching:
    """Assigns a query to each target so that the sum of costs is minimal; the result is on the CPU.

    Takes logits (L, B, Q, K+1) and boxes (L, B, Q, 4). If an image has more targets than queries, some stay unmatched.
    Values that are not finite are a FloatingPointError.
    """
    if linear_sum_assignment is None:
        raise ImportError("Matching needs scipy: `pip install scipy`.")
    padded = {
        "class_labels": pad_sequence([target["class_labels"] for target in labels], batch_first=True),
        "boxes": pad_sequence([target["boxes"] for target in labels], batch_first=True, padding_value=0.5),
    }
    cost = fetch(matching_costs(logits, boxes_cxcywh, padded, costs=costs))[0].numpy()  # (L, B, Q, T)
    if not np.isfinite(cost).all():
        raise FloatingPointError("Matching met logits or boxes that are not finite, in predictions or targets.")
    counts = [len(target["class_labels"]) for target in labels]
    for i, target in enumerate(labels):
        cost[:, i, :, : counts[i]] += np.asarray(target.get("query_costs", 0.0)).T
    pairs = map(np.stack, zip(*(_assign(layer, counts) for layer in cost), strict=True))
    image = np.arange(len(counts)).repeat(np.minimum(counts, logits.shape[2]))
    return Matching(*(torch.from_numpy(index) for index in (image, *pairs)))


def _assign(costs: Any, counts: Sequence[int]) -> tuple[Any, Any]:
    """Solves one layer: costs (B, Q, T) and the number of targets per image to queries and targets, (N,) each."""
    pairs = [linear_sum_assignment(own[:, :count]) for own, count in zip(costs, counts, strict=True)]
    targets = [own + first for (_, own), first in zip(pairs, np.cumsum([0, *counts[:-1]]), strict=True)]
    return np.concatenate([query for query, _ in pairs]), np.concatenate(targets)
