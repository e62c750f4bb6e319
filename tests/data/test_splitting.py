"""Splits: about the same share of each class in both parts, fixed by the seed."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic import read_panoptic, split_data
from detr_panoptic.data import write_coco_panoptic_dataset
from detr_panoptic.data.splitting import split_rows
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset


def rows_of(label_sets):
    features = Features({"segments_info": List({"label_id": Value("int64")})})
    return Dataset.from_dict(
        {"segments_info": [[{"label_id": label} for label in labels] for labels in label_sets]}, features=features
    )


@given(st.integers(0, 2**31 - 1))
def test_classes_have_their_share_in_both_parts(seed):
    rng = np.random.default_rng(seed)
    count, fraction = int(rng.integers(2, 120)), float(rng.uniform(0.05, 0.5))
    frequencies = rng.uniform(0, 0.6, 7)
    label_sets = [np.flatnonzero(rng.random(7) < frequencies).tolist() for _ in range(count)]
    training, held_out = split_rows(rows_of(label_sets), fraction, seed)
    assert sorted(training + held_out) == list(range(count))
    assert len(held_out) == min(max(round(fraction * count), 1), count - 1)
    assert (training, held_out) == split_rows(rows_of(label_sets), fraction, seed)
    total, held = (Counter(label for row in rows for label in label_sets[row]) for rows in (range(count), held_out))
    # The rarest class is chosen first, so its share is exact; a class with one image is trained on.
    rarest = min(total, key=lambda label: (total[label], label), default=None)
    if rarest is not None and total[rarest] * (1 - fraction) >= 2 and len(held_out) > total[rarest]:
        assert abs(held[rarest] - fraction * total[rarest]) <= 1.5


def test_segments_may_be_a_dict_of_lists():
    label_sets = [[0]] * 17 + [[0, 1]] * 3
    rows = Dataset.from_dict({"segments_info": [{"label_id": labels, "id": labels} for labels in label_sets]})
    assert split_rows(rows, 0.15, 0) == split_rows(rows_of(label_sets), 0.15, 0)


def test_rare_classes_are_trained_on():
    """Nine images of a common class, three of a rare one: none of these is held out; another seed chooses others."""
    label_sets = [[0]] * 17 + [[0, 1]] * 3
    choices = [split_rows(rows_of(label_sets), 0.15, seed)[1] for seed in range(5)]
    assert all(len(rows) == 3 and max(rows) < 17 for rows in choices)
    assert len(set(map(tuple, choices))) > 1
    assert all(max(split_rows(rows_of(label_sets), 0.3, seed)[1]) < 17 for seed in range(5))
    _, held_out = split_rows(rows_of([[0]] * 12 + [[1]] * 8), 0.25, 0)
    assert Counter(row < 12 for row in held_out) == {True: 3, False: 2}


def test_split_data_writes_both_parts(tmp_path):
    write_coco_panoptic_dataset(tmp_path / "data", scenes_dataset(5, height=64, width=64), SCENE_CATEGORIES)
    result = split_data(tmp_path / "data", tmp_path / "out", fraction=0.4, progress=False)
    assert (result.training, result.validation) == (3, 2)
    parts = [read_panoptic(tmp_path / "out", split=name) for name in ("train", "val")]
    names = [name for part in parts for name in part.records["file_name"]]
    assert sorted(names) == sorted(read_panoptic(tmp_path / "data").records["file_name"])
    assert parts[0].categories == parts[1].categories == SCENE_CATEGORIES
    for fraction in (0, 1, "many"):
        with pytest.raises(ValueError, match="`fraction`"):
            split_data(tmp_path / "data", tmp_path / "other", fraction=fraction)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`output`"):
        split_data(tmp_path / "data", tmp_path / "out")
