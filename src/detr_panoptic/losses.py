"""The loss of DETR panoptic: classification, boxes and masks of matched pairs.

Follows SetCriterion of models/detr.py and the mask losses of models/segmentation.py of facebookresearch/detr
(29901c5), with these differences:
  * padding does not count as background in the mask losses; `count_padding=True` counts it as the reference does;
  * everything is float32 at least;
  * the normalizers come in as values: the training loop knows the other processes, this file does not;
  * masks are upsampled image by image in chunks, and the backward pass makes each chunk again instead of keeping it;
  * the gradient of the mask losses is written out.

Legend: B images, Q queries, K labels, L decoder layers, N matched pairs, T targets of one image, (H, W) the canvas.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.utils.checkpoint import checkpoint

from .box_ops import at_least_float32, cxcywh_to_xyxy, generalized_iou
from .matcher import Matching

FOCAL_ALPHA = 0.25  # arXiv 1708.02002; its gamma is 2
MASK_PIXELS_PER_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Upsampled mask logits that exist at a time, by type of device: 16 and 256 MiB in float32, a few times that with the
loss around them."""


class LossNormalizers(NamedTuple):
    """What the losses of one batch are divided by.

    With several processes or accumulated batches: the sums over all of them, divided by processes and batches.
    """

    num_targets: Tensor
    """Targets, for boxes and masks. At least 1."""
    class_weight: Tensor
    """Sum of the class weights of all queries, for the classification."""


def loss_normalizers(
    labels: Sequence[dict[str, Any]],
    *,
    num_queries: int,
    eos_coefficient: float,
    device: torch.device | str = "cpu",
    least_targets: int = 1,
) -> LossNormalizers:
    """The normalizers of one batch, from its targets alone; `least_targets` is 0 for sums that are added up first."""
    counts = [len(target["class_labels"]) for target in labels]
    matched = sum(min(count, num_queries) for count in counts)
    class_weight = matched + eos_coefficient * (num_queries * len(labels) - matched)
    values = torch.tensor([max(sum(counts), least_targets), class_weight], dtype=torch.float64).to(
        device, torch.float32
    )
    return LossNormalizers(*values)


def classification_loss(
    logits: Tensor, target_classes: Tensor, matching: Matching, *, eos_coefficient: float, class_weight: Tensor
) -> Tensor:
    """Weighted cross entropy over all queries; a query without a target is "no object", the last class.

    Args:
        logits: (B, Q, K+1).
        target_classes: (all targets,) int64.
        matching: of this layer.
        eos_coefficient: weight of "no object".
        class_weight: the sum of weights to divide by; where it is 0 (no target, and "no object" weighs 0), so is the
            loss.
    """
    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], no_object, device=logits.device)
    classes[matching.image, matching.query] = target_classes[matching.target]
    weights = logits.new_ones(logits.shape[-1])
    weights[no_object] = eos_coefficient
    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight=weights, reduction="sum")
    return loss / class_weight.clamp(min=torch.finfo(class_weight.dtype).tiny)


def box_losses(
    boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor, matching: Matching, *, num_targets: Tensor
) -> dict[str, Tensor]:
    """L1 and generalized IoU losses of matched boxes: (B, Q, 4) and (all targets, 4), in [0, 1]."""
    predicted = boxes_cxcywh[matching.image, matching.query]
    target = target_boxes_cxcywh[matching.target]
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return {
        "loss_bbox": (predicted - target).abs().sum() / num_targets,
        "loss_giou": (1 - giou).sum() / num_targets,
    }


class FocalAndDice(torch.autograd.Function):
    """Focal loss, the mean over a mask's pixels, and soft Dice of each mask, with the gradient written out.

    With a logit x, its probability p, its target t and s = 1 or -1 for t = 1 or 0: q = sigmoid(-s x) is the error and
    c = -log(1 - q) the cross entropy. Autograd takes three times as long over the pixels, which is a fifth of a small
    model's training step (docs/learning.md).
    """

    @staticmethod
    def forward(ctx: Any, mask_logits: Tensor, mask_targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P) logits and {0, 1} targets to the two losses, (N,) each."""
        against = torch.addcmul(mask_logits, mask_logits, mask_targets, value=-2)  # -s x
        error, cross_entropy = against.sigmoid(), F.softplus(against)
        focal = cross_entropy * error * error  # gamma is 2
        focal_on, focal_all = (focal * mask_targets).sum(-1), focal.sum(-1)
        error_on, error_all, target = (error * mask_targets).sum(-1), error.sum(-1), mask_targets.sum(-1)
        # Dice: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1); the 1 keeps an empty target's loss finite and its
        # gradient alive.
        overlap, total = 2 * (target - error_on) + 1, error_all - 2 * error_on + 2 * target + 1
        ctx.save_for_backward(error, cross_entropy, mask_targets, overlap, total)
        focal_sum = FOCAL_ALPHA * focal_on + (1 - FOCAL_ALPHA) * (focal_all - focal_on)
        return focal_sum / mask_logits.shape[-1], 1 - overlap / total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits (N, P), given those of the losses.

        Focal, for a weight a = alpha or 1 - alpha: -s a q^2 (2 (1 - q) c + q), and -s a = 1 - alpha - t. Dice: as
        p' = q (1 - q), that times (overlap - 2 t total) / total^2.
        """
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
    labels: Sequence[dict[str, Any]],
    matching: Matching,
    *,
    canvas_size: tuple[int, int],
    image_sizes: Sequence[Sequence[int]],
    num_targets: Tensor,
    count_padding: bool = False,
    resolution: str = "image",
) -> dict[str, Tensor]:
    """Focal and Dice losses of matched masks.

    Args:
        mask_logits: (N, h, w), the masks of the matched pairs in their order.
        labels: targets with `masks` (T, H_i, W_i), of the image's own size or padded.
        matching: of the last layer.
        canvas_size: (H, W) of the padded batch, which the masks cover.
        image_sizes: B sizes (H_i, W_i) of the images without padding.
        num_targets: to divide by.
        count_padding: take padding as background, as the reference does.
        resolution: "image" resizes the logits to the canvas, as the reference does; "mask" compares them as they are
            with the targets at the centers of their cells, a sixteenth of the pixels.
    """
    focal = dice = at_least_float32(mask_logits[:0]).sum()  # 0, and connected to the graph where nothing matched
    budget = MASK_PIXELS_PER_CHUNK.get(mask_logits.device.type, MASK_PIXELS_PER_CHUNK["cpu"])
    sizes = [tuple(canvas_size if count_padding else size) for size in image_sizes]
    for images in _images_of_one_size(sizes, labels):
        rows = torch.isin(matching.image, torch.tensor(images)).nonzero()[:, 0]
        for chunk in rows.split(max(1, budget // (canvas_size[0] * canvas_size[1]))) if len(rows) else ():
            terms = checkpoint(
                _mask_loss_sums,
                mask_logits[chunk],
                _matched_masks(labels, matching, chunk).to(mask_logits.device),
                canvas_size,
                sizes[images[0]],
                resolution,
                use_reentrant=False,
            )
            focal, dice = focal + terms[0], dice + terms[1]
    return {"loss_mask": focal / num_targets, "loss_dice": dice / num_targets}


def _images_of_one_size(sizes: Sequence[tuple[int, ...]], labels: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The numbers of the images, in groups whose masks can be compared together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (size, target) in enumerate(zip(sizes, labels, strict=True)):
        groups.setdefault((*size, *target["masks"].shape[1:]), []).append(i)
    return list(groups.values())


def _matched_masks(labels: Sequence[dict[str, Any]], matching: Matching, rows: Tensor) -> Tensor:
    """The targets' masks (N, ., .) of some pairs, whose images are in ascending order and of one size."""
    firsts = torch.tensor([0, *(len(target["class_labels"]) for target in labels)]).cumsum(0)
    images, counts = matching.image[rows].unique_consecutive(return_counts=True)
    masks = []
    for i, targets in zip(images.tolist(), matching.target[rows].split(counts.tolist()), strict=True):
        of_image = labels[i]["masks"]
        masks.append(of_image[(targets - firsts[i]).to(of_image.device)])
    return torch.cat(masks)


def _mask_loss_sums(
    mask_logits: Tensor, masks: Tensor, canvas_size: tuple[int, int], size: Sequence[int], resolution: str
) -> tuple[Tensor, Tensor]:
    """Sums of both losses over a chunk: (N, h, w) logits of the canvas, (N, ., .) masks, compared on `size` alone."""
    height, width = size
    logits = at_least_float32(mask_logits)
    masks = masks[:, :height, :width]
    masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    if resolution == "mask":
        shapes = zip(size, canvas_size, logits.shape[1:], strict=True)
        rows, cols = (_cell_centers(*lengths, device=masks.device) for lengths in shapes)
        logits, masks = logits[:, : len(rows), : len(cols)], masks[:, rows[:, None], cols]
    else:
        logits = F.interpolate(logits[:, None], size=canvas_size, mode="bilinear")[:, 0, :height, :width]
    focal, dice = FocalAndDice.apply(logits.flatten(1), masks.flatten(1).to(logits.dtype))
    return focal.sum(), dice.sum()


def _cell_centers(length: int, canvas: int, cells: int, *, device: torch.device) -> Tensor:
    """The pixels at the centers of a canvas' cells, (n,) int64: of those cells whose center lies on the image.

    Of an image that reaches no center, one of a pixel or two, it is the last pixel.
    """
    centers = ((torch.arange(cells, dtype=torch.float32, device=device) + 0.5) * (canvas / cells)).long()
    return centers[: max(int((centers < length).sum()), 1)].clamp(max=length - 1)


def detection_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    labels: Sequence[dict[str, Any]],
    matchings: Sequence[Matching],
    *,
    eos_coefficient: float,
    normalizers: LossNormalizers,
) -> dict[str, Tensor]:
    """Classification and box losses of every given layer.

    Args:
        logits: (L, B, Q, K+1).
        boxes_cxcywh: (L, B, Q, 4).
        labels: B targets.
        matchings: one for each layer.
        eos_coefficient: weight of "no object".
        normalizers: to divide by.

    Returns:
        `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, the same with `_0 ... _{L-2}` of the others.
    """
    classes = torch.cat([target["class_labels"] for target in labels])
    boxes = torch.cat([at_least_float32(target["boxes"]) for target in labels])
    terms = {}
    last = len(matchings) - 1
    for i, matching in enumerate(matchings):
        on_device = Matching(*(index.to(logits.device) for index in matching))
        layer_logits, layer_boxes = at_least_float32(logits[i]), at_least_float32(boxes_cxcywh[i])
        layer = {
            "loss_ce": classification_loss(
                layer_logits,
                classes,
                on_device,
                eos_coefficient=eos_coefficient,
                class_weight=normalizers.class_weight,
            ),
            **box_losses(layer_boxes, boxes, on_device, num_targets=normalizers.num_targets),
        }
        terms.update({name if i == last else f"{name}_{i}": value for name, value in layer.items()})
    return terms


@torch.no_grad()
def matching_errors(logits: Tensor, labels: Sequence[dict[str, Any]], matching: Matching) -> dict[str, Tensor]:
    """What the reference logs beside the losses: (B, Q, K+1) logits to two scalars.

    Returns:
        `class_error`: percent of matched queries with another best class; `cardinality_error`: mean distance between
        the numbers of predicted and of true objects of an image.
    """
    classes = torch.cat([target["class_labels"] for target in labels])
    best = logits.argmax(-1)
    wrong = best[matching.image, matching.query] != classes[matching.target]
    predicted = (best != logits.shape[-1] - 1).sum(1)
    counts = torch.tensor([len(target["class_labels"]) for target in labels], device=logits.device)
    return {
        "class_error": 100 * wrong.float().sum() / max(len(wrong), 1),
        "cardinality_error": (predicted - counts).abs().float().mean(),
    }
