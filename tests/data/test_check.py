"""Checking data: each kind of damage is found where it is, and whole data has none."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.data import findings, measure_segments, write_coco_panoptic_dataset, write_parquet
from detr_panoptic.data.checking import check_data
from detr_panoptic.data.findings import KINDS, DataError
from detr_panoptic.data.reading import read_panoptic
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.scenes import scenes_dataset
from detr_panoptic.scenes.dataset import SCENE_CATEGORIES
from detr_panoptic.visualization.data_report import save_data_sheets

HEIGHT, WIDTH = 61, 83
CATEGORIES = [
    {"id": 200, "name": "sea", "isthing": 0},
    {"id": 7, "name": "boat", "isthing": 1},
    {"id": 9, "name": "<b>crane</b>", "isthing": 1},
]
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
ORIENTATION = 0x0112


@pytest.fixture
def folder(tmp_path):
    """Three whole annotated images: sea, two boats and a crane in each, 4 % void."""
    annotations, images = [], []
    for image_id in (3, 5, 8):
        ids = np.full((HEIGHT, WIDTH), 70_000 + image_id)
        ids[5:20, 7:30], ids[30:41, 11:34], ids[43:60, 50:81], ids[:3, :70] = 256, 300, 16_000_000, 0
        labels = {70_000 + image_id: 200, 256: 7, 300: 7, 16_000_000: 9}
        listed = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in labels.items()]
        save(tmp_path / "images" / f"{image_id}.jpg", Image.fromarray(NOISE))
        save(tmp_path / "panoptic" / f"{image_id}.png", Image.fromarray(ids_to_rgb(ids)))
        images.append({"id": image_id, "file_name": f"{image_id}.jpg"})
        segments = measure_segments(ids, listed)
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    write(tmp_path, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return tmp_path


def save(path, picture, **options):
    path.parent.mkdir(exist_ok=True)
    picture.save(path, **options)


def write(folder, contents):
    (folder / "panoptic.json").write_text(json.dumps(contents))


def contents_of(folder):
    return json.loads((folder / "panoptic.json").read_text())


def change_map(folder, change, **options):
    path = folder / "panoptic" / "5.png"
    picture = change(Image.open(path))
    picture.save(path, **({"format": "PNG"} | options))


def paint(folder, segment_id, *, rows=slice(50, 60), columns=slice(10, 30)):
    def change(picture):
        colors = np.array(picture)
        colors[rows, columns] = ids_to_rgb([[segment_id]])
        return Image.fromarray(colors)

    change_map(folder, change)


def check(folder, *, num_queries=100):
    """(kind, where) of all findings but unused classes."""
    result = check_data(folder, num_queries=num_queries, workers=2, progress=False)
    return {(finding.kind, finding.where) for finding in result.findings if finding.kind != "unused-category"}


def entry(contents, index=1):
    """The second segment of the second annotation, and the annotation."""
    return contents["annotations"][1]["segments_info"][index]


def edit(change):
    """A damage to the annotation file."""

    def spoil(folder):
        contents = contents_of(folder)
        change(contents)
        write(folder, contents)

    return spoil


def cut_short(name):
    def spoil(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])

    return spoil


def turn(folder):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(folder / "images" / "5.jpg", Image.fromarray(NOISE), exif=exif)


def shrink(folder):
    change_map(folder, lambda picture: picture.resize((41, 30), Image.Resampling.NEAREST))


def smooth(folder):
    def change(picture):
        return picture.resize((41, 30), Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR)

    change_map(folder, change)


def cover(folder):
    paint(folder, 0, rows=slice(0, HEIGHT), columns=slice(0, 60))


def drop_boats(folder):
    contents = contents_of(folder)
    for annotation in contents["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = 9 if segment["category_id"] == 7 else segment["category_id"]
    write(folder, contents)


def keep_four_pixels(folder):
    contents = contents_of(folder)
    sea = contents["annotations"][1]["segments_info"][0]["id"]
    paint(folder, sea, rows=slice(30, 41), columns=slice(11, 34))
    paint(folder, 300, rows=slice(30, 32), columns=slice(11, 13))


PICTURE, JSON = "5.jpg", "panoptic.json"
DAMAGES = {
    "no category": (edit(lambda c: c["categories"][1].pop("name")), {("bad-categories", JSON)}),
    "category id twice": (edit(lambda c: c["categories"].append(c["categories"][0])), {("bad-categories", JSON)}),
    "image without file": (edit(lambda c: c["images"].append({"id": 77})), {("broken-entry", JSON)}),
    "annotation without id": (
        edit(lambda c: c["annotations"].append({"file_name": "5.png"})),
        {("broken-entry", JSON)},
    ),
    "annotation is a list": (edit(lambda c: c["annotations"].append([])), {("broken-entry", JSON)}),
    "half an area": (
        edit(lambda c: entry(c).update(area=345.5)),
        {("broken-entry", PICTURE), ("unlisted-id", PICTURE)},
    ),
    "short box": (edit(lambda c: entry(c).update(bbox=[1, 2])), {("broken-entry", PICTURE), ("unlisted-id", PICTURE)}),
    "image id twice": (edit(lambda c: c["images"].append(c["images"][1])), {("repeated-image", JSON)}),
    "annotated twice": (edit(lambda c: c["annotations"].append(c["annotations"][1])), {("repeated-annotation", JSON)}),
    "unknown image": (
        edit(lambda c: c["annotations"][1].update(image_id=55)),
        {("unknown-image", JSON), ("unannotated-image", PICTURE)},
    ),
    "path upward": (edit(lambda c: c["annotations"][1].update(file_name="../5.png")), {("unsafe-path", PICTURE)}),
    "no image": (lambda folder: (folder / "images" / PICTURE).unlink(), {("unreadable-image", PICTURE)}),
    "half an image": (cut_short("images/5.jpg"), {("unreadable-image", PICTURE)}),
    "half a map": (cut_short("panoptic/5.png"), {("unreadable-map", PICTURE)}),
    "no map": (lambda folder: (folder / "panoptic" / "5.png").unlink(), {("unreadable-map", PICTURE)}),
    "smaller map": (
        shrink,
        {("size-mismatch", PICTURE), ("area-mismatch", PICTURE), ("box-mismatch", PICTURE)},
    ),
    "turned image": (turn, {("turned-image", PICTURE), ("size-mismatch", PICTURE)}),
    "palette map": (
        lambda folder: change_map(folder, lambda picture: picture.quantize(8, dither=Image.Dither.NONE)),
        {("map-mode", PICTURE)},
    ),
    "unlisted": (lambda folder: paint(folder, 77), {("unlisted-id", PICTURE), ("area-mismatch", PICTURE)}),
    "listed, not painted": (
        edit(lambda c: entry(c).update(id=257)),
        {("unlisted-id", PICTURE), ("empty-segment", PICTURE)},
    ),
    "id twice": (
        edit(lambda c: c["annotations"][1]["segments_info"].append(entry(c))),
        {("repeated-id", PICTURE)},
    ),
    "void listed": (
        edit(lambda c: c["annotations"][1]["segments_info"].append({"id": 0, "category_id": 7})),
        {("impossible-id", PICTURE)},
    ),
    "unknown category": (edit(lambda c: entry(c).update(category_id=8)), {("unknown-category", PICTURE)}),
    "wrong area": (edit(lambda c: entry(c).update(area=344)), {("area-mismatch", PICTURE)}),
    "no area": (edit(lambda c: entry(c).pop("area")), {("area-mismatch", PICTURE)}),
    "wrong box": (edit(lambda c: entry(c).update(bbox=[7, 5, 30, 20])), {("box-mismatch", PICTURE)}),
    "corner box": (edit(lambda c: entry(c).update(bbox=[7, 5, 22, 14])), set()),  # a pixel is a matter of taste
    "tiny": (
        keep_four_pixels,
        {("tiny-segment", PICTURE), ("area-mismatch", PICTURE), ("box-mismatch", PICTURE)},
    ),
    "no boat": (drop_boats, set()),
    "two seas": (edit(lambda c: entry(c).update(category_id=200)), {("repeated-stuff", PICTURE)}),
    "crowd": (edit(lambda c: entry(c).update(iscrowd=1)), {("crowd", PICTURE)}),
    "much void": (
        cover,
        {("mostly-void", PICTURE), ("area-mismatch", PICTURE), ("box-mismatch", PICTURE), ("empty-segment", PICTURE)},
    ),
    "no segments": (
        edit(lambda c: c["annotations"][1].update(segments_info=[])),
        {("no-segments", PICTURE), ("unlisted-id", PICTURE)},
    ),
    "not annotated": (edit(lambda c: c["annotations"].pop(1)), {("unannotated-image", PICTURE)}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_where_it_is(folder, name):
    assert check(folder) == set()
    spoil, expected = DAMAGES[name]
    spoil(folder)
    assert check(folder) == expected


def as_jpeg(folder):
    change_map(folder, lambda picture: picture, format="JPEG", quality=70)


@pytest.mark.parametrize("spoil", [as_jpeg, smooth])
def test_a_map_that_lost_its_ids(folder, spoil):
    """What else is wrong with it depends on the codec."""
    spoil(folder)
    found = check(folder)
    assert ("damaged-map", PICTURE) in found
    assert {where for _, where in found} == {PICTURE}
    assert "unlisted-id" not in {kind for kind, _ in found}


def test_every_kind_is_tried():
    tried = {kind for _, expected in DAMAGES.values() for kind, _ in expected}
    assert set(KINDS) - tried == {"damaged-map", "many-segments", "unused-category", "unreadable-record"}


def test_classes_that_are_not_there_are_named(folder):
    DAMAGES["no boat"][0](folder)
    result = check_data(folder, progress=False)
    assert not result.has_errors
    assert "1 of 3 classes: boat" in str(result)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves broken files open
@pytest.mark.parametrize("name", DAMAGES)
def test_the_reader_raises_what_the_check_finds(name, folder):
    """One validator: an error of the reader is a finding of the check."""
    DAMAGES[name][0](folder)
    result = check_data(folder, progress=False)
    error = error_of_reading(folder)
    if isinstance(error, DataError):
        missing = "expected the file" in error.finding.message  # the check opens it and says so in other words
        found = [f.kind if missing else f for f in result.findings]
        assert (error.finding.kind if missing else error.finding) in found
    elif error is not None:
        assert result.has_errors


def error_of_reading(folder):
    try:
        list(read_panoptic(folder).records)
    except (ValueError, OSError, SyntaxError) as error:
        return error
    return None


def test_all_problems_are_listed(folder):
    for name in ("unknown category", "no image", "unlisted", "path upward"):
        DAMAGES[name][0](folder)
    kinds = {kind for kind, _ in check(folder)}
    # The map is not looked for outside its folder.
    assert kinds == {"unknown-category", "unreadable-image", "unsafe-path"}


def test_more_segments_than_queries(folder):
    assert check(folder, num_queries=4) == set()
    assert check(folder, num_queries=3) == {("many-segments", f"{i}.jpg") for i in (3, 5, 8)}


def test_counts_are_those_of_the_maps(folder):
    counts = check_data(folder, limit=2, workers=1, progress=False).counts
    assert (counts.images, counts.pixels, counts.void) == (2, 2 * HEIGHT * WIDTH, 2 * 3 * 70)
    assert counts.class_segments.tolist() == [2, 4, 2]
    assert counts.class_images.tolist() == [2, 2, 2]
    boats, crane = 15 * 23 + 11 * 23, 17 * 31
    assert counts.class_pixels.tolist() == [2 * (HEIGHT * WIDTH - 210 - boats - crane), 2 * boats, 2 * crane]


@pytest.mark.parametrize("packed", [False, True])
def test_records_of_other_formats_are_checked(tmp_path, packed):
    scenes = scenes_dataset(3, seed=5, height=64, width=71)
    records = [dict(row) for row in scenes]
    records[1]["segments_info"] = records[1]["segments_info"][1:]
    if packed:
        write_parquet(tmp_path / "data", records, SCENE_CATEGORIES)
        found = check(tmp_path / "data")
    else:
        write_coco_panoptic_dataset(tmp_path / "data", records, SCENE_CATEGORIES)
        found = check(tmp_path / "data")
    assert {kind for kind, _ in found} - {"tiny-segment"} == {"unlisted-id"}


def test_errors_come_first_and_decide(folder, capsys):
    DAMAGES["crowd"][0](folder)
    assert not check_data(folder, progress=False).has_errors
    DAMAGES["unlisted"][0](folder)
    result = check_data(folder, progress=False)
    assert result.has_errors
    assert [finding.kind for finding in result.findings] == ["unlisted-id", "area-mismatch", "crowd"]
    assert "5.jpg: `segments_info` must list 77 (200 pixels)" in str(result)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="gone"):
        check_data(folder / "gone")


def test_the_report_has_everything_and_is_only_text(folder, tmp_path):
    DAMAGES["unlisted"][0](folder)
    contents = contents_of(folder)
    for image in contents["images"]:
        (folder / "images" / image["file_name"]).rename(folder / "images" / f"<i>{image['file_name']}")
        image["file_name"] = f"<i>{image['file_name']}"
    contents["images"].append({"id": 99, "file_name": "<script>.jpg"})
    write(folder, contents)
    result = check_data(folder, progress=False)
    text = result.save(tmp_path / "report").read_text()
    assert "&lt;i>5.jpg" in text
    assert "&lt;b>crane" in text
    assert not any(tag in text for tag in ("<i>", "<b>", "<script"))
    saved = json.loads((tmp_path / "report" / "check.json").read_text())
    assert [(f["kind"], f["where"]) for f in saved["findings"]] == [(f.kind, f.where) for f in result.findings]
    sheets = save_data_sheets(result, tmp_path / "report")
    assert [path.name for path in sheets] == ["samples.png", "unlisted-id.png", "area-mismatch.png"]


def test_a_map_is_measured_once(folder, monkeypatch):
    """Work is counted: one pass over the map, whatever the number of segments."""
    passes = []
    extents = findings.segment_extents
    monkeypatch.setattr(findings, "segment_extents", lambda ids: passes.append(ids.shape) or extents(ids))
    check_data(folder, workers=1, progress=False)
    assert passes == [(HEIGHT, WIDTH)] * 3
