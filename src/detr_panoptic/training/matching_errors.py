"""What the reference logs beside the losses."""

import torch
from torch import Tensor

from ..matcher import Labels, Matching


@torch.no_grad()
def matching_errors(logits: Tensor, labels: Labels, matching: Matching) -> dict[str, Tensor]:
    """Computes what the reference logs beside the losses.

    Args:
        logits: (B, Q, K+1) of the last layer.
        labels: B targets.
        matching: of this layer.

    Returns:
        `class_error`: percentage of matched queries whose best class is wrong; `cardinality_error`: mean difference
        between the numbers of predicted and true objects of an image.
    """
    classes = torch.cat([target["class_labels"] for target in labels])
    best = logits.argmax(-1)
    wrong = best[matching.image, matching.query[-1]] != classes[matching.target[-1]]
    predicted = (best != logits.shape[-1] - 1).sum(1)
    counts = torch.tensor([len(target["class_labels"]) for target in labels], device=logits.device)
    return {
        "class_error": 100 * wrong.float().sum() / max(len(wrong), 1),
        "cardinality_error": (predicted - counts).abs().float().mean(),
    }
