"""Auxiliary losses for training that change neither the predictions nor the saved model.

They are not in the paper and are off by default. DETR adds positions to queries and keys only, so an object embedding
learns where it is only as far as the backbone encodes positions, through the zero padding of the borders. That takes
thousands of updates, and until then two objects of a class look alike. The aids shorten the way (docs/learning.md has
the measurements): every cell of the projected and of the encoded map predicts the class and the box of the segment on
it, with a linear layer each that is discarded after training. A segment counts once, however many cells it has.

Legend: B images, K labels, T targets of one image, (H, W) canvas, (h, w) map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.nn.utils.rnn import pad_sequence

from ..box_ops import at_least_float32
from ..losses import loss_normalizers
from ..matcher import Labels, moved_labels
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

AIDS = "training_aids"
"""The model's attribute and the prefix of the parameters' names."""
HEAD_SCALE = 8.0
"""Factor on the output of the linear layers. Adam moves every weight alike, and these have to learn faster."""


class TrainingAids(nn.Module):
    """The losses and the layers that they need, for D hidden features and K labels."""

    weights = {"loss_cell_ce": 1.0, "loss_cell_bbox": 5.0}  # noqa: RUF012  never written
    """Weight of each term in the loss, as in the paper for classes and boxes."""

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(hidden_size, num_labels + 4) for _ in ("projected", "encoded"))
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, features: Any, labels: Labels, *, canvas_size: tuple[int, int], num_targets: Tensor
    ) -> dict[str, Tensor]:
        """Computes the unweighted terms from the model's output and B targets with masks on a canvas (H, W)."""
        shares = [cell_shares(target["masks"], canvas_size, features.projected.shape[-2:]) for target in labels]
        terms = {name: num_targets.new_zeros(()) for name in self.weights}
        maps = (features.projected.flatten(2).transpose(1, 2), features.encoder_last_hidden_state)
        for head, cells in zip(self.heads, maps, strict=True):
            for name, value in cell_losses(HEAD_SCALE * head(cells), labels, shares).items():
                terms[name] = terms[name] + value / num_targets
        return terms


def cell_shares(masks: Tensor, canvas_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Computes the share of each cell that a segment covers: masks (T, ., .) on the canvas to (T, h, w) in [0, 1]."""
    height, width = canvas_size
    canvas = F.pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
    return F.adaptive_avg_pool2d(canvas, size)


def cell_losses(predictions: Tensor, labels: Labels, shares: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compares the classes and boxes that cells predict with those of the segments on them.

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
    """Adds the aids to a model before its optimizer is built; `save_pretrained` leaves them out."""
    aids = TrainingAids(model.config.hidden_size, model.class_head.out_features - 1).to(model.device)
    setattr(model, AIDS, aids)
    ignored = set(model._keys_to_ignore_on_save or ())
    model._keys_to_ignore_on_save = ignored | {f"{AIDS}.{name}" for name in aids.state_dict()}
    model.register_forward_hook(_add_aid_losses, with_kwargs=True)


def _add_aid_losses(model: Any, _args: Any, given: dict[str, Any], output: Any) -> Any:
    """Adds the terms of a model's aids to its output in training, if the targets have masks; a forward hook."""
    labels, logits = given.get("labels"), output.logits
    if not model.training or labels is None or "masks" not in labels[0]:
        return output
    labels = moved_labels(labels, logits.device)
    coefficients = {name: getattr(model.config, name) for name in ("num_queries", "eos_coefficient")}
    normalizers = given.get("normalizers") or loss_normalizers(labels, **coefficients, device=logits.device)
    aids, canvas_size = getattr(model, AIDS), given["pixel_values"].shape[-2:]
    terms = aids(output, labels, canvas_size=canvas_size, num_targets=normalizers.num_targets)
    output["loss_dict"] = output.loss_dict | terms
    output["loss"] = output.loss + torch.stack([aids.weights[name] * term for name, term in terms.items()]).sum()
    return output
