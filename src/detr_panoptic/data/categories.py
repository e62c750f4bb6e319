"""Classes of a dataset: names, which of them are things, and the dataset's own ids.

A label id is an index into `Categories`: contiguous from 0, the class index of the model. A category id is the number
in the dataset's files: those of COCO run from 1 to 200 with gaps.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

UNUSED = "unused_{}"  # name of a label that the dataset does not have, by label id

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Categories:
    """The classes of a dataset; the index into each tuple is the label id.

    Raises:
        ValueError: the lengths differ, or a name or category id occurs twice.

    Examples:
        >>> categories = Categories(names=("boat", "sea"), is_thing=(True, False), category_ids=(3, 105))
        >>> categories.id2label, categories.stuff_label_ids, categories.label_id(105)
        ({0: 'boat', 1: 'sea'}, [1], 1)
    """

    names: tuple[str, ...]  # unique
    is_thing: tuple[bool, ...]  # True for countable objects, False for stuff such as sky
    category_ids: tuple[int, ...]  # the dataset's own unique id of each label

    def __post_init__(self) -> None:
        """Checks lengths and uniqueness."""
        lengths = [len(self.names), len(self.is_thing), len(self.category_ids)]
        if len(set(lengths)) > 1:
            message = "`names`, `is_thing` and `category_ids` must have the same length, got {}, {} and {}."
            raise ValueError(message.format(*lengths))
        for field, values in (("names", self.names), ("category_ids", self.category_ids)):
            repeated = sorted({str(value) for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"`{field}` must not repeat, got {', '.join(repeated)} more than once.")

    def __len__(self) -> int:
        """Returns the number of labels."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each label id, as in a model's config."""
        return dict(enumerate(self.names))

    @property
    def stuff_label_ids(self) -> list[int]:
        """Label ids of stuff, ascending."""
        return [label_id for label_id, thing in enumerate(self.is_thing) if not thing]

    @cached_property
    def label_ids(self) -> dict[int, int]:
        """Label id of each category id."""
        return {category_id: label_id for label_id, category_id in enumerate(self.category_ids)}

    def label_id(self, category_id: int) -> int:
        """Returns the label id of a category id; raises ValueError if the dataset has no such category."""
        if category_id not in self.label_ids:
            raise ValueError(f"Unknown category id {category_id}: expected one of {sorted(self.label_ids)}.")
        return self.label_ids[category_id]

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> "Categories":
        """Builds categories from the `categories` of a COCO panoptic file, in its order.

        Raises:
            ValueError: an entry is no mapping with `id`, `name` and `isthing`, or a name or an id occurs twice.
        """
        categories = list(categories)
        for category in categories:
            shown = str(category)[:80]
            if not isinstance(category, Mapping) or {"id", "name", "isthing"} - set(category):
                raise ValueError(f"A category needs `id`, `name` and `isthing`, got {shown}.")
            if not isinstance(category["id"], int) or category["isthing"] not in (0, 1):
                raise ValueError(f"A category needs an integer `id`, and 0 or 1 as `isthing`, got {shown}.")
        return cls(
            names=tuple(str(category["name"]) for category in categories),
            is_thing=tuple(bool(category["isthing"]) for category in categories),
            category_ids=tuple(category["id"] for category in categories),
        )

    @classmethod
    def from_labels(
        cls, id2label: Mapping[int, str], stuff_label_ids: Iterable[int], category_ids: Iterable[int] | None = None
    ) -> "Categories":
        """Builds categories from the fields of a model's config; category ids default to the label ids.

        Raises:
            ValueError: the label ids are not 0, 1, 2, ..., or a name or an id occurs twice.
        """
        labels, stuff = range(len(id2label)), set(stuff_label_ids)
        if sorted(id2label) != list(labels):
            raise ValueError(f"`id2label` must name the labels from 0 to {len(labels) - 1}, got {sorted(id2label)}.")
        return cls(
            names=tuple(id2label[label_id] for label_id in labels),
            is_thing=tuple(label_id not in stuff for label_id in labels),
            category_ids=tuple(labels if category_ids is None else category_ids),
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """Returns the `categories` of a COCO panoptic file, in the order of label ids."""
        return [
            {"id": category_id, "name": name, "isthing": int(thing)}
            for category_id, name, thing in zip(self.category_ids, self.names, self.is_thing, strict=True)
        ]


def match_labels(wanted: Categories | Mapping[int, str], offered: Categories | Mapping[int, str]) -> dict[int, int]:
    """Matches classes by name: the one rule of the package for data, models and metrics.

    Equal names match first. The remaining ones match if they differ only in upper and lower case or surrounding
    spaces; these matches are logged. No label is used twice.

    Returns:
        Wanted label id of each offered label id. A name without a match is left out; the caller decides whether this
        is an error.

    Examples:
        >>> match_labels({0: "sky", 1: "car"}, {0: "Car", 1: "tree", 2: "sky"})
        {2: 0, 0: 1}
    """
    ours, theirs = (c.id2label if isinstance(c, Categories) else c for c in (wanted, offered))
    matches: dict[int, int] = {}
    for key in (str, _loose_key):
        free = {key(name): label for label, name in ours.items() if label not in matches.values()}
        for label, name in theirs.items():
            if label not in matches and key(name) in free:
                matches[label] = free.pop(key(name))
    loose = [f"{theirs[a]!r} as {ours[b]!r}" for a, b in matches.items() if theirs[a] != ours[b]]
    if loose:
        _logger.warning("Matched class names that are written differently: %s.", ", ".join(loose))
    return matches


def _loose_key(name: str) -> str:
    return str(name).strip().casefold()


# "category id, name" in the order of the official COCO panoptic JSON, which lists all things before stuff.
_COCO_THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone,
78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear,
89 hair drier, 90 toothbrush
"""
_COCO_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 flower,
122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield,
147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel,
171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other,
184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged,
190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged,
196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""


def categories_of_tables(*tables: tuple[str, bool]) -> Categories:
    """Builds categories from texts of "category id, name" and whether these are things."""
    entries = [(*entry.split(maxsplit=1), is_thing) for table, is_thing in tables for entry in table.split(",")]
    category_ids, names, is_thing = zip(*entries, strict=True)
    return Categories(tuple(name.strip() for name in names), is_thing, tuple(map(int, category_ids)))


COCO_PANOPTIC = categories_of_tables((_COCO_THINGS, True), (_COCO_STUFF, False))
