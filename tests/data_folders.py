"""Small datasets in the formats of the world, for the tests of readers and writers."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detr_panoptic.data import measure_segments
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.records import ids_to_rgb

CATEGORIES = Categories(names=("sea", "boat", "crowned crane"), is_thing=(False, True, True), category_ids=(200, 7, 9))
ORIENTATION = 0x0112
# Photographs of different, prime sizes (width, height): gray, in a folder of its own, turned by EXIF.
PHOTOS = {31: ("31.jpg", "L", (7, 5)), 4: ("far/a.png", "RGB", (11, 3)), 12: ("12.jpg", "RGB", (13, 5))}
TURNED = 12


def photo(image_id):
    """Noise of one photograph, as it is stored."""
    _, mode, (width, height) = PHOTOS[image_id]
    pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def id_map(image_id):
    """Ids of up to 24 bits (H, W) of the photograph as it is shown, with void."""
    width, height = PHOTOS[image_id][2]
    if image_id == TURNED:
        width, height = height, width
    rng = np.random.default_rng(1000 + image_id)
    return rng.choice([0, 9, 70_001, 256**3 - 1, 300], (height, width))


def segments(image_id):
    labels = {9: (1, 0), 70_001: (0, 0), 256**3 - 1: (2, 1), 300: (1, 0)}
    ids = id_map(image_id)
    listed = [i for i in (300, 9, 256**3 - 1, 70_001) if (ids == i).any()]
    return measure_segments(ids, [{"id": i, "label_id": labels[i][0], "iscrowd": labels[i][1]} for i in listed])


def save_photos(folder):
    for image_id, (name, _, _) in PHOTOS.items():
        picture = photo(image_id)
        exif = picture.getexif()
        if image_id == TURNED:
            exif[ORIENTATION] = 6
        save(folder / name, picture, exif=exif)


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def write_json(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents))


def coco_panoptic(folder: Path) -> Path:
    """COCO panoptic: three photographs, their order in `images` another than in `annotations`."""
    save_photos(folder / "images")
    annotations = []
    for image_id in PHOTOS:
        save(folder / "panoptic" / f"map{image_id}.png", Image.fromarray(ids_to_rgb(id_map(image_id))))
        entries = [
            {"category_id": CATEGORIES.category_ids[label], **entry}
            for entry in segments(image_id)
            for label in [entry.pop("label_id")]
        ]
        annotations.append({"image_id": image_id, "file_name": f"map{image_id}.png", "segments_info": entries})
    images = [{"id": image_id, "file_name": name} for image_id, (name, _, _) in reversed(PHOTOS.items())]
    write_json(
        folder / "panoptic.json",
        {"images": images, "annotations": annotations, "categories": CATEGORIES.to_coco()},
    )
    return folder


def same_record(first, second):
    """Whether two records agree to the last bit."""
    if first.keys() != second.keys():
        return False
    pictures = {"image", "segmentation"} & set(first)
    if any(first[key] != second[key] for key in set(first) - pictures):
        return False
    return all(np.array_equal(np.asarray(first[key]), np.asarray(second[key])) for key in pictures)


def same_records(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) > 0 and all(map(same_record, first, second))
