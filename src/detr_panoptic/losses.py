"""The loss of DETR panoptic: classification, boxes and masks of matched pairs.

Follows SetCriterion of models/detr.py and the mask losses of models/segmentation.py of facebookresearch/detr
(29901c5), in float32 or wider and for all decoder layers together; docs/deviations.md lists the differences. The
normalizers are arguments: the training loop knows the other processes, this file does not.

Legend: B images, Q queries, K labels, L decoder layers, N matched pairs, T targets of one image, (H, W) the canvas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.utils.checkpoint import checkpoint

from .box_ops import at_least_float32, cxcywh_to_xyxy, generalized_iou, upload
from .matcher import Labels, MatchedLayers, Matching, match, moved_labels

FOCAL_ALPHA = 0.25  # arXiv 1708.02002; its gamma is 2
MASK_PIXELS_PER_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Maximum number of upsampled mask logits in memory, by device type; the loss needs a few times their size."""


class LossNormalizers(NamedTuple):
    """The numbers that the losses of a batch are divided by: sums over an update's batches, per process."""

    num_targets: Tensor  # for boxes and masks; at least 1
    class_weight: Tensor  # sum of the class weights of all queries, for the classification


def loss_normalizers(
    labels: Labels, *, num_queries: int, eos_coefficient: float, device: Any = "cpu", least_targets: int = 1
) -> LossNormalizers:
    """Computes the normalizers of one batch; `least_targets` is 0 if those of several batches are to be added up."""
    counts = [len(target["class_labels"]) for target in labels]
    matched = sum(min(count, num_queries) for count in counts)
    class_weight = matched + eos_coefficient * (num_queries * len(labels) - matched)
    values = torch.tensor([max(sum(counts), least_targets), class_weight], dtype=torch.float64)
    return LossNormalizers(*upload(values.float(), torch.device(device)))


def detection_losses(
    matched: MatchedLayers, *, eos_coefficient: float, normalizers: LossNormalizers
) -> dict[str, Tensor]:
    """Computes `loss_ce`, `loss_bbox` and `loss_giou` of every layer: (L,) each.

    Unmatched queries belong to "no object", the last class, whose weight is `eos_coefficient`.
    """
    logits, boxes = at_least_float32(matched.logits), at_least_float32(matched.boxes)
    matching = matched.matching.to(logits.device)
    target_classes = torch.cat([target["class_labels"] for target in matched.labels])[matching.target]  # (L, N)
    target_boxes = torch.cat([at_least_float32(target["boxes"]) for target in matched.labels])[matching.target]
    places = torch.arange(len(logits), device=logits.device)[:, None], matching.image, matching.query

    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:-1], no_object, device=logits.device)
    classes[places] = target_classes
    weights = logits.new_ones(logits.shape[-1])
    weights[no_object] = eos_coefficient
    entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight=weights, reduction="none")
    # Without targets and without a weight for "no object" both numbers are 0, and so is the loss.
    class_weight = normalizers.class_weight.clamp(min=torch.finfo(entropy.dtype).tiny)

    predicted = boxes[places]  # (L, N, 4)
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target_boxes))
    return {
        "loss_ce": entropy.unflatten(0, classes.shape).sum((1, 2)) / class_weight,
        "loss_bbox": (predicted - target_boxes).abs().sum((1, 2)) / normalizers.num_targets,
        "loss_giou": (1 - giou).sum(1) / normalizers.num_targets,
    }


class FocalAndDice(torch.autograd.Function):
    """Focal loss, averaged over the pixels of a mask, and soft Dice loss, with the gradient written out.

    For a logit x with probability p and target t, let s = 1 if t = 1, else -1. Then q = sigmoid(-s x) is the error and
    c = -log(1 - q) the cross entropy. Autograd needs three times as long (docs/learning.md).
    """

    @staticmethod
    def forward(ctx: Any, mask_logits: Tensor, mask_targets: Tensor) -> tuple[Tensor, Tensor]:
        """Computes both losses (N,) from logits and {0, 1} targets, (N, P) each."""
        against = torch.addcmul(mask_logits, mask_logits, mask_targets, value=-2)  # -s x
        error, cross_entropy = against.sigmoid(), F.softplus(against)
        focal = cross_entropy * error * error  # gamma is 2
        focal_on, focal_all = (focal * mask_targets).sum(-1), focal.sum(-1)
        error_on, error_all, target = (error * mask_targets).sum(-1), error.sum(-1), mask_targets.sum(-1)
        # Dice is 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), finite and with a gradient also for empty targets.
        overlap, total = 2 * (target - error_on) + 1, error_all - 2 * error_on + 2 * target + 1
        ctx.save_for_backward(error, cross_entropy, mask_targets, overlap, total)
        focal_sum = FOCAL_ALPHA * focal_on + (1 - FOCAL_ALPHA) * (focal_all - focal_on)
        return focal_sum / mask_logits.shape[-1], 1 - overlap / total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Computes the gradient of the logits (N, P) from those of the losses.

        Focal, for a = alpha or 1 - alpha: -s a q^2 (2 (1 - q) c + q). Dice: q (1 - q) (overlap - 2 t total) / total^2.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("The mask losses have no second derivative: pass `create_graph=False`.")
        error, cross_entropy, targets, overlap, total = ctx.saved_tensors
        of_focal, of_dice = (gradient[:, None] for gradient in gradients)
        right = 1 - error
        focal = torch.addcmul(error, right, cross_entropy, value=2).mul_(error)
        focal.mul_((1 - FOCAL_ALPHA) - targets).mul_(of_focal / targets.shape[-1])
        dice = targets * (-2 * of_dice / total[:, None])
        dice.add_(of_dice * (overlap / total**2)[:, None]).mul_(right)
        return focal.add_(dice).mul_(error), None


def mask_losses(
    mask_logits: Tensor,
    labels: Labels,
    matching: Matching,
    *,
    canvas_size: tuple[int, int],
    image_sizes: Sequence[Sequence[int]],
    num_targets: Tensor,
    count_padding: bool = False,
    resolution: str = "image",
) -> dict[str, Tensor]:
    """Computes `loss_mask` (focal) and `loss_dice` of matched masks, divided by `num_targets`.

    Takes the masks (N, h, w) of the last layer's matched pairs in their order, which cover the canvas (H, W), targets
    with `masks` (T, H_i, W_i), of the size of the image or padded, the matching on the CPU, and B sizes (H_i, W_i) of
    the images. With `count_padding` padding counts as background, as in the reference. The resolution "image" resizes
    the logits to the canvas, as the reference does; "mask" compares cells' centers.
    """
    focal = dice = at_least_float32(mask_logits[:0]).sum()  # 0, and connected to the graph if nothing is matched
    budget = MASK_PIXELS_PER_CHUNK.get(mask_logits.device.type, MASK_PIXELS_PER_CHUNK["cpu"])
    for target, size in zip(labels, image_sizes, strict=True):
        fitting = [(len(target["class_labels"]), *lengths) for lengths in (size, canvas_size)]
        if (shape := tuple(target["masks"].shape)) not in fitting:
            raise ValueError(f"`masks` of an image must have the shape {' or '.join(map(str, fitting))}, got {shape}.")
    sizes = [tuple(canvas_size if count_padding else size) for size in image_sizes]
    groups: dict[tuple[int, ...], list[int]] = {}  # images whose masks can be compared together
    for i, (size, target) in enumerate(zip(sizes, labels, strict=True)):
        groups.setdefault((*size, *target["masks"].shape[1:]), []).append(i)
    for images in groups.values():
        rows = torch.isin(matching.image, torch.tensor(images)).nonzero()[:, 0]
        for chunk in rows.split(max(1, budget // (canvas_size[0] * canvas_size[1]))) if len(rows) else ():
            terms: Any = checkpoint(
                _mask_loss_sums,
                mask_logits if len(chunk) == len(mask_logits) else mask_logits[upload(chunk, mask_logits.device)],
                _matched_masks(labels, matching, chunk),
                canvas_size,
                sizes[images[0]],
                resolution,
                use_reentrant=False,
                preserve_rng_state=False,  # no chance in it
            )
            focal, dice = focal + terms[0], dice + terms[1]
    return {"loss_mask": focal / num_targets, "loss_dice": dice / num_targets}


def _matched_masks(labels: Labels, matching: Matching, rows: Tensor) -> Tensor:
    """Returns the target masks (N, ., .) of some pairs, whose images are in ascending order and of one size."""
    firsts = torch.tensor([0, *(len(target["class_labels"]) for target in labels)]).cumsum(0)
    images, counts = matching.image[rows].unique_consecutive(return_counts=True)
    own = matching.target[-1][rows] - firsts[matching.image[rows]]
    of_images = upload(own, labels[0]["class_labels"].device).split(counts.tolist())
    return torch.cat([labels[i]["masks"][own] for i, own in zip(images.tolist(), of_images, strict=True)])


def _mask_loss_sums(
    mask_logits: Tensor, masks: Tensor, canvas_size: tuple[int, int], size: Sequence[int], resolution: str
) -> tuple[Tensor, Tensor]:
    """Sums both losses over (N, h, w) logits of the canvas and (N, ., .) masks, compared within `size`."""
    height, width = size
    logits = at_least_float32(mask_logits)
    masks = (masks if masks.is_floating_point() else masks.bool())[:, :height, :width]
    masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    if resolution == "mask":
        shapes = zip(size, canvas_size, logits.shape[1:], strict=True)
        rows, cols = (upload(_cell_centers(*lengths), masks.device) for lengths in shapes)
        logits, masks = logits[:, : len(rows), : len(cols)], masks[:, rows[:, None], cols]
    else:
        logits = F.interpolate(logits[:, None], size=canvas_size, mode="bilinear")[:, 0, :height, :width]
    focal, dice = FocalAndDice.apply(logits.flatten(1), masks.flatten(1).to(logits.dtype))
    return focal.sum(), dice.sum()


def _cell_centers(length: int, canvas: int, cells: int) -> Tensor:
    """Returns the pixels (n,) int64 at the centers of those cells of a canvas that lie on the image, at least one."""
    centers = ((torch.arange(cells, dtype=torch.float32) + 0.5) * (canvas / cells)).long()
    return centers[: max(int((centers < length).sum()), 1)].clamp(max=length - 1)


class MaskCanvas(NamedTuple):
    """The predicted masks and the canvas that they cover."""

    masks: Tensor  # (rows, H/4, W/4) logits
    rows: Tensor  # (rows,) int64 indices into the B*Q queries, ascending; matched queries are among them
    size: tuple[int, int]  # (H, W)
    image_sizes: Sequence[Sequence[int]]  # B sizes without padding


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The loss of a model: matching, terms and their weighted sum."""

    costs: Mapping[str, float]  # of the matching, see `matching_costs`
    weights: Mapping[str, float]  # of `loss_ce`, `loss_bbox`, `loss_giou`, `loss_mask` and `loss_dice`
    eos_coefficient: float  # weight of "no object" in the classification
    mask_resolution: str = "image"  # see `mask_losses`

    def match(self, labels: Labels, logits: Tensor, boxes: Tensor) -> MatchedLayers:
        """Matches all layers with the targets: logits (L, B, Q, K+1) and boxes (L, B, Q, 4)."""
        labels = moved_labels(labels, logits.device)
        return MatchedLayers(labels, logits, boxes, match(logits, boxes, labels, costs=self.costs))

    def __call__(
        self, matched: MatchedLayers, canvas: MaskCanvas, normalizers: LossNormalizers | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum and its terms, named `loss_*`; `_0 ... _{L-2}` are the layers before the last.

        Without `masks` in the targets these have no loss. Without `normalizers` those of this batch are computed.
        """
        logits, eos = matched.logits, self.eos_coefficient
        normalizers = normalizers or loss_normalizers(
            matched.labels, num_queries=logits.shape[2], eos_coefficient=eos, device=logits.device
        )
        detection = detection_losses(matched, eos_coefficient=eos, normalizers=normalizers)
        endings = [*(f"_{layer}" for layer in range(len(logits) - 1)), ""]
        columns = {name: values.unbind() for name, values in detection.items()}
        terms = {name + end: columns[name][layer] for layer, end in enumerate(endings) for name in columns}
        if matched.has_masks:
            rows = matched.rows()  # in ascending order, as those of the canvas
            terms |= mask_losses(
                canvas.masks if len(rows) == len(canvas.rows) else canvas.masks[torch.searchsorted(canvas.rows, rows)],
                matched.labels,
                matched.matching,
                canvas_size=canvas.size,
                image_sizes=canvas.image_sizes,
                num_targets=normalizers.num_targets,
                resolution=self.mask_resolution,
            )
        names = [*columns] * len(logits) + [*terms][len(columns) * len(logits) :]
        weights = torch.tensor([self.weights[name] for name in names], dtype=terms["loss_ce"].dtype)
        total = (upload(weights, logits.device) * torch.stack([*terms.values()])).sum()
        # Without masks the mask head still gets a gradient, of zero: no process waits for one that never comes.
        return total if matched.has_masks else total + at_least_float32(canvas.masks[:0]).sum(), terms
