"""Random records, and writers of each format that the readers read."""

import json

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from detr_panoptic.data import measure_segments, save_dataset, write_coco_panoptic_dataset, write_parquet
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.label_maps import CITYSCAPES

CATEGORIES = Categories(
    names=("sea", "boat", "crane", "sky"), is_thing=(False, True, True, False), category_ids=(200, 7, 9, 101)
)
SIDES = st.integers(1, 9)
IDS = st.integers(1, 256**3 - 1)


@st.composite
def records(draw, *, categories=CATEGORIES, crowds=True):
    """One to three canonical records with void, odd ids and crowds; one segment of each stuff at most."""
    result = []
    for place in range(draw(st.integers(1, 3))):
        height, width = draw(SIDES), draw(SIDES)
        owner = draw(arrays.arrays(np.int64, (height, width), elements=st.integers(0, 4)))
        names = [0, *draw(st.lists(IDS, min_size=4, max_size=4, unique=True))]
        segmentation = np.array(names)[owner]
        labels = draw(st.permutations(range(len(categories))))[:2]
        entries = []
        for i, segment_id in enumerate(names[1:]):
            label = labels[i] if i < 2 else draw(st.sampled_from([k for k, t in enumerate(categories.is_thing) if t]))
            entry = {"id": segment_id, "label_id": label, "iscrowd": 0}
            if crowds and categories.is_thing[label]:
                entry["iscrowd"] = draw(st.integers(0, 1))
            entries.append(entry)
        pixels = draw(arrays.arrays(np.uint8, (height, width, 3)))
        result.append(
            {
                "image": Image.fromarray(pixels),
                "image_id": 10 + place,
                "file_name": draw(st.sampled_from(["{}.png", "far/{}.png", "ö {}.png"])).format(10 + place),
                "segmentation": segmentation,
                "segments_info": measure_segments(segmentation, entries),
            }
        )
    return result


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_pictures(folder, records):
    for record in records:
        write(folder / record["file_name"], record["image"])


def write_json(path, contents):
    path.write_text(json.dumps(contents))


def write_label_maps(folder, records, picture_of):
    write_pictures(folder / "images", records)
    for record in records:
        write(folder / "maps" / record["file_name"], picture_of(record))
    write_json(folder / "categories.json", CATEGORIES.to_coco())


def class_map(record):
    """(H, W) category ids, 0 is void."""
    classes = np.zeros(record["segmentation"].shape, dtype=np.uint8)
    for segment in record["segments_info"]:
        classes[record["segmentation"] == segment["id"]] = CATEGORIES.category_ids[segment["label_id"]]
    return classes


def two_channels(record):
    instances = np.zeros(record["segmentation"].shape, dtype=np.uint8)
    for number, segment in enumerate(record["segments_info"]):
        instances[record["segmentation"] == segment["id"]] = number
    return Image.fromarray(np.stack([class_map(record), instances, np.zeros_like(instances)], axis=-1))


def write_instances(folder, records):
    write_pictures(folder / "images", records)
    images: list[dict] = []
    annotations: list[dict] = []
    for record in records:
        height, width = record["segmentation"].shape
        images.append({"id": record["image_id"], "file_name": record["file_name"], "width": width, "height": height})
        for segment in record["segments_info"]:
            mask = np.asfortranarray(record["segmentation"] == segment["id"], dtype=np.uint8)
            code = coco_mask.encode(mask)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": record["image_id"],
                    "category_id": CATEGORIES.category_ids[segment["label_id"]],
                    "iscrowd": segment["iscrowd"],
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    contents = {"images": images, "annotations": annotations, "categories": CATEGORIES.to_coco()}
    write_json(folder / "instances.json", contents)


def write_cityscapes(folder, records):
    for record in records:
        name = f"val/rome/rome_{record['image_id']:06d}"
        write(folder / "leftImg8bit" / f"{name}_leftImg8bit.png", record["image"])
        ids = Image.fromarray(record["segmentation"].astype(np.uint16))
        write(folder / "gtFine" / f"{name}_gtFine_instanceIds.png", ids)


def cityscapes_record(record):
    """A record whose ids say what Cityscapes' would: class * 1000 + instance, groups as the class alone."""
    ids, entries = np.zeros_like(record["segmentation"]), []
    for number, segment in enumerate(record["segments_info"]):
        category_id = CITYSCAPES.category_ids[segment["label_id"]]
        is_group = not CITYSCAPES.is_thing[segment["label_id"]] or bool(segment["iscrowd"])
        segment_id = category_id if is_group else 1000 * category_id + number
        ids[record["segmentation"] == segment["id"]] = segment_id
        entry = {"id": segment_id, "label_id": segment["label_id"], "iscrowd": segment["iscrowd"]}
        entries += [entry] if entry not in entries else []
    return {**record, "segmentation": ids, "segments_info": measure_segments(ids, entries)}


WRITERS = {
    "coco-panoptic": lambda folder, records: write_coco_panoptic_dataset(folder, records, CATEGORIES),
    "saved": lambda folder, records: save_dataset(folder, records, CATEGORIES),
    "parquet": lambda folder, records: write_parquet(folder, records, CATEGORIES),
    "two-channel": lambda folder, records: write_label_maps(folder, records, two_channels),
    "semantic": lambda folder, records: write_label_maps(folder, records, lambda r: Image.fromarray(class_map(r))),
    "coco-instances": write_instances,
    "cityscapes": write_cityscapes,
}
READ_AS = {"saved": "rows", "parquet": "rows"}
