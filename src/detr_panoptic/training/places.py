"""Gives each query a place while it is trained: the matching prefers targets near it. Not in the paper.

Several queries predict nearly the same box for an object. The paper's matching takes the best of them, which is
another one for every image, so none can learn whether it is meant: all of them become half sure, and the object is
found more than once. If the matching also counts how far a target lies from the place of a query, it means the same
query every time, and each can tell from its own prediction alone. The network is unchanged (docs/learning.md).

Legend: Q queries, T targets of one image, N targets of some images. Boxes are cxcywh in [0, 1].
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..modeling_detr_panoptic import DetrPanopticForSegmentation

BATCHES = 8  # from which places are taken
LEAST_BOXES = 50  # for each query; if there are fewer, some are taken more than once,
SPREAD = 0.02  # moved by as much of the image, so that clusters differ


@torch.no_grad()
def predicted_places(model: DetrPanopticForSegmentation, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Returns the mean box (Q, 4) that each query of a trained model predicts."""
    was_training, boxes = model.training, []
    model.eval()
    for batch in islice(batches, BATCHES):
        inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "pixel_mask") if name in batch}
        boxes.append(model(**inputs, mask_queries=0).pred_boxes.float().cpu())
    model.train(was_training)
    return torch.cat(boxes).mean(0)


def spread_places(batches: Iterable[dict[str, Any]], queries: int) -> Tensor:
    """Returns the centers (Q, 4) of clusters of the targets' boxes, for queries that have learned nothing yet."""
    boxes = torch.cat([target["boxes"] for batch in islice(batches, BATCHES) for target in batch["labels"]]).double()
    random = np.random.default_rng(0)
    if not len(boxes):  # the first images have no segment: any places are better than none
        return torch.from_numpy(random.random((queries, 4))).float()
    drawn = boxes.numpy()[random.integers(len(boxes), size=max(len(boxes), LEAST_BOXES * queries))]
    centers, _ = kmeans2(drawn + SPREAD * random.standard_normal(drawn.shape), queries, minit="++", seed=random)
    return torch.from_numpy(centers).float()


def attach_places(model: DetrPanopticForSegmentation, places: Tensor, weight: float) -> None:
    """Adds the distance of targets from the places (Q, 4) of queries to the costs of a model's matching in training.

    The cost is the L1 distance of the boxes times a weight.
    """

    def add_costs(model: Any, args: Any, given: dict[str, Any]) -> Any:
        labels = given.get("labels")
        if not model.training or labels is None:
            return None
        costs = [weight * torch.cdist(target["boxes"].float().cpu(), places, p=1) for target in labels]
        labels = [target | {"query_costs": own} for target, own in zip(labels, costs, strict=True)]
        return args, given | {"labels": labels}

    model.register_forward_pre_hook(add_costs, with_kwargs=True)
