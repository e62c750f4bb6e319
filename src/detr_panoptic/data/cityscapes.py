"""Reader and validator of Cityscapes.

Images are `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`, maps `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`. As in
createPanopticImgs.py of mcordts/cityscapesScripts, ids are those of the map; a value below 1000 is a whole class, and
a crowd if the class is a thing; values from 1000 are class * 1000 + instance; classes that are not evaluated are void.
Label ids are the official train ids, category ids the label ids of the files.
"""

from pathlib import Path

import numpy as np

from .categories import categories_of_tables
from .findings import raising
from .folders import first_existing, pictures_below
from .label_maps import rows_of_files
from .lazy_records import RawRecords, ReadOptions, make_record, opened, row_error
from .records import Record, measure_segments

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
