"""Annotations that are wrong, in each format that `read_panoptic` reads."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.commands.bad_input.place import Case, Place
from tests.data_folders import PHOTOS, coco_panoptic

Spoil = Callable[[dict[str, Any]], object]


def coco(spoil: Spoil) -> Case:
    """A COCO panoptic folder whose JSON was changed."""

    def case(place: Place) -> str:
        path = coco_panoptic(place.folder / "my_data") / "panoptic.json"
        contents = json.loads(path.read_text())
        spoil(contents)
        path.write_text(json.dumps(contents))
        return place.convert()

    return case


def coco_text(text: str) -> Case:
    """A COCO panoptic folder whose JSON is another text."""

    def case(place: Place) -> str:
        (coco_panoptic(place.folder / "my_data") / "panoptic.json").write_text(text)
        return place.convert()

    return case


def coco_files(spoil: Callable[[Path], object]) -> Case:
    """A COCO panoptic folder whose files were changed."""

    def case(place: Place) -> str:
        spoil(coco_panoptic(place.folder / "my_data"))
        return place.convert()

    return case


def first(contents: dict[str, Any], **changes: Any) -> None:
    contents["annotations"][0] |= changes


def segment(contents: dict[str, Any], **changes: Any) -> None:
    contents["annotations"][0]["segments_info"][0] |= changes


def image(contents: dict[str, Any], **changes: Any) -> None:
    contents["images"][0] |= changes


def category(contents: dict[str, Any], **changes: Any) -> None:
    contents["categories"][0] |= changes


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def link_out(folder: Path) -> None:
    secret = folder.parent / "secret.png"
    (folder / "panoptic" / "map31.png").rename(secret)
    (folder / "panoptic" / "map31.png").symlink_to(secret)


COCO: dict[str, Case] = {
    "COCO: JSON that breaks off": coco_text('{"images": ['),
    "COCO: a list instead of an object": coco_text("[]"),
    "COCO: nested 100 000 times": coco_text("[" * 100_000),
    "COCO: not UTF-8": coco_files(lambda folder: (folder / "panoptic.json").write_bytes(b'{"a": "\xff"}')),
    "COCO: no `annotations`": coco(lambda c: c.pop("annotations")),
    "COCO: `images` is an object": coco(lambda c: c.update(images={"a": 1})),
    "COCO: an entry of `images` is a text": coco(lambda c: c["images"].append("x")),
    "COCO: an image without `file_name`": coco(lambda c: c["images"][0].pop("file_name")),
    "COCO: `file_name` is a number": coco(lambda c: image(c, file_name=7)),
    "COCO: `file_name` is empty": coco(lambda c: image(c, file_name="")),
    "COCO: `file_name` with a zero byte": coco(lambda c: image(c, file_name="a\0.jpg")),
    "COCO: `file_name` climbs": coco(lambda c: image(c, file_name="../../photo.jpg")),
    "COCO: `file_name` is absolute": coco(lambda c: image(c, file_name="/etc/passwd")),
    "COCO: `file_name` climbs, as on Windows": coco(lambda c: image(c, file_name="..\\photo.jpg")),
    "COCO: a map that is a link out of the folder": coco_files(link_out),
    "COCO: an image that is missing": coco_files(lambda folder: (folder / "images" / "31.jpg").unlink()),
    "COCO: a map that is missing": coco_files(lambda folder: (folder / "panoptic" / "map31.png").unlink()),
    "COCO: a folder where an image should be": coco_files(
        lambda folder: ((folder / "images" / "31.jpg").unlink(), (folder / "images" / "31.jpg").mkdir())
    ),
    "COCO: an image that is damaged": coco_files(lambda folder: truncate(folder / "images" / "31.jpg")),
    "COCO: a map that is damaged": coco_files(lambda folder: truncate(folder / "panoptic" / "map31.png")),
    "COCO: a map of another size than its image": coco_files(
        lambda folder: Image.new("RGB", (6, 5)).save(folder / "panoptic" / "map31.png")
    ),
    "COCO: two images of one id": coco(lambda c: image(c, id=c["images"][1]["id"])),
    "COCO: an image annotated twice": coco(lambda c: c["annotations"].append(c["annotations"][0])),
    "COCO: an annotation of an unknown image": coco(lambda c: first(c, image_id=555)),
    "COCO: `image_id` is a list": coco(lambda c: first(c, image_id=[1])),
    "COCO: `image_id` is true": coco(lambda c: first(c, image_id=True)),
    "COCO: `segments_info` is missing": coco(lambda c: c["annotations"][0].pop("segments_info")),
    "COCO: a segment is a number": coco(lambda c: c["annotations"][0]["segments_info"].append(3)),
    "COCO: a segment's `id` is 0, which is void": coco(lambda c: segment(c, id=0)),
    "COCO: a segment's `id` is negative": coco(lambda c: segment(c, id=-9)),
    "COCO: a segment's `id` is beyond three bytes": coco(lambda c: segment(c, id=256**3)),
    "COCO: a segment's `id` has 30 digits": coco(lambda c: segment(c, id=10**29)),
    "COCO: a segment's `id` is a text": coco(lambda c: segment(c, id="9")),
    "COCO: a segment's `id` is 1.5": coco(lambda c: segment(c, id=1.5)),
    "COCO: an unknown category": coco(lambda c: segment(c, category_id=12)),
    "COCO: a category that is null": coco(lambda c: segment(c, category_id=None)),
    "COCO: `area` is NaN": coco(lambda c: segment(c, area=float("nan"))),
    "COCO: `area` is infinite": coco(lambda c: segment(c, area=float("inf"))),
    "COCO: `area` is half a pixel": coco(lambda c: segment(c, area=0.5)),
    "COCO: `area` has 400 digits": coco(lambda c: segment(c, area=10**400)),
    "COCO: `bbox` has three numbers": coco(lambda c: segment(c, bbox=[0, 0, 1])),
    "COCO: `bbox` is a text": coco(lambda c: segment(c, bbox="all!")),
    "COCO: `iscrowd` is a text": coco(lambda c: segment(c, iscrowd="no")),
    "COCO: a category without a name": coco(lambda c: c["categories"][0].pop("name")),
    "COCO: a category whose `id` is a text": coco(lambda c: category(c, id="200")),
    "COCO: a category whose `isthing` is a text": coco(lambda c: category(c, isthing="no")),
    "COCO: two categories of one name": coco(lambda c: category(c, name="boat")),
    "COCO: two categories of one id": coco(lambda c: category(c, id=7)),
}


def checked(kind: str, spoil: Spoil) -> Case:
    """What `data check` says, whose exit code is 1: the line about the first case of a kind."""

    def case(place: Place) -> str:
        import contextlib
        import io

        from detr_panoptic.commands import main

        path = coco_panoptic(place.folder / "my_data") / "panoptic.json"
        contents = json.loads(path.read_text())
        spoil(contents)
        path.write_text(json.dumps(contents))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["data", "check", "my_data"]) == 1
        lines = out.getvalue().splitlines()
        return next(after.strip() for line, after in pairwise(lines) if f"{kind}," in line)

    return case


CHECKED: dict[str, Case] = {
    "a segment without pixels": checked(
        "empty-segment",
        lambda c: c["annotations"][0]["segments_info"].append({"id": 8, "category_id": 7, "area": 1, "bbox": [0] * 4}),
    ),
    "pixels that no segment claims": checked("unlisted-id", lambda c: c["annotations"][0]["segments_info"].pop()),
    "an `id` that is listed twice": checked(
        "repeated-id",
        lambda c: c["annotations"][0]["segments_info"].append(dict(c["annotations"][0]["segments_info"][0])),
    ),
    "a name that leads out of its folder": checked("unsafe-path", lambda c: image(c, file_name="../31.jpg")),
    "a segment's `category_id` is a text": checked("broken-entry", lambda c: segment(c, category_id="boat")),
}


def instances(segmentation: Any, **changes: Any) -> Case:
    """One instance in a picture of 7 x 5 pixels."""

    def case(place: Place) -> str:
        name, _, size = PHOTOS[31]
        (place.folder / "my_data" / "images").mkdir(parents=True)
        Image.new("RGB", size).save(place.folder / "my_data" / "images" / name)
        annotation = {"id": 3, "image_id": 31, "category_id": 7, "iscrowd": 0, "segmentation": segmentation}
        contents = {
            "images": [{"id": 31, "file_name": name, "width": size[0], "height": size[1]} | changes.pop("image", {})],
            "annotations": [annotation | changes],
            "categories": [{"id": 7, "name": "boat"}],
        }
        place.write_json("my_data/instances.json", contents)
        return place.convert()

    return case


INSTANCES: dict[str, Case] = {
    "instances: a box instead of a polygon": instances([[0, 0, 4, 4]]),
    "instances: no polygon at all": instances([]),
    "instances: a polygon with NaN": instances([[0, 0, 4, float("nan"), 4, 4]]),
    "instances: a polygon of texts": instances([["a", "b", "c", "d", "e", "f"]]),
    "instances: a polygon that reaches to 10⁹": instances([[0, 0, 1e9, 0, 4, 4]]),
    "instances: RLE of another size": instances({"size": [9, 9], "counts": [40, 41]}),
    "instances: RLE with more pixels than the picture": instances({"size": [5, 7], "counts": [0, 99]}),
    "instances: RLE whose runs add up to more": instances({"size": [5, 7], "counts": [30, 30]}),
    "instances: RLE with a negative run": instances({"size": [5, 7], "counts": [-1, 36]}),
    "instances: RLE whose text breaks off": instances({"size": [5, 7], "counts": "P"}),
    "instances: RLE with letters that it does not have": instances({"size": [5, 7], "counts": "\x7f\x01"}),
    "instances: `segmentation` is a number": instances(5),
    "instances: an unknown category": instances([[0, 0, 4, 0, 4, 4]], category_id=99),
    "instances: an unknown image": instances([[0, 0, 4, 0, 4, 4]], image_id=99),
    "instances: `width` is a text": instances([[0, 0, 4, 0, 4, 4]], image={"width": "seven"}),
    "instances: polygons of a larger picture": instances([[0, 0, 4, 0, 4, 4]], image={"width": 70}),
}


def maps(values: Any, *, categories: Any = None, mode: str | None = None, size: tuple[int, int] = (4, 3)) -> Case:
    """A picture of 4 x 3 pixels and its map of classes."""

    def case(place: Place) -> str:
        for name in ("images", "maps"):
            (place.folder / "my_data" / name).mkdir(parents=True)
        Image.new("RGB", size).save(place.folder / "my_data" / "images" / "1.jpg")
        Image.fromarray(np.array(values, np.uint8), mode).save(place.folder / "my_data" / "maps" / "1.png")
        known = [{"id": 7, "name": "boat", "isthing": 1}] if categories is None else categories
        place.write_json("my_data/categories.json", known)
        return place.convert()

    return case


def without(case: Case, name: str) -> Case:
    """The same without a file."""

    def changed(place: Place) -> str:
        convert, place.convert = place.convert, lambda *_: ""  # type: ignore[method-assign]
        case(place)
        (place.folder / "my_data" / name).unlink()
        return convert()

    return changed


def cityscapes(values: Any, dtype: type, *, split: str = "train") -> Case:
    def case(place: Place) -> str:
        for folder, name, array in (
            ("leftImg8bit", "a_leftImg8bit.png", np.zeros((3, 4, 3), np.uint8)),
            ("gtFine", "a_gtFine_instanceIds.png", np.array(values, dtype)),
        ):
            path = place.folder / "my_data" / folder / "train" / "ulm" / name
            path.parent.mkdir(parents=True)
            Image.fromarray(array).save(path)
        return place.convert("--split", split)

    return case


GRAY = [[7, 7, 0, 0]] * 3
MAPS: dict[str, Case] = {
    "maps: an unknown class": maps([[7, 9, 0, 0]] * 3),
    "maps: a map of another size": maps(GRAY, size=(8, 6)),
    "maps: blue in a two-channel map": maps([[[7, 1, 3]] * 4] * 3),
    "maps: no `categories.json`": without(maps(GRAY), "categories.json"),
    "maps: a picture that is missing": without(maps(GRAY), "images/1.jpg"),
    "maps: `categories.json` is a number": maps(GRAY, categories=3),
    "maps: a category without a name": maps(GRAY, categories=[{"id": 7}]),
    "Cityscapes: a class beyond 33": cityscapes([[7, 40, 0, 0]] * 3, np.uint16),
    "Cityscapes: a color picture for a map": cityscapes([[[7, 1, 3]] * 4] * 3, np.uint8),
    "Cityscapes: a split that is not there": cityscapes([[7, 7, 0, 0]] * 3, np.uint16, split="val"),
}
CASES = COCO | CHECKED | INSTANCES | MAPS
