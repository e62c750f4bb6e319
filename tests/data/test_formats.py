"""Two-channel maps, semantic maps, Cityscapes and COCO instances, on maps small enough to follow by eye."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detr_panoptic.data import check_data, measure_segments, read_panoptic, segmentation_ids
from detr_panoptic.data.coco_instances import paint_instances
from detr_panoptic.data.label_maps import CITYSCAPES
from tests.data_folders import save, write_json

# pycocotools 2.0.11 with NumPy 2.4; it is gone when pycocotools' arrays take `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
CATEGORIES = [
    {"id": 3, "name": "sea", "isthing": 0},
    {"id": 8, "name": "boat", "isthing": 1},
    {"id": 0, "name": "sky", "isthing": 0},
]
CLASSES = np.array([[3, 3, 8, 8, 255], [0, 3, 8, 8, 255]], np.uint8)
INSTANCES = np.array([[1, 2, 0, 5, 9], [0, 1, 5, 5, 0]], np.uint8)


def write_map(folder, picture, *, categories=CATEGORIES, size=None):
    """A dataset of one picture."""
    save(folder / "images" / "day" / "7.jpg", Image.new("RGB", size or picture.size))
    save(folder / "labels" / "day" / "7.png", picture)
    write_json(folder / "categories.json", categories)
    return folder


def two_channels(blue=0):
    return Image.fromarray(np.stack([CLASSES, INSTANCES, np.full_like(CLASSES, blue)], -1))


def only_record(folder, **options):
    records, categories = read_panoptic(folder, **options)
    (record,) = records
    ids = segmentation_ids(record["segmentation"])
    assert measure_segments(ids, record["segments_info"]) == record["segments_info"]
    assert {segment["id"] for segment in record["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    return ids, {s["id"]: (categories.names[s["label_id"]], s["iscrowd"]) for s in record["segments_info"]}, record


# ------ maps of classes


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_two_channels_are_class_and_instance(mode, tmp_path):
    picture = two_channels() if mode == "RGB" else Image.fromarray(np.stack([CLASSES, INSTANCES], -1))
    ids, segments, record = only_record(write_map(tmp_path, picture))
    # By category id: sky, then the sea as one whatever its instances, then boats 0 and 5; 255 is void.
    assert np.array_equal(ids, [[2, 2, 3, 4, 0], [1, 2, 4, 4, 0]])
    assert segments == {1: ("sky", 0), 2: ("sea", 0), 3: ("boat", 0), 4: ("boat", 0)}
    assert record["file_name"] == "day/7.jpg"


def palette_picture(values):
    picture = Image.fromarray(values)
    picture.putpalette([color for i in range(256) for color in (255 - i, i * 7 % 256, 9)])
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(CLASSES),
        palette_picture(CLASSES),
        Image.fromarray(CLASSES.astype(np.uint16)),
        Image.fromarray(np.stack([CLASSES] * 3, -1)),
    ],
    ids=["L", "P", "I;16", "gray RGB"],
)
def test_semantic_maps_hold_classes_whatever_their_mode(picture, tmp_path):
    ids, segments, _ = only_record(write_map(tmp_path, picture))
    assert np.array_equal(ids, [[2, 2, 3, 3, 0], [1, 2, 3, 3, 0]])
    assert segments == {1: ("sky", 0), 2: ("sea", 0), 3: ("boat", 0)}


def test_ids_begin_at_one_without_void_too(tmp_path):
    ids, segments, _ = only_record(write_map(tmp_path, Image.fromarray(CLASSES[:, :4])))
    assert np.array_equal(ids, [[2, 2, 3, 3], [1, 2, 3, 3]])
    assert segments == {1: ("sky", 0), 2: ("sea", 0), 3: ("boat", 0)}


def test_classes_of_semantic_maps_are_stuff_unless_told(tmp_path):
    untold = [{"id": entry["id"], "name": entry["name"]} for entry in CATEGORIES]
    _, categories = read_panoptic(write_map(tmp_path / "untold", Image.fromarray(CLASSES), categories=untold))
    assert categories.is_thing == (False, False, False)
    _, categories = read_panoptic(write_map(tmp_path / "told", Image.fromarray(CLASSES)))
    assert categories.is_thing == (False, True, False)
    with pytest.raises(ValueError, match=r"categories\.json: A category needs `id`, `name` and `isthing`"):
        read_panoptic(write_map(tmp_path / "two", two_channels(), categories=untold))


def test_splits_of_maps(tmp_path):
    write_map(tmp_path, two_channels())
    *_, record = only_record(tmp_path, split="day")
    assert record["file_name"] == "7.jpg"
    assert record["image_id"] == 7
    with pytest.raises(ValueError, match=r"has no split 'night' in a known format"):
        read_panoptic(tmp_path, split="night")


@pytest.mark.parametrize(
    ("picture", "data_format", "message"),
    [
        (two_channels(blue=1), None, r"\(day/7\.jpg\): a two-channel map must be RGB.*got mode RGB with blue"),
        (palette_picture(CLASSES), "two-channel", r"a two-channel map must be RGB.*got mode P\."),
        (two_channels(), "semantic", r"a semantic map must have one class per pixel.*got colors \(mode RGB\)"),
        (Image.fromarray(CLASSES + 1), None, r"the map has the classes \[1, 4, 9\], expected .* out of \[0, 3, 8\]"),
    ],
)
def test_maps_of_another_kind_are_refused(picture, data_format, message, tmp_path):
    records, _ = read_panoptic(write_map(tmp_path, picture), data_format=data_format)
    with pytest.raises(ValueError, match=message):
        records[0]


def test_the_first_readable_map_tells_the_kind(tmp_path):
    write_map(tmp_path, two_channels())
    save(tmp_path / "images" / "0.jpg", Image.new("RGB", (5, 2)))
    (tmp_path / "labels" / "0.png").touch()
    assert read_panoptic(tmp_path).records[1]["file_name"] == "day/7.jpg"
    findings = check_data(tmp_path, progress=False).findings
    assert "unreadable-record" in {finding.kind for finding in findings}


def test_images_beyond_the_limit_do_not_lack_maps(tmp_path, caplog):
    write_map(tmp_path, Image.fromarray(CLASSES))
    save(tmp_path / "images" / "night" / "8.jpg", Image.new("RGB", (5, 2)))
    save(tmp_path / "labels" / "night" / "8.png", Image.fromarray(CLASSES))
    assert read_panoptic(tmp_path, limit=1).records.num_rows == 1
    assert "have no map" not in caplog.text


def test_pictures_and_maps_must_fit(tmp_path, caplog):
    records, _ = read_panoptic(write_map(tmp_path, Image.fromarray(CLASSES), size=(5, 3)))
    with pytest.raises(ValueError, match=r"day/7\.jpg\): .* 5x3, got 5x2"):
        records[0]
    save(tmp_path / "images" / "8.jpg", Image.new("RGB", (5, 2)))
    read_panoptic(tmp_path)
    assert "1 images have no map" in caplog.text
    save(tmp_path / "labels" / "9.png", Image.fromarray(CLASSES))
    with pytest.raises(ValueError, match=r"9\.png: expected an image for each map"):
        read_panoptic(tmp_path)
    save(tmp_path / "images" / "8.png", Image.new("RGB", (5, 2)))
    with pytest.raises(ValueError, match=r"'8\.jpg' and '8\.png'"):
        read_panoptic(tmp_path)


def test_a_map_for_the_stored_pixels_of_a_turned_photograph_is_refused(tmp_path):
    write_map(tmp_path, Image.fromarray(CLASSES))
    turned = Image.new("RGB", (5, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown as 2x5
    save(tmp_path / "images" / "day" / "7.jpg", turned, exif=exif)
    for streaming in (False, True):
        records, _ = read_panoptic(tmp_path, streaming=streaming)
        with pytest.raises(ValueError, match=r"2x5, got 5x2; if an EXIF tag"):
            next(iter(records))


# ------ Cityscapes


def write_cityscapes(folder, values):
    name = "aachen/aachen_000000_000019"
    picture = Image.fromarray(np.array(values, np.uint16))
    save(folder / "leftImg8bit" / "val" / f"{name}_leftImg8bit.png", Image.new("RGB", picture.size))
    save(folder / "gtFine" / "val" / f"{name}_gtFine_instanceIds.png", picture)
    save(folder / "gtFine" / "val" / f"{name}_gtFine_labelIds.png", Image.new("L", picture.size))
    return folder


def test_cityscapes_ids_are_class_and_instance(tmp_path):
    # Road; a group of cars; two cars; ego vehicle, a caravan and a pole group are not evaluated: void.
    values = [[7, 7, 26, 26000, 26017], [1, 29002, 18, 23, 26017]]
    ids, segments, record = only_record(write_cityscapes(tmp_path, values))
    assert np.array_equal(ids, [[7, 7, 26, 26000, 26017], [0, 0, 0, 23, 26017]])
    assert segments == {7: ("road", 0), 23: ("sky", 0), 26: ("car", 1), 26000: ("car", 0), 26017: ("car", 0)}
    assert record["file_name"] == "aachen/aachen_000000_000019_leftImg8bit.png"


def test_labels_of_cityscapes_are_the_official_train_ids():
    official = "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider "
    official += "car truck bus train motorcycle bicycle"
    assert [name.replace(" ", "_") for name in CITYSCAPES.names] == official.split()
    assert CITYSCAPES.category_ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    assert CITYSCAPES.stuff_label_ids == list(range(11))


def test_what_is_not_cityscapes_is_refused(tmp_path):
    records, _ = read_panoptic(write_cityscapes(tmp_path, [[7, 34]]))
    with pytest.raises(ValueError, match=r"up to 33, got the id 34"):
        records[0]
    save(
        tmp_path / "gtFine/val/aachen/aachen_000000_000019_gtFine_instanceIds.png",
        palette_picture(np.array([[7, 8]], np.uint8)),
    )
    with pytest.raises(ValueError, match=r"instanceIds must be .*grayscale.*got mode P"):
        read_panoptic(tmp_path).records[0]
    (tmp_path / "gtFine" / "train").mkdir()
    with pytest.raises(ValueError, match=r"`split` must be one of train, val in .*gtFine, got None"):
        read_panoptic(tmp_path)
    (tmp_path / "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(ValueError, match=r"_leftImg8bit\.png: .*_instanceIds\.png.* does not exist"):
        read_panoptic(tmp_path, split="val")


# ------ COCO instances

SIZE = (6, 8)  # height and width
BOXES = {  # annotation id: category, rows, columns, crowd
    70: (18, slice(0, 4), slice(0, 4), 0),
    71: (44, slice(2, 5), slice(2, 5), 0),
    72: (18, slice(0, 6), slice(3, 8), 1),
    73: (44, slice(2, 5), slice(4, 7), 0),
}


def mask_of(annotation_id):
    _, rows, columns, _ = BOXES[annotation_id]
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = 1
    return mask


def polygon(annotation_id):
    _, rows, columns, _ = BOXES[annotation_id]
    left, top, right, bottom = columns.start, rows.start, columns.stop, rows.stop
    return [[left, top, right, top, right, bottom, left, bottom]]


def compressed(annotation_id):
    rle = coco_mask.encode(np.asfortranarray(mask_of(annotation_id)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(annotation_id):
    flat = mask_of(annotation_id).ravel(order="F")
    borders = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    counts = np.diff(np.concatenate([[0], borders, [flat.size] if not flat[-1] else []])).astype(int)
    return {"size": list(SIZE), "counts": counts.tolist()}


def write_instances(folder, shape, *, annotation_ids=tuple(BOXES), file="instances.json", **image):
    save(folder / "images" / "a.jpg", Image.new("RGB", SIZE[::-1]))
    save(folder / "images" / "empty.jpg", Image.new("RGB", (3, 2)))
    annotations = [
        {
            "id": annotation_id,
            "image_id": 5,
            "category_id": BOXES[annotation_id][0],
            "iscrowd": BOXES[annotation_id][3],
            "segmentation": shape(annotation_id),
        }
        for annotation_id in annotation_ids
    ]
    images = [{"id": 5, "file_name": "a.jpg", **image}, {"id": 6, "file_name": "empty.jpg"}]
    categories = [{"id": 44, "name": "bottle"}, {"id": 18, "name": "dog"}]
    write_json(folder / file, {"images": images, "annotations": annotations, "categories": categories})
    return folder


@pytest.mark.parametrize("shape", [polygon, compressed, uncompressed])
def test_instances_on_top_of_each_other(shape, tmp_path, caplog):
    folder = write_instances(tmp_path, shape, height=6, width=8)
    with caplog.at_level(logging.INFO, "detr_panoptic.data"):
        ids, segments, _ = only_record(folder, limit=1)
    # 71 and 73 have nine pixels each, 70 sixteen: the smaller on top, of two alike the first; the crowd beneath all.
    expected = [
        [1, 1, 1, 1, 3, 3, 3, 3],
        [1, 1, 1, 1, 3, 3, 3, 3],
        [1, 1, 2, 2, 2, 4, 4, 3],
        [1, 1, 2, 2, 2, 4, 4, 3],
        [0, 0, 2, 2, 2, 4, 4, 3],
        [0, 0, 0, 3, 3, 3, 3, 3],
    ]
    assert ids.tolist() == expected
    assert segments == {1: ("dog", 0), 2: ("bottle", 0), 3: ("dog", 1), 4: ("bottle", 0)}
    assert "Image 5 (a.jpg): 16 pixels lie in several instances; 0 instances are hidden" in caplog.text


def test_a_crowd_lies_beneath_a_larger_instance():
    dog, crowd = np.zeros((2, 2, 5), bool)
    dog[:, :4] = crowd[1, 3:] = True
    for masks, is_crowd in (([dog, crowd], [False, True]), ([crowd, dog], [True, False])):
        ids = paint_instances(masks, [2 - crowd for crowd in is_crowd], (2, 5))
        assert (ids == 1 + is_crowd.index(False)).tolist() == dog.tolist()
        assert np.argwhere(ids == 1 + is_crowd.index(True)).tolist() == [[1, 4]]


def test_a_picture_without_instances_is_void(tmp_path):
    records, categories = read_panoptic(write_instances(tmp_path, polygon))
    assert categories.is_thing == (True, True)
    assert len(records) == 2
    assert records[1]["segments_info"] == []
    assert not segmentation_ids(records[1]["segmentation"]).any()


def test_an_instance_that_is_covered_whole_is_said(tmp_path, caplog):
    folder = write_instances(tmp_path, lambda _: polygon(70), annotation_ids=(71, 73))
    with caplog.at_level(logging.INFO, "detr_panoptic.data"):
        _, segments, _ = only_record(folder, limit=1)
    assert segments == {1: ("bottle", 0)}
    assert "1 instances are hidden" in caplog.text


def test_stuff_lies_beneath_the_instances(tmp_path):
    write_instances(tmp_path, polygon, annotation_ids=(70,))
    stuff = np.full(SIZE, 155, np.uint8)  # sea
    stuff[4:, 2:4], stuff[5, 7], stuff[5, 6], stuff[5, 5] = 44, 183, 255, 0
    save(tmp_path / "stuff" / "a.png", Image.fromarray(stuff))
    save(tmp_path / "stuff" / "empty.png", Image.fromarray(np.full((2, 3), 155, np.uint8)))
    with pytest.raises(ValueError, match=r"expected categories\.json beside it"):
        read_panoptic(tmp_path)
    write_json(tmp_path / "categories.json", [{"id": 155, "name": "sea"}, {"id": 183, "name": "other"}])
    ids, segments, _ = only_record(tmp_path, limit=1)
    expected = np.full(SIZE, 2)
    expected[:4, :4] = 1
    # A thing that no instance claims, "other", and void are void.
    expected[4:, 2:4] = expected[5, 5:] = 0
    assert np.array_equal(ids, expected)
    assert segments == {1: ("dog", 0), 2: ("sea", 0)}
    assert read_panoptic(tmp_path).categories.names == ("bottle", "dog", "sea")
    save(tmp_path / "stuff" / "a.png", Image.fromarray(np.full(SIZE, 99, np.uint8)))
    with pytest.raises(ValueError, match=r"the map of stuff has the class 99, expected one of \[155\]"):
        read_panoptic(tmp_path).records[0]


def test_stuff_of_the_instances_and_of_the_map_is_one_segment(tmp_path):
    write_instances(tmp_path, polygon, annotation_ids=(70,))
    save(tmp_path / "stuff" / "a.png", Image.fromarray(np.full(SIZE, 18, np.uint8)))
    save(tmp_path / "stuff" / "empty.png", Image.fromarray(np.zeros((2, 3), np.uint8)))
    write_json(tmp_path / "categories.json", [{"id": 18, "name": "dog"}])
    ids, segments, _ = only_record(tmp_path, limit=1, stuff=["dog"])
    assert (ids == 1).all()
    assert segments == {1: ("dog", 0)}


def test_layouts_of_instances(tmp_path):
    expected, *_ = only_record(write_instances(tmp_path / "ours", polygon), limit=1)
    coco = write_instances(tmp_path / "coco", polygon, file="annotations/instances_val2017.json")
    (coco / "images").rename(coco / "val2017")
    assert np.array_equal(only_record(coco, split="val2017", limit=1)[0], expected)
    export = write_instances(tmp_path / "export", polygon, file="images/_annotations.coco.json")
    (export / "images").rename(export / "valid")
    assert np.array_equal(only_record(export, split="valid", limit=1)[0], expected)
    with pytest.raises(ValueError, match=r"There are splits, name one with `split`: val2017"):
        read_panoptic(coco)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([], r"polygons .*got \[\]; a box alone"),
        ([[1, 1, 4, 4]], r"polygons of at least three points"),
        ({"size": [5, 8], "counts": [40]}, r"`size` .*\[6, 8\], got \[5"),
        (None, r"polygons or RLE, got None"),
        ({"size": [6, 8], "counts": [3]}, r"`counts` must be the lengths of runs of 48 pixels"),
    ],
)
def test_masks_that_are_none_are_named(shape, message, tmp_path):
    records, _ = read_panoptic(write_instances(tmp_path, lambda _: shape, annotation_ids=(70,)))
    with pytest.raises(ValueError, match=r"Image 5 \(a\.jpg\): annotation 70, .*" + message):
        records[0]


def test_polygons_in_other_coordinates_than_the_picture_are_refused(tmp_path):
    records, _ = read_panoptic(write_instances(tmp_path, polygon, height=8, width=6))
    with pytest.raises(ValueError, match=r"8x6, got 6x8; if an EXIF tag"):
        records[0]


def test_a_check_lists_the_problems_of_every_format(tmp_path):
    """A reader stops at the first of them."""
    folder = write_instances(tmp_path / "instances", lambda i: [[1, 1, 4, 4]] if i == 73 else polygon(i))
    contents = json.loads((folder / "instances.json").read_text())
    contents["annotations"][0]["category_id"] = 1
    contents["annotations"][1]["image_id"] = 99
    contents["images"][1]["height"] = 2.5
    write_json(folder / "instances.json", contents)
    assert kinds_of(folder) == ["broken-entry", "unknown-image", "unreadable-record", "unknown-category"]
    folder = write_map(tmp_path / "maps", Image.fromarray(CLASSES + 1))
    save(folder / "labels" / "8.png", Image.fromarray(CLASSES))
    assert kinds_of(folder) == ["unreadable-image", "unknown-category"]
    folder = write_cityscapes(tmp_path / "cityscapes", [[7, 34]])
    save(folder / "gtFine" / "val" / "ulm" / "a_gtFine_instanceIds.png", Image.fromarray(CLASSES.astype(np.uint16)))
    assert kinds_of(folder) == ["unreadable-image", "unknown-category"]


def kinds_of(folder):
    check = check_data(folder, progress=False)
    return [finding.kind for finding in check.findings if finding.severity == "error"]


def test_a_picture_of_instances_that_is_not_there(tmp_path):
    folder = write_instances(tmp_path, polygon)
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"instances\.json, a\.jpg: .*a\.jpg, which does not exist"):
        read_panoptic(folder)
    records, _ = read_panoptic(folder, files_may_be_missing=True)
    with pytest.raises(OSError, match=r"No such file.*a\.jpg"):
        records[0]
    assert records[1]["image"].size == (3, 2)
