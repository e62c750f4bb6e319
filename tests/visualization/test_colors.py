"""Colors: COCO's own where the classes are COCO's, else computed; a shade per instance."""

import numpy as np
import pytest

from detr_panoptic.data.categories import COCO_PANOPTIC, UNUSED
from detr_panoptic.visualization import class_colors, color_of, shade
from detr_panoptic.visualization.colors import segment_colors

# Some of panoptic_coco_categories.json, written down once more.
OFFICIAL = {
    "person": (220, 20, 60),
    "truck": (0, 0, 70),
    "traffic light": (250, 170, 30),
    "cat": (255, 77, 255),
    "toothbrush": (191, 162, 208),
    "banner": (255, 255, 128),
    "snow": (255, 255, 255),
    "sky-other-merged": (70, 130, 180),
    "grass-merged": (152, 251, 152),
    "rug-merged": (250, 141, 255),
}


def test_cocos_classes_have_cocos_colors():
    colors = class_colors(COCO_PANOPTIC.id2label)
    assert len(set(colors.values())) == len(COCO_PANOPTIC) == len(colors)
    assert {name: colors[COCO_PANOPTIC.names.index(name)] for name in OFFICIAL} == OFFICIAL


def test_colors_go_by_names_where_a_checkpoint_numbers_the_classes_otherwise():
    """Converted checkpoints have COCO's category ids as labels, and names for the numbers between them."""
    id2label = {i: UNUSED.format(i) for i in range(250)}
    id2label |= dict(zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.names, strict=True))
    colors = class_colors(id2label)
    assert colors.keys() == id2label.keys()
    assert colors[187] == OFFICIAL["sky-other-merged"]


def test_one_class_that_is_not_cocos_makes_all_colors_computed():
    """Else a computed color could be next to one of COCO's."""
    assert class_colors({0: "person", 1: "unicorn"}) == {0: color_of(0), 1: color_of(1)}
    assert class_colors({}) == {}


def test_the_segments_of_a_class_are_numbered_in_their_order():
    segments = [{"label_id": label} for label in (1, 0, 1, 1)]
    colors = segment_colors(segments, {0: "cup", 1: "box"})
    assert colors == [color_of(1), color_of(0), shade(color_of(1), 1), shade(color_of(1), 2)]


@pytest.mark.parametrize("names", [COCO_PANOPTIC.id2label, {i: f"class {i}" for i in range(133)}])
def test_twenty_instances_of_each_class_have_their_own_color(names):
    colors = class_colors(names)
    assert len(set(colors.values())) == 133
    for color in colors.values():
        assert shade(color, 0) == color
        assert len({shade(color, instance) for instance in range(20)}) == 20


@pytest.mark.parametrize("names", [COCO_PANOPTIC.id2label, {i: f"class {i}" for i in range(133)}])
def test_the_first_instances_of_a_class_can_be_told_apart(names):
    for color in class_colors(names).values():
        shades = np.array([shade(color, instance) for instance in range(4)], dtype=int)
        distances = np.abs(shades[:, None] - shades).sum(-1) + 1000 * np.eye(4)
        assert distances.min() > 20


def test_numbers_run_from_zero():
    with pytest.raises(ValueError, match="`label_id` must not be negative"):
        color_of(-1)
    with pytest.raises(ValueError, match="`instance` must not be negative"):
        shade((1, 2, 3), -1)
