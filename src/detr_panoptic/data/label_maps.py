"""Readers and validators of maps whose pixels hold classes, with instances in a second channel or without.

- two-channel: red is the class, green tells instances of a class apart, blue is 0 (or two channels: LA images);
- semantic: one channel; each class of an image is one segment, so that things cannot be told apart.
- Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`. As in
  createPanopticImgs.py of mcordts/cityscapesScripts, ids are those of the map; a value below 1000 is a whole class,
  and a crowd if the class is a thing; values from 1000 are class * 1000 + instance; classes that are not evaluated are
  void. Label ids are the official train ids, category ids the label ids of the files.

Else the values are category ids of `categories.json`; 0 and 255 are void unless they are category ids.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from .categories import Categories, categories_of_tables
from .findings import raising
from .folders import CATEGORIES_FILE, first_existing, paired_by_name, pictures_below, read_categories
from .lazy_records import RawRecords, ReadOptions, dataset_of, file_image_id, make_record, opened, row_error
from .records import Record, measure_segments

TWO_CHANNEL, SEMANTIC = "two-channel", "semantic"
MAP_FOLDERS = ("maps", "annotations", "labels", "masks")
VOID_VALUES = (0, 255)  # what annotation tools write where there is no class
MAP_FEATURES = Features(
    # The map keeps its mode: as RGB, the colors of a palette would be taken for values.
    {"image": Image(mode="RGB"), "image_id": Value("int64"), "file_name": Value("string"), "segmentation": Image()}
)


def find_maps(folder: Path, split: str | None) -> tuple[Path, Path] | None:
    """Returns the folders of images and of maps, `images/` and one of `MAP_FOLDERS`, or None.

    With a split, `images/SPLIT` and `maps/SPLIT`, or `SPLIT/images` and `SPLIT/maps`.
    """
    places = ["{}"] if split is None else [f"{{}}/{split}", f"{split}/{{}}"]
    for name in MAP_FOLDERS:
        for place in places:
            images, maps = folder / place.format("images"), folder / place.format(name)
            if images.is_dir() and maps.is_dir():
                return images, maps
    return None


def kind_of_maps(maps: Path) -> str:
    """Returns `TWO_CHANNEL` or `SEMANTIC`, judged by the first readable map; raises ValueError without one."""
    for name in pictures_below(maps):
        with suppress(Exception), PILImage.open(maps / name) as picture:  # a broken one is reported when it is read
            if picture.mode == "LA":
                return TWO_CHANNEL
            return SEMANTIC if picture.mode != "RGB" or _is_gray(np.asarray(picture)) else TWO_CHANNEL
    raise ValueError(f"Expected maps in {maps}, found no image that can be read.")


def raw_label_maps(folder: Path, options: ReadOptions, kind: str) -> RawRecords:
    """Reads images and maps of the same name, in the order of their names."""
    found = find_maps(folder, options.split)
    if found is None:
        below = "" if options.split is None else f" with a folder {options.split!r} in each, or both in one"
        raise ValueError(f"Expected {folder / 'images'} and one of {', '.join(MAP_FOLDERS)} beside it{below}.")
    images, maps = found
    path = first_existing([folder / CATEGORIES_FILE, images.parent / CATEGORIES_FILE])
    categories = read_categories(path, kind_needed=kind != SEMANTIC)
    pairs = paired_by_name(pictures_below(images), pictures_below(maps), where=str(folder), report=options.report)
    rows = rows_of_files(images, maps, pairs[: options.limit])
    return RawRecords(rows, categories, partial(decode_label_map, categories, kind))


def rows_of_files(images: Path, maps: Path, pairs: list[tuple[str, str]]) -> Dataset:
    """Returns raw rows of images and maps, named relative to their folders."""
    rows = [
        {
            "image": str((images / image).absolute()),
            "image_id": file_image_id(image),
            "file_name": image,
            "segmentation": str((maps / name).absolute()),
        }
        for image, name in pairs
    ]
    return dataset_of(rows, MAP_FEATURES)


def decode_label_map(categories: Categories, kind: str, row: Record) -> Record:
    """Makes a record of an image and its map of category ids; raises ValueError for other maps and unknown classes."""
    read = _two_channels if kind == TWO_CHANNEL else _one_channel
    ids, segments = label_segments(*read(opened(row["segmentation"]), row), categories, row)
    return make_record(row, ids, measure_segments(ids, segments))


def label_segments(
    classes: np.ndarray, instances: np.ndarray, categories: Categories, row: Record
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Makes an id map and segments: one for each class and instance of things, one for each class of stuff.

    From `classes` (H, W), category ids, and `instances` (H, W), numbers of the things of a class. Returns (H, W) int64
    ids from 1 in the order of category id and instance, 0 is void; and the entries.
    """
    labels = categories.label_ids
    present = np.unique(classes).tolist()
    unknown = [value for value in present if value not in labels and value not in VOID_VALUES]
    if unknown:
        message = f"the map has the classes {unknown[:8]}, expected category ids out of {sorted(labels)[:40]}"
        raise row_error(row, f"{message}; 0 and 255 are void", kind="unknown-category")
    void = np.isin(classes, [value for value in present if value not in labels])
    is_stuff = np.isin(classes, [categories.category_ids[label] for label in categories.stuff_label_ids])
    # int64: a 16-bit class and a 32-bit instance in one number.
    codes = (classes.astype(np.int64) + 1) << 32 | np.where(is_stuff, 0, instances)
    values, inverse = np.unique(np.where(void, 0, codes), return_inverse=True)
    first_id = int(values[0] != 0)  # without void, ids begin at 1 too
    segments = [
        {"id": index, "label_id": labels[(value >> 32) - 1], "iscrowd": 0}
        for index, value in enumerate(values.tolist(), start=first_id)
        if value
    ]
    return inverse.reshape(classes.shape) + first_id, segments


def _two_channels(picture: PILImage.Image, row: Record) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(picture)
    if picture.mode == "LA" or (picture.mode == "RGB" and not values[..., 2].any()):
        return values[..., 0], values[..., 1]
    got = f"mode {picture.mode}" + (" with blue" if picture.mode == "RGB" else "")
    raise row_error(row, f"a two-channel map must be RGB (red: class, green: instance, blue: 0) or LA, got {got}")


def _one_channel(picture: PILImage.Image, row: Record) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(picture)
    if picture.mode == "RGB" and _is_gray(values):
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise row_error(row, f"a semantic map must have one class per pixel, got colors (mode {picture.mode})")
    return values, np.zeros_like(values)


def _is_gray(colors: np.ndarray) -> bool:
    return bool((colors == colors[..., :1]).all())


IMAGES_FOLDER, MAPS_FOLDER = "leftImg8bit", "gtFine"
IMAGE_ENDING, MAP_ENDING = "_leftImg8bit.png", "_gtFine_instanceIds.png"
FIRST_INSTANCE_ID = 1000
MAX_LABEL = 33  # of labels.py, evaluated or not
# "id name" of labels.py, those with a train id, in its order.
_STUFF = """
7 road, 8 sidewalk, 11 building, 12 wall, 13 fence, 17 pole, 19 traffic light, 20 traffic sign, 21 vegetation,
22 terrain, 23 sky
"""
_THINGS = "24 person, 25 rider, 26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle"
CITYSCAPES = categories_of_tables((_STUFF, False), (_THINGS, True))


def raw_cityscapes(folder: Path, options: ReadOptions) -> RawRecords:
    """Reads the images of a split that have a map, in the order of their names."""
    maps, split = first_existing([folder / MAPS_FOLDER]), options.split
    splits = sorted(path.name for path in maps.iterdir() if path.is_dir())
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)} in {maps}, got {split!r}.")
    maps, images = maps / split, first_existing([folder / IMAGES_FOLDER / split])
    report = options.report or raising()
    pairs = []
    for name in [name for name in pictures_below(maps) if name.endswith(MAP_ENDING)][: options.limit]:
        image = name.removesuffix(MAP_ENDING) + IMAGE_ENDING
        if (images / image).is_file():
            pairs.append((image, name))
        else:
            problem = f"expected the image of {maps / name}, which does not exist"
            report("unreadable-image", str(images / image), problem)
    return RawRecords(rows_of_files(images, maps, pairs), CITYSCAPES, decode_cityscapes)


def decode_cityscapes(row: Record) -> Record:
    """Makes a record of an image and its map; raises ValueError for other maps and unknown classes."""
    picture = opened(row["segmentation"])
    values = np.asarray(picture)
    if values.ndim != 2 or picture.mode == "P":
        raise row_error(row, f"instanceIds must be a 16-bit grayscale image, got mode {picture.mode}")
    segments = []
    for value in np.unique(values).tolist():
        is_group = value < FIRST_INSTANCE_ID
        label = value if is_group else value // FIRST_INSTANCE_ID
        if label > MAX_LABEL:
            raise row_error(row, f"expected labels up to {MAX_LABEL}, got the id {value}", kind="unknown-category")
        label_id = CITYSCAPES.label_ids.get(label)
        if label_id is not None:
            is_crowd = is_group and CITYSCAPES.is_thing[label_id]
            segments.append({"id": value, "label_id": label_id, "iscrowd": int(is_crowd)})
    ids = np.where(np.isin(values, [segment["id"] for segment in segments]), values, 0).astype(np.int64)
    return make_record(row, ids, measure_segments(ids, segments))
