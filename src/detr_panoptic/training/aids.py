"""Losses that act in training only: what the model computes, and what is saved of it, stay as they are.

Not in the paper, and off unless asked for. DETR adds positions to queries and keys alone, so what an object embedding
gathers says where it is only as far as the backbone has put places into its features, by the borders' zero padding. It
learns that from boxes, through decoder and encoder, in thousands of updates, and until then two things of a class look
alike. The aids shorten the way (docs/learning.md has what they gave): every cell of the projected and of the encoded
map names the class and the box of the segment that it lies on, each by a linear layer that is thrown away after
training. A segment counts once, however many cells it has, so things weigh as much as stuff.

Legend: B images, K labels, T targets of one image, (H, W) canvas, (h, w) map.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.nn.utils.rnn import pad_sequence

from ..box_ops import at_least_float32
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

AIDS = "training_aids"
"""The model's attribute, and the beginning of the parameters' names."""
HEAD_SCALE = 8.0
"""Factor on what a cell's linear layer gives: Adam moves every weight alike, and these have to run ahead."""


class TrainingAids(nn.Module):
    """The aids' losses and the layers that they need.

    Args:
        hidden_size: D.
        num_labels: K.
    """

    weights = {"loss_cell_ce": 1.0, "loss_cell_bbox": 5.0}  # noqa: RUF012  never written
    """Of each term in the sum, as in the paper for classes and boxes."""

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(hidden_size, num_labels + 4) for _ in ("projected", "encoded"))
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        features: Any,
        labels: Sequence[dict[str, Any]],
        *,
        canvas_size: tuple[int, int],
        num_targets: Tensor,
    ) -> dict[str, Tensor]:
        """The terms of one batch, without their weights.

        Args:
            features: output of `DetrPanopticModel`.
            labels: B targets with `masks`.
            canvas_size: (H, W).
            num_targets: to divide by.
        """
        height, width = features.projected.shape[-2:]
        shares = [cell_shares(target["masks"], canvas_size, (height, width)) for target in labels]
        terms = {"loss_cell_ce": num_targets.new_zeros(()), "loss_cell_bbox": num_targets.new_zeros(())}
        maps = (features.projected.flatten(2).transpose(1, 2), features.encoder_last_hidden_state)
        for head, cells in zip(self.heads, maps, strict=True):
            for name, value in cell_losses(HEAD_SCALE * head(cells), labels, shares).items():
                terms[name] = terms[name] + value / num_targets
        return terms


def cell_shares(masks: Tensor, canvas_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """How much of each cell a segment covers: (T, ., .) masks on the canvas (H, W) to (T, h, w) in [0, 1]."""
    height, width = canvas_size
    canvas = F.pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
    return F.adaptive_avg_pool2d(canvas, size)


def cell_losses(predictions: Tensor, labels: Sequence[dict[str, Any]], shares: Sequence[Tensor]) -> dict[str, Tensor]:
    """Classes and boxes that cells name, against those of the segments on them.

    Args:
        predictions: (B, h*w, K + 4): class logits, then boxes cxcywh less a half.
        labels: B targets.
        shares: B tensors (T, h, w), see `cell_shares`.

    Returns:
        Sums over segments of means over a segment's cells.
    """
    logits, boxes = at_least_float32(predictions).split((predictions.shape[-1] - 4, 4), dim=-1)
    log_probs = logits.log_softmax(-1)
    weight = pad_sequence([share.flatten(1) for share in shares], batch_first=True).to(logits.device)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)  # (B, T, h*w), zeros where an image has no target
    classes = pad_sequence([target["class_labels"] for target in labels], batch_first=True)
    targets = pad_sequence([at_least_float32(target["boxes"]) for target in labels], batch_first=True)
    of_class = log_probs.transpose(1, 2).gather(1, classes[..., None].expand_as(weight))  # (B, T, h*w)
    distance = (boxes[:, None] + 0.5 - targets[:, :, None]).abs().sum(-1)  # (B, T, h*w)
    return {"loss_cell_ce": -(weight * of_class).sum(), "loss_cell_bbox": (weight * distance).sum()}


def attach_training_aids(model: DetrPanopticForSegmentation) -> None:
    """Gives a model its aids, before the optimizer is built; `save_pretrained` leaves them out."""
    aids = TrainingAids(model.config.hidden_size, model.class_head.out_features - 1).to(model.device)
    setattr(model, AIDS, aids)
    ignored = set(model._keys_to_ignore_on_save or ())
    model._keys_to_ignore_on_save = ignored | {f"{AIDS}.{name}" for name in aids.state_dict()}
