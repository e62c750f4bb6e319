"""Panoptic quality (Kirillov et al., arXiv 1801.00868), equal to cocodataset/panopticapi's to the last bit.

Kept from the official evaluator: a pair matches above an IoU of 0.5; the union leaves out void; crowds are neither
found nor missed; a prediction that lies by more than half in void, or in the crowd of its class, does not count as
wrong; if a class has several crowds in an image, only the last one listed counts; the area of a true segment is the
listed one.

Differences:
  * images, shards and processes can be added;
  * intersections are counted over runs of equal pixels: a row of a map has about ten runs and about 600 pixels;
  * without any class the quality is 0, not a division by zero;
  * an unknown category of a true segment is an error too, and errors are ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.categories import match_labels
from .matching import SegmentPairs, pair_segments
from .results import ClassQuality, GroupQuality, PanopticQualityResult

if TYPE_CHECKING:
    from ..data.categories import Categories
    from ..inference.prediction import Prediction


class PanopticQuality:
    """Measures panoptic quality image by image.

    Objects can be added (`a + b`) to combine shards and processes. They keep the contribution of each image: the same
    images in the same order give the same bits, whatever the number of parts.

    Args:
        categories: the categories of the truth.

    Examples:
        >>> import numpy as np
        >>> from detr_panoptic import PanopticQuality
        >>> from detr_panoptic.data.categories import Categories
        >>> quality = PanopticQuality(Categories(("cat", "sky"), (True, False), (17, 187)))
        >>> truth = {
        ...     "segmentation": np.array([[1, 1, 2, 2]]),
        ...     "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}],
        ... }
        >>> prediction = {"segmentation": np.array([[7, 7, 7, 0]]), "segments_info": [{"id": 7, "label_id": 0}]}
        >>> quality.update(truth, prediction)
        >>> round(quality.compute().pq, 3)
        0.333
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self._images: list[_Counts] = []

    def update(self, truth: Mapping[str, Any], prediction: Prediction | Mapping[str, Any]) -> None:
        """Adds one image.

        Args:
            truth: a record, or a mapping with `segmentation`, (H, W) integer ids below 2³¹ with 0 for void, and
                `segments_info`: mappings with `id`, `label_id` or `category_id`, and if known `iscrowd` (0 by default)
                and `area` (by default counted in the map).
            prediction: a `Prediction`, whose classes are matched by name: segments of classes that the truth does not
                have become void. Or `segmentation` and `segments_info` as post-processing returns them, with the
                label ids of the truth.

        Raises:
            ValueError: the shapes differ, a category is unknown, or the prediction's map and segments have different
                ids.
        """
        if not isinstance(prediction, Mapping):
            labels = match_labels(self.categories, prediction.id2label)
            prediction = relabel(prediction.segmentation, prediction.segments_info, labels)
        self.add(pair_segments(truth, prediction, self.categories.category_ids))

    def add(self, pairs: SegmentPairs) -> None:
        """Adds one image whose segments are matched already."""
        self._images.append(_count(pairs))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._images)

    def __add__(self, other: PanopticQuality) -> PanopticQuality:
        """Returns the quality of the images of both, in this order, for the same categories."""
        both = PanopticQuality(self.categories)
        both += self
        both += other
        return both

    def __iadd__(self, other: PanopticQuality) -> PanopticQuality:
        """Appends the images of another with the same categories."""
        if self.categories != other.categories:
            raise ValueError("Panoptic qualities that are added must have the same categories.")
        self._images += other._images
        return self

    def compute(self) -> PanopticQualityResult:
        """Returns the quality of all images so far. For the same order, it has the official evaluator's bits.

        The official evaluator adds match by match in each process and then the processes, so that its last digits
        depend on the number of cores. The goldens were made with two, and so is this sum on any machine.
        """
        half = -(-len(self._images) // 2)
        parts = np.zeros((2, 4, len(self.categories)))
        for place, image in enumerate(self._images):
            for row, label, amount in image:
                parts[int(place >= half), row, label] += amount
        iou, tp, fp, fn = parts[0] + parts[1]
        denominator = tp + 0.5 * fp + 0.5 * fn
        columns = zip(
            self.categories.category_ids,
            self.categories.is_thing,
            *(_divide(iou, denominator), _divide(iou, tp), _divide(tp, denominator)),
            *(count.astype(int).tolist() for count in (tp, fp, fn)),
            strict=True,
        )
        per_class = {name: ClassQuality(*row) for name, row in zip(self.categories.names, columns, strict=True)}
        return PanopticQualityResult(
            overall=_average(per_class.values()),
            things=_average(row for row in per_class.values() if row.is_thing),
            stuff=_average(row for row in per_class.values() if not row.is_thing),
            per_class=per_class,
        )


def relabel(
    ids: NDArray[np.int32], segments_info: Sequence[Mapping[str, Any]], labels: Mapping[int, int]
) -> dict[str, Any]:
    """Returns a predicted map in the labels of a dataset, given the dataset's label of each label of the model.

    Segments of classes that the dataset does not have become void: it cannot judge them.
    """
    known = [segment for segment in segments_info if segment["label_id"] in labels]
    if len(known) < len(segments_info):
        ids = np.where(np.isin(ids, [segment["id"] for segment in known]), ids, 0)
    same = ("id", "score", "area")
    segments = [{"label_id": labels[s["label_id"]], **{key: s[key] for key in same}} for s in known]
    return {"segmentation": ids, "segments_info": segments}


_Counts = list[tuple[int, int, float]]
"""Of one image: a row, a label and what to add there; the rows are IoU, matches, wrong and missed segments."""


def _count(pairs: SegmentPairs) -> _Counts:
    """Returns what an image adds to matches, wrong and missed segments."""
    counts: _Counts = []
    for (i, _), iou in pairs.ious.items():
        counts += [(0, pairs.true[i].label, iou), (1, pairs.true[i].label, 1)]
    counts += [(2, pairs.found[j].label, 1) for j in pairs.wrong()]
    return counts + [(3, pairs.true[i].label, 1) for i in pairs.missed()]


def _divide(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> list[float]:
    """Divides where the denominator is not 0; elsewhere the quotient is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0).tolist()


def _average(rows: Iterable[ClassQuality]) -> GroupQuality:
    occurring = [(row.pq, row.sq, row.rq) for row in rows if row.occurs]
    # Not sum(): from Python 3.12 on it compensates rounding, which the official evaluator does not.
    sums = [reduce(add, values) for values in zip(*occurring, strict=True)] or [0.0, 0.0, 0.0]
    pq, sq, rq = (value / max(len(occurring), 1) for value in sums)
    return GroupQuality(pq, sq, rq, len(occurring))
