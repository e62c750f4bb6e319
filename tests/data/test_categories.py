"""Categories: COCO's table, and the way between label ids and category ids."""

import json
import os
from pathlib import Path

import pytest

from detr_panoptic.data.categories import COCO_PANOPTIC, Categories, match_labels

GAPPED = Categories(names=("sea", "boat", "sky"), is_thing=(False, True, False), category_ids=(105, 3, 17))


def test_coco_table_holds_its_known_facts():
    assert len(COCO_PANOPTIC) == 133
    assert sum(COCO_PANOPTIC.is_thing) == 80
    assert COCO_PANOPTIC.stuff_label_ids == list(range(80, 133))
    assert [COCO_PANOPTIC.id2label[label] for label in (0, 57, 79, 80, 132)] == [
        "person",
        "couch",
        "toothbrush",
        "banner",
        "rug-merged",
    ]
    # The ids that COCO's 80 things leave out, and none other below 91.
    assert set(range(1, 91)) - set(COCO_PANOPTIC.category_ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert COCO_PANOPTIC.category_ids[-1] == 200


def test_coco_table_is_that_of_the_official_json():
    if "DETR_PANOPTIC_COCO" not in os.environ:
        pytest.skip("DETR_PANOPTIC_COCO names no folder with coco_panoptic_100/")
    path = Path(os.environ["DETR_PANOPTIC_COCO"]) / "coco_panoptic_100" / "panoptic.json"
    assert Categories.from_coco(json.loads(path.read_text())["categories"]) == COCO_PANOPTIC


@pytest.mark.parametrize("categories", [GAPPED, COCO_PANOPTIC])
def test_label_id_undoes_category_ids(categories):
    assert [categories.label_id(category) for category in categories.category_ids] == list(range(len(categories)))


def test_json_and_back():
    assert Categories.from_coco(json.loads(json.dumps(GAPPED.to_coco()))) == GAPPED
    assert GAPPED.stuff_label_ids == [0, 2]


def test_unknown_category_is_named():
    with pytest.raises(ValueError, match=r"category id 12\b"):
        COCO_PANOPTIC.label_id(12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_thing": (True,)}, "got 3, 1 and 3"),
        ({"names": ("sea", "boat", "sea")}, "`names` must not repeat, got sea"),
        ({"category_ids": (1, 7, 7)}, "`category_ids` must not repeat, got 7"),
    ],
)
def test_inconsistent_tables_are_refused(change, message):
    fields = {"names": GAPPED.names, "is_thing": GAPPED.is_thing, "category_ids": GAPPED.category_ids}
    with pytest.raises(ValueError, match=message):
        Categories(**(fields | change))


def test_a_category_without_isthing_is_refused():
    with pytest.raises(ValueError, match="isthing"):
        Categories.from_coco([{"id": 1, "name": "sea"}])


@pytest.mark.parametrize(
    ("wanted", "offered", "matches"),
    [
        (["sea", "boat"], ["boat", "sea"], {0: 1, 1: 0}),
        (["sea", "boat"], ["boat"], {0: 1}),
        (["sea"], ["tree"], {}),
        (["Sea", "sea"], ["sea"], {0: 1}),  # an equal name comes first
        (["sea"], ["SEA", " Sea", "sea"], {2: 0}),  # no label is used twice
        (["traffic light"], ["Traffic Light "], {0: 0}),
    ],
)
def test_labels_match_by_name(wanted, offered, matches):
    assert match_labels(dict(enumerate(wanted)), dict(enumerate(offered))) == matches


def test_names_in_another_case_are_logged(caplog):
    other = Categories(("Boat", "sky", "sea"), (True, False, False), (1, 2, 3))
    assert match_labels(GAPPED, other) == {0: 1, 1: 2, 2: 0}
    assert "'Boat' as 'boat'" in caplog.text
    assert "sky" not in caplog.text
