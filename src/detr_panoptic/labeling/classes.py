"""Which classes of a teacher become which classes of the labeled data."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..data.categories import Categories, match_labels
from ..data.plain_text import first_line, listing
from .teachers import Teacher


class LabelMatch(NamedTuple):
    """The categories of completed data, its own first, and its label for each label of the model to be added."""

    categories: Categories
    labels: dict[int, int]


def match_stuff(data: Categories, model: Categories, *, with_things: bool) -> LabelMatch:
    """Finds the labels of a model that may be added to data.

    Stuff may be added, and `with_things` also things of classes that the data lacks: of the classes that it has, every
    thing is annotated. Classes that are things in the data are never added as stuff. `match_labels` says which classes
    are the same.

    A new class keeps the model's category id, unless the data uses that id for another class. Then it gets an id that
    neither uses.
    """
    known = match_labels(data, model)
    last = max(*data.category_ids, *model.category_ids)
    new: list[dict[str, Any]] = []
    labels = {}
    for label, category in enumerate(model.to_coco()):
        if label in known:
            own = known[label]
            if not model.is_thing[label] and not data.is_thing[own]:
                labels[label] = own
        elif with_things or not model.is_thing[label]:
            if category["id"] in data.category_ids:
                last += 1
                category["id"] = last
            labels[label] = len(data) + len(new)
            new.append(category)
    return LabelMatch(Categories.from_coco([*data.to_coco(), *new]), labels)


def match_classes(teacher: Teacher, classes: Any = None, stuff: Sequence[str] | None = None) -> LabelMatch:
    """Finds the classes of labels that a teacher makes.

    Args:
        teacher: has names of labels, and knows the kinds of some.
        classes: the wanted names, each with the teacher's name or names for it: a mapping, or a YAML or JSON file of
            one. None: the teacher's own classes.
        stuff: the wanted names that are stuff; the others are things. None: as the teacher says.

    Raises:
        ValueError: a name is unknown or occurs twice, or it is not known which classes are stuff.
    """
    wanted = {name: [name] for name in teacher.id2label.values()} if classes is None else read_class_map(classes)
    labels: dict[int, int] = {}
    members: list[list[int]] = []
    for place, (name, sources) in enumerate(wanted.items()):
        found = match_labels(dict(enumerate(sources)), teacher.id2label)
        if lacking := [source for at, source in enumerate(sources) if at not in found.values()]:
            raise ValueError(_unknown(f"`classes` maps {name!r} to", lacking, teacher.id2label.values()))
        if repeated := [teacher.id2label[label] for label in found if label in labels]:
            raise ValueError(f"`classes` must map each class of the teacher once, got {repeated[0]!r} twice.")
        labels |= dict.fromkeys(found, place)
        members.append(list(found))
    names = tuple(wanted)
    ids = teacher.category_ids if classes is None else tuple(range(1, len(names) + 1))
    return LabelMatch(Categories(names, _kinds(teacher, names, members, stuff), ids), labels)


def _kinds(
    teacher: Teacher, names: Sequence[str], members: Sequence[Sequence[int]], stuff: Sequence[str] | None
) -> tuple[bool, ...]:
    """Returns whether each wanted class is a thing, given the teacher's labels that are its members."""
    if stuff is not None:
        found = match_labels(dict(enumerate(stuff)), dict(enumerate(names)))
        if lacking := [name for at, name in enumerate(stuff) if at not in found.values()]:
            raise ValueError(_unknown("`stuff` names", lacking, names))
        return tuple(place not in found for place in range(len(names)))
    kinds = [{teacher.kinds.get(label) for label in labels} for labels in members]
    if unclear := [name for name, found in zip(names, kinds, strict=True) if len(found) > 1 or None in found]:
        raise ValueError(
            f"`stuff` must name the classes that are stuff, since the teacher does not say which of "
            f"{listing(map(repr, unclear))} are."
        )
    return tuple(found == {True} for found in kinds)


def read_class_map(classes: Any) -> dict[str, list[str]]:
    """Returns the teacher's names of each wanted class; raises ValueError for anything but names and lists of them."""
    content = classes
    if isinstance(classes, str | Path):
        try:
            content = yaml.safe_load(Path(classes).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"`classes` {str(classes)!r} cannot be read: {first_line(error)}") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"`classes` must map names to the teacher's names, as in `car: [car, truck]`, got {content!r}."
        )
    wanted = {str(name): [found] if isinstance(found, str) else found for name, found in content.items()}
    for name, found in wanted.items():
        if not isinstance(found, list | tuple) or not found or not all(isinstance(text, str) for text in found):
            raise ValueError(f"`classes` must map {name!r} to a name or a list of names, got {found!r}.")
    return {name: list(found) for name, found in wanted.items()}


def _unknown(begin: str, lacking: Sequence[str], names: Any) -> str:
    near = get_close_matches(lacking[0], list(names), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f" among {listing(map(repr, names))}."
    return f"{begin} {listing(map(repr, lacking))}: there is no such class{hint}"
