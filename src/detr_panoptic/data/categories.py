"""Names of labels, which of them are things, and the dataset's own ids for them.

A label id is the index into a `Categories`: contiguous from 0, the model's class. A category id is what a dataset
writes into its files: COCO's run from 1 to 200 with gaps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Categories:
    """The labels of a dataset; the index into each tuple is the label id.

    Args:
        names: one name per label, no two alike.
        is_thing: True for countable objects, False for stuff such as sky.
        category_ids: the dataset's own id of each label, no two alike.

    Raises:
        ValueError: if the lengths differ, or a name or a category id occurs twice.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check lengths and uniqueness."""
        lengths = (len(self.names), len(self.is_thing), len(self.category_ids))
        if len(set(lengths)) > 1:
            raise ValueError(
                f"`names`, `is_thing` and `category_ids` must have the same length, got {lengths[0]}, "
                f"{lengths[1]} and {lengths[2]}."
            )
        for field, values in (("names", self.names), ("category_ids", self.category_ids)):
            repeated = sorted({str(value) for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"`{field}` must not repeat, got {', '.join(repeated)} more than once.")

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each label id, as a model's config holds it."""
        return dict(enumerate(self.names))

    @property
    def stuff_label_ids(self) -> list[int]:
        """Label ids that are stuff, ascending."""
        return [label_id for label_id, thing in enumerate(self.is_thing) if not thing]

    @cached_property
    def _label_ids(self) -> dict[int, int]:
        return {category_id: label_id for label_id, category_id in enumerate(self.category_ids)}

    def label_id(self, category_id: int) -> int:
        """Label id of a dataset's category id.

        Raises:
            ValueError: if the dataset has no such category.
        """
        if category_id not in self._label_ids:
            raise ValueError(f"Unknown category id {category_id}: expected one of {sorted(self._label_ids)}.")
        return self._label_ids[category_id]

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> "Categories":
        """Labels in the order of a COCO panoptic file's `categories`: mappings with `id`, `name` and `isthing`.

        Raises:
            ValueError: if a key is missing, or a name or an id occurs twice.
        """
        categories = list(categories)
        for category in categories:
            if not isinstance(category, Mapping) or {"id", "name", "isthing"} - set(category):
                raise ValueError(f"A category needs `id`, `name` and `isthing`, got {str(category)[:80]}.")
            if not isinstance(category["id"], int) or category["isthing"] not in (0, 1):
                raise ValueError(f"A category needs a whole `id`, and 0 or 1 as `isthing`, got {str(category)[:80]}.")
        return cls(
            names=tuple(str(category["name"]) for category in categories),
            is_thing=tuple(bool(category["isthing"]) for category in categories),
            category_ids=tuple(category["id"] for category in categories),
        )

    @classmethod
    def from_labels(
        cls, id2label: Mapping[int, str], stuff_label_ids: Iterable[int], category_ids: Iterable[int] | None = None
    ) -> "Categories":
        """Labels as a model's configuration holds them; category ids are the label ids if there are none.

        Raises:
            ValueError: the label ids are not 0, 1, 2 …, or a name or an id occurs twice.
        """
        if sorted(id2label) != list(range(len(id2label))):
            raise ValueError(f"`id2label` must name the labels from 0 to {len(id2label) - 1}, got {sorted(id2label)}.")
        stuff = set(stuff_label_ids)
        return cls(
            names=tuple(id2label[label_id] for label_id in range(len(id2label))),
            is_thing=tuple(label_id not in stuff for label_id in range(len(id2label))),
            category_ids=tuple(range(len(id2label)) if category_ids is None else category_ids),
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """`categories` of a COCO panoptic file, in the order of label ids."""
        return [
            {"id": category_id, "name": name, "isthing": int(thing)}
            for category_id, name, thing in zip(self.category_ids, self.names, self.is_thing, strict=True)
        ]


# "category id, name" in the order of COCO's own panoptic json, which has every thing before the first stuff.
_COCO_THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep,
21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase,
34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard,
42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl,
52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake,
62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse,
75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book,
85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""
_COCO_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood,
119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform,
145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow,
161 stairs, 166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood,
178 water-other, 180 window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged,
187 sky-other-merged, 188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged,
192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged,
197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""


def _parse_table(table: str, *, isthing: bool) -> list[dict[str, Any]]:
    entries = (entry.strip().split(" ", 1) for entry in table.replace("\n", " ").split(","))
    return [{"id": int(category_id), "name": name, "isthing": isthing} for category_id, name in entries]


COCO_PANOPTIC = Categories.from_coco(
    _parse_table(_COCO_THINGS, isthing=True) + _parse_table(_COCO_STUFF, isthing=False)
)
