"""Panoptic quality against a plain implementation with a mask for each segment, and wrong entries."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation import PanopticQuality
from tests.fuzz import examples, message_of

pytestmark = pytest.mark.fuzz
CATEGORY_IDS = (7, 200, 1)
CATEGORIES = Categories(("cat", "dog", "sky"), (True, True, False), CATEGORY_IDS)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7))


def id_maps(shape):
    return arrays.arrays(np.int64, shape, elements=st.integers(0, 5))


@st.composite
def problems(draw, *, crowds=True):
    """Maps and segments of truth and prediction, with void, crowds, missing areas, ids without entry or pixels."""
    shape = draw(SHAPES)
    maps = [draw(id_maps(shape)), draw(id_maps(shape))]
    names = [[0, *draw(st.lists(st.integers(1, 2**24 - 1), min_size=5, max_size=5, unique=True))] for _ in maps]
    truth, prediction = (np.array(ids)[values] for ids, values in zip(names, maps, strict=True))
    categories = st.sampled_from(CATEGORY_IDS)
    truth_segments = []
    for segment_id in draw(st.permutations(names[0][1:])):
        if not draw(st.integers(0, 4)):
            continue  # an id without an entry
        entry = {"id": segment_id, "category_id": draw(categories)}
        if crowds and draw(st.booleans()):
            entry["iscrowd"] = draw(st.integers(0, 1))
        if draw(st.booleans()):
            entry["area"] = int((truth == segment_id).sum())
        truth_segments.append(entry)
    present = [i for i in draw(st.permutations(names[1][1:])) if (prediction == i).any()]
    prediction_segments = [{"id": i, "category_id": draw(categories)} for i in present]
    return truth, truth_segments, prediction, prediction_segments


def plain_stats(truth, truth_segments, prediction, prediction_segments):
    """{category: [iou, tp, fp, fn]}, a mask for each segment and a loop for each rule."""
    sums = {category_id: [0.0, 0, 0, 0] for category_id in CATEGORY_IDS}
    matched = set()
    for target in truth_segments:
        if target.get("iscrowd"):
            continue
        mask, sum_ = truth == target["id"], sums[target["category_id"]]
        found = False
        for segment in prediction_segments:
            own = prediction == segment["id"]
            union = ((mask | own) & ((truth != 0) | mask)).sum()
            if segment["category_id"] == target["category_id"] and (mask & own).sum() / max(union, 1) > 0.5:
                sum_[0] += (mask & own).sum() / union
                found = True
                matched.add(segment["id"])
        sum_[1 if found else 3] += 1
    for segment in prediction_segments:
        if segment["id"] in matched:
            continue
        excuse = truth == 0
        crowds = [t["id"] for t in truth_segments if t.get("iscrowd") and t["category_id"] == segment["category_id"]]
        if crowds:
            excuse |= truth == crowds[-1]
        own = prediction == segment["id"]
        if (own & excuse).sum() / own.sum() <= 0.5:
            sums[segment["category_id"]][2] += 1
    return sums


def quality_of(*images):
    quality = PanopticQuality(CATEGORIES)
    for truth, truth_segments, prediction, prediction_segments in images:
        quality.update(
            {"segmentation": truth, "segments_info": truth_segments},
            {"segmentation": prediction, "segments_info": prediction_segments},
        )
    return quality


def rows_of(quality):
    return [[row.sq * row.tp, row.tp, row.fp, row.fn] for row in quality.compute().per_class.values()]


def sums_of(*image):
    return rows_of(quality_of(image))


@examples(80)
@given(problems())
def test_sums_are_those_of_a_mask_per_segment(problem):
    np.testing.assert_allclose(sums_of(*problem), list(plain_stats(*problem).values()), atol=1e-12)


@examples(20)
@given(st.lists(problems(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_sums_of_any_order_and_split_are_the_same(images, random):
    whole = rows_of(quality_of(*images))
    random.shuffle(images)
    cut = random.randint(0, len(images))
    total = quality_of(*images[:cut]) + quality_of(*images[cut:])
    np.testing.assert_allclose(rows_of(total), whole, atol=1e-12)


@examples(40)
@given(problems(), st.lists(st.integers(1, 2**31 - 1), min_size=10, max_size=10, unique=True))
def test_names_of_segments_do_not_count(problem, names):
    def renamed(ids, segments, new):
        """The map and its entries with other ids, but void."""
        new_of = dict(zip(sorted({*np.unique(ids).tolist(), *(s["id"] for s in segments)} - {0}), new, strict=False))
        values = np.vectorize(lambda i: new_of.get(i, 0), otypes=[np.int64])(ids)
        return values, [{**segment, "id": new_of[segment["id"]]} for segment in segments]

    truth, truth_segments, prediction, prediction_segments = problem
    other = (*renamed(truth, truth_segments, names[:5]), *renamed(prediction, prediction_segments, names[5:]))
    np.testing.assert_allclose(sums_of(*problem), sums_of(*other), atol=1e-12)


@examples(40)
@given(problems(crowds=False))
def test_a_map_is_its_own_perfect_prediction(problem):
    ids, segments, *_ = problem
    segments = [segment for segment in segments if (ids == segment["id"]).any()]
    ids = np.where(np.isin(ids, [segment["id"] for segment in segments]), ids, 0)
    assume(segments)
    rows = quality_of((ids, segments, ids, segments)).compute().per_class.values()
    assert {row.pq for row in rows if row.occurs} == {1.0}
    assert sum(row.tp for row in rows) == len(segments)


@examples(80)
@given(problems(), st.data())
def test_wrong_entries_are_errors_that_name_the_segment_or_nothing_at_all(problem, data):
    truth, truth_segments, prediction, prediction_segments = problem
    side = data.draw(st.sampled_from([s for s in (truth_segments, prediction_segments) if s] or [[]]))
    assume(side)
    place = data.draw(st.integers(0, len(side) - 1))
    values = st.integers(-3, 10**6) | st.none() | st.booleans()
    key = data.draw(st.sampled_from(["id", "category_id", "label_id", "area", "iscrowd"]))
    side[place] = {**side[place], key: data.draw(values)}
    message = message_of(lambda: sums_of(truth, truth_segments, prediction, prediction_segments), ValueError)
    assert message is None or "egment" in message
