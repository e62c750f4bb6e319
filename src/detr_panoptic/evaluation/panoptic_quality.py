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

from collections import Counter
from collections.abc import Mapping
from functools import reduce
from numbers import Real
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.categories import match_labels
from ..data.records import truth_ids
from ..segment_ids import VOID_ID
from .results import ClassQuality, GroupQuality, PanopticQualityResult

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from ..data.categories import Categories
    from ..inference.prediction import Prediction

MATCH_IOU = 0.5  # two matches of one segment cannot both exceed it, so matching needs no assignment
IGNORED_SHARE = 0.5  # of a wrong prediction's area in void or crowd, above which it does not count


class PanopticQuality:
    """Measures panoptic quality image by image.

    Objects can be added (`a + b`), so that shards and processes combine. They keep the contribution of each image: the
    same images in the same order give the same bits, whatever the number of parts.

    Args:
        categories: of the truth.

    Example:
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
        """Starts without images."""
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
        self._images.append(_count(truth, prediction, self.categories.category_ids))

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
        """Returns the quality of all images so far, with the bits of the official evaluator for the same order.

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


class _Segment(NamedTuple):
    """One listed segment."""

    label: int
    area: int
    is_crowd: bool = False


def _count(truth: Mapping[str, Any], prediction: Mapping[str, Any], category_ids: Sequence[int]) -> _Counts:
    """Finds matches, wrong predictions and missed segments of one image."""
    overlaps = _overlaps(truth_ids(truth), truth_ids(prediction))
    true_areas, areas = Counter[int](), Counter[int]()
    for (true_id, found_id), overlap in overlaps.items():
        true_areas[true_id] += overlap
        areas[found_id] += overlap
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    true = {
        s["id"]: _Segment(_label(s, label_of), _area(s, true_areas[s["id"]]), s.get("iscrowd", 0) == 1)
        for s in truth["segments_info"]
    }
    found = {s["id"]: _Segment(_label(s, label_of), areas[s["id"]]) for s in prediction["segments_info"]}
    _check_same_ids(areas, found)
    ious = _match(true, found, overlaps)
    matched_true, matched_found = ({pair[side] for pair in ious} for side in (0, 1))
    crowd_of = {segment.label: i for i, segment in true.items() if segment.is_crowd}
    counts: _Counts = []
    for (i, _), iou in ious.items():
        counts += [(0, true[i].label, iou), (1, true[i].label, 1)]
    for i, segment in found.items():
        excused = overlaps.get((VOID_ID, i), 0) + overlaps.get((crowd_of.get(segment.label, -1), i), 0)
        if i not in matched_found and excused / segment.area <= IGNORED_SHARE:
            counts.append((2, segment.label, 1))
    missed = [segment.label for i, segment in true.items() if i not in matched_true and not segment.is_crowd]
    return counts + [(3, label, 1) for label in missed]


def _overlaps(true_ids: NDArray[Any], found_ids: NDArray[Any]) -> dict[tuple[int, int], int]:
    """Counts the pixels that each (true id, predicted id) shares, in ascending order of the pairs."""
    if true_ids.shape != found_ids.shape:
        raise ValueError(f"Truth and prediction must have the same shape, got {true_ids.shape} and {found_ids.shape}.")
    true_ids, found_ids = true_ids.ravel(), found_ids.ravel()
    starts_run = np.ones(true_ids.size, dtype=bool)
    starts_run[1:] = (true_ids[1:] != true_ids[:-1]) | (found_ids[1:] != found_ids[:-1])
    starts = np.flatnonzero(starts_run)
    pairs, run_pairs = np.unique(true_ids[starts].astype(np.int64) << 32 | found_ids[starts], return_inverse=True)
    areas = np.bincount(run_pairs, np.diff(starts, append=true_ids.size)).astype(int)
    return {(pair >> 32, pair & 0xFFFFFFFF): area for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True)}


def _match(
    true: dict[int, _Segment], found: dict[int, _Segment], overlaps: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], float]:
    """Returns the IoU of each matched (true id, predicted id)."""
    ious = {}
    for (i, j), overlap in overlaps.items():
        if i not in true or j not in found or true[i].is_crowd or true[i].label != found[j].label:
            continue
        union = found[j].area + true[i].area - overlap - overlaps.get((VOID_ID, j), 0)
        if union <= 0:
            raise ValueError(
                f"Segment {i} has the `area` {true[i].area} but shares {overlap} pixels with segment {j}."
            )
        if overlap / union > MATCH_IOU:
            ious[i, j] = overlap / union
    return ious


def _area(segment: Mapping[str, Any], counted: int) -> Any:
    """Returns the listed area of a true segment, as the official evaluator uses it, else the counted one."""
    area: Any = segment.get("area", counted)
    if not isinstance(area, Real) or area < min(counted, 1):
        raise ValueError(f"Segment {segment['id']} must have a number of pixels as its `area`, got {area!r}.")
    return area


def _label(segment: Mapping[str, Any], label_of: Mapping[int, int]) -> int:
    """Returns the label of an entry that has a category id or a label id."""
    if "category_id" not in segment and "label_id" in segment and 0 <= segment["label_id"] < len(label_of):
        return int(segment["label_id"])
    if segment.get("category_id") not in label_of:
        name = "category_id" if "category_id" in segment else "label_id"
        raise ValueError(f"Segment {segment['id']} has the unknown `{name}` {segment.get(name)}.")
    return label_of[segment["category_id"]]


def _check_same_ids(in_map: Collection[int], listed: Collection[int]) -> None:
    """Raises ValueError unless a prediction's map and entries have the same ids."""
    if unlisted := sorted(set(in_map) - set(listed) - {VOID_ID}):
        raise ValueError(f"Segments {unlisted} are in the prediction's map but not in its `segments_info`.")
    if unseen := sorted(set(listed) - set(in_map)):
        raise ValueError(f"Segments {unseen} are in the prediction's `segments_info` but not in its map.")


def _divide(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> list[float]:
    """Divides where the denominator is not 0; elsewhere the quotient is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0).tolist()


def _average(rows: Iterable[ClassQuality]) -> GroupQuality:
    occurring = [(row.pq, row.sq, row.rq) for row in rows if row.occurs]
    # Not sum(): from Python 3.12 on it compensates rounding, which the official evaluator does not.
    sums = [reduce(add, values) for values in zip(*occurring, strict=True)] or [0.0, 0.0, 0.0]
    pq, sq, rq = (value / max(len(occurring), 1) for value in sums)
    return GroupQuality(pq, sq, rq, len(occurring))
