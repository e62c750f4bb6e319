"""Classes of a model matched with those of a dataset, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.categories import match_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..data.categories import Categories
    from ..inference.prediction import Prediction

SHOWN = 5  # class names in a message


def match_classes(categories: Categories, id2label: Mapping[int, str]) -> dict[int, int]:
    """Returns the dataset's label id of each label id of the model that the dataset has.

    Args:
        categories: of the dataset.
        id2label: names of the model's labels.

    Raises:
        ValueError: the model lacks a class of the dataset.
    """
    labels = match_labels(categories, id2label)
    matched = set(labels.values())
    lacking = [name for label, name in enumerate(categories.names) if label not in matched]
    if lacking:
        shown = ", ".join(map(repr, lacking[:SHOWN])) + (" …" if len(lacking) > SHOWN else "")
        raise ValueError(
            f"The model has no class for {len(lacking)} of the {len(categories)} classes of the data: {shown}. "
            "Classes are matched by name."
        )
    return labels


def relabel(prediction: Prediction, labels: Mapping[int, int]) -> dict[str, Any]:
    """Returns a prediction in the labels of a dataset, as `segmentation` and `segments_info`.

    Segments of classes that the dataset does not have become void: it cannot judge them.

    Args:
        prediction: of a model.
        labels: the dataset's label id of each label id of the model.
    """
    known = [segment for segment in prediction.segments if segment.label_id in labels]
    ids = prediction.segmentation
    if len(known) < len(prediction.segments):
        ids = np.where(np.isin(ids, [segment.id for segment in known]), ids, 0)
    segments = [
        {"id": segment.id, "label_id": labels[segment.label_id], "score": segment.score, "area": segment.area}
        for segment in known
    ]
    return {"segmentation": ids, "segments_info": segments}
