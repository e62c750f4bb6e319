"""The class head of a checkpoint for other classes: what it knows by name stays."""

from typing import Any

import torch
from torch import nn

from ..data.categories import Categories
from ..modeling_detr_panoptic import DetrPanopticForSegmentation


@torch.no_grad()
def fit_class_head(model: DetrPanopticForSegmentation, categories: Categories) -> list[str]:
    """Gives the model these labels; the rows of those that it knows by name, and of "no object", are copied.

    Args:
        model: changed in place, with its configuration. Names are compared without regard to case.
        categories: of the data.

    Returns:
        The names that the model did not know; their rows are new.
    """
    config: Any = model.config
    old_rows = {str(name).casefold(): row for row, name in config.id2label.items()}
    rows = [old_rows.get(name.casefold()) for name in categories.names]
    config.id2label = categories.id2label
    config.label2id = {name: label for label, name in categories.id2label.items()}
    config.stuff_label_ids = categories.stuff_label_ids
    config.category_ids = list(categories.category_ids)

    old = model.class_head
    head = nn.Linear(old.in_features, len(categories) + 1, device=old.weight.device, dtype=old.weight.dtype)
    sources = [*rows, old.out_features - 1]  # the last class is "no object"
    for new_row, old_row in enumerate(sources):
        if old_row is not None:
            head.weight[new_row] = old.weight[old_row]
            head.bias[new_row] = old.bias[old_row]
    model.class_head = head
    return [name for name, row in zip(categories.names, rows, strict=True) if row is None]
