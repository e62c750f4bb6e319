"""Labels by a teacher: what it is sure of, in the wanted classes, and where it is in the image."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import (
    AutoModelForUniversalSegmentation,
    DetrConfig,
    DetrForSegmentation,
    DetrImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from detr_panoptic import Predictor, check_data, label, read_panoptic
from detr_panoptic.labeling.classes import match_classes
from detr_panoptic.labeling.teachers import TransformersTeacher, license_of, open_teacher
from tests.conftest import photo
from tests.labeling.small_teachers import KINDS, NAMES, SIDE, save_teacher

SIZES = ((71, 53), (90, 64), (53, 71))
QUIET: Any = {"progress": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        photo(size, seed=number).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {kind: save_teacher(kind, folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_of_transformers_labels_a_folder(teachers, photos, tmp_path, kind):
    labels = label(
        photos, tmp_path / "out", teacher=teachers[kind], threshold=0.4, report=tmp_path / "report", **QUIET
    )
    assert labels.images == len(SIZES)
    assert "license: mit" in str(labels)
    data = read_panoptic(tmp_path / "out")
    assert data.categories.names == NAMES
    assert data.categories.is_thing == (True, True, False)
    assert data.categories.category_ids == (1, 3, 187)  # COCO's
    assert not check_data(tmp_path / "out").has_errors
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert content["info"]["teacher_license"] == "mit"
    scores = [segment["score"] for entry in content["annotations"] for segment in entry["segments_info"]]
    assert scores
    assert all(0.4 < score <= 1 for score in scores)
    assert 0 < labels.void_after < labels.void_before == 1
    for path in photos.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "images" / path.name).read_bytes()
    report = json.loads((tmp_path / "report" / "labels.json").read_text())
    order = [image["score"] for image in report["least_sure"]]
    assert order == sorted(order)
    assert (tmp_path / "report" / "sheet_1.png").is_file()


class Colors:
    """Outputs of queries that see what is red as a person and what is blue as the sky."""

    def __call__(self, pixel_values, **_):
        red, _green, blue = torch.nn.functional.avg_pool2d(pixel_values, 4).unbind(1)
        masks = torch.stack([red - blue - 2, blue - red - 2], dim=1) * 20
        logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 9.0, 0]]).expand(len(red), -1, -1)
        return {"class_queries_logits": logits, "masks_queries_logits": masks}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(150, 100), (101, 173)])
def test_labels_lie_where_the_image_shows_the_objects(teachers, tmp_path, monkeypatch, kind, size):
    """The processors stretch (Mask2Former), resize (OneFormer) or pad (EoMT); masks follow."""
    width, height = size
    pixels = np.full((height, width, 3), 118, np.uint8)
    pixels[height // 4 : height // 2, width // 2 :] = 255, 0, 0
    pixels[3 * (height // 4) :, : width // 2] = 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    teacher = open_teacher(teachers[kind], device="cpu")
    colors = Colors()
    monkeypatch.setattr(type(teacher.model), "__call__", lambda _, **inputs: colors(**inputs))
    label(tmp_path / "1.png", tmp_path / "out", teacher=teacher, **QUIET)
    record = read_panoptic(tmp_path / "out").records[0]
    found = {segment["label_id"]: segment["bbox"] for segment in record["segments_info"]}
    half, quarter = width // 2, height // 4
    expected = {0: [half, quarter, width - half, quarter], 2: [0, 3 * quarter, half, height - 3 * quarter]}
    cell = 4 * max(size) / SIDE  # of a mask, in pixels of the image
    assert found.keys() == expected.keys()
    for name, box in expected.items():
        assert found[name] == pytest.approx(box, abs=cell)


def test_classes_are_mapped_several_to_one(teachers, photos, tmp_path):
    own = label(photos, tmp_path / "own", teacher=teachers["eomt"], threshold=0.4, **QUIET)
    file = tmp_path / "map.yaml"
    file.write_text(yaml.safe_dump({"road user": ["person", "Car"], "sky": "sky-other-merged"}))
    mapped = label(photos, tmp_path / "mapped", teacher=teachers["eomt"], classes=file, threshold=0.4, **QUIET)
    data = read_panoptic(tmp_path / "mapped")
    assert data.categories.names == ("road user", "sky")
    assert data.categories.is_thing == (True, False)
    pixels = {row.name: row.pixels for row in own.added}
    assert {row.name: row.pixels for row in mapped.added} == {"road user": pixels["car"] + pixels.get("person", 0)}
    dropped = label(
        photos, tmp_path / "sky", teacher=teachers["eomt"], classes={"sky": "sky-other-merged"}, threshold=0.4, **QUIET
    )
    assert dropped.void_after == 1


def teacher_of(names):
    config = SimpleNamespace(id2label=dict(enumerate(names)), model_type="mask2former", _name_or_path="")
    model = SimpleNamespace(config=config, forward=lambda pixel_values: pixel_values)
    model.eval = lambda: model
    return TransformersTeacher("some model", model, None)


@pytest.mark.parametrize(
    ("names", "classes", "stuff", "expected"),
    [
        (NAMES, {"cars": "cra"}, None, r"`classes` maps 'cars' to 'cra'.* did you mean 'car'"),
        (NAMES, {"a": "car", "b": ["person", "car"]}, None, r"`classes` .*'car' twice"),
        (NAMES, {"a": 3}, None, r"`classes` must map 'a'"),
        (NAMES, ["car"], None, r"`classes` must map names"),
        (NAMES, {}, None, r"`classes` must map names"),
        (NAMES, "no/such.yaml", None, r"`classes` 'no/such.yaml' cannot be read"),
        (NAMES, {"a": ["car", "sky-other-merged"]}, None, r"`stuff` must name .*'a'"),
        (("blob", "goo"), None, None, r"`stuff` must name .*'blob', 'goo'"),
        (("blob", "goo"), None, ["gooo"], r"`stuff` names 'gooo'.*'goo'"),
    ],
)
def test_wrong_classes_are_named(names, classes, stuff, expected):
    with pytest.raises(ValueError, match=expected):
        match_classes(teacher_of(names), classes, stuff)


def test_unknown_kinds_are_what_the_user_says():
    match = match_classes(teacher_of(("blob", "goo")), None, ["Goo"])
    assert match.categories.is_thing == (True, False)
    assert match.categories.category_ids == (1, 2)


def test_a_run_goes_on_where_it_was(teachers, photos, tmp_path, monkeypatch):
    """A full disk stops the second of three images; the next run labels the other two, and nothing twice."""
    whole = label(photos, tmp_path / "whole", teacher=teachers["eomt"], threshold=0.4, **QUIET)
    write, counts = Path.write_bytes, []

    def fail(path, data):
        counts.append(path.name)
        if len(counts) == 5:  # the map of the second image
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        label(photos, tmp_path / "out", teacher=teachers["eomt"], threshold=0.4, **QUIET)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "panoptic.json").exists()
    teacher = open_teacher(teachers["eomt"], device="cpu")
    forwards, forward = [], teacher.model.forward
    monkeypatch.setattr(teacher.model, "forward", lambda **inputs: (forwards.append(1), forward(**inputs))[1])
    labels = label(photos, tmp_path / "out", teacher=teacher, threshold=0.4, **QUIET)
    assert (labels.images, labels.earlier, len(forwards)) == (3, 1, 2)
    assert (labels.added, labels.void_after) == (whole.added, whole.void_after)
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
    with pytest.raises(ValueError, match=r"`output` .* `threshold` 0.4, not 0.5"):
        label(photos, tmp_path / "out", teacher=teacher, threshold=0.5, **QUIET)


def test_other_images_need_another_folder(teachers, photos, tmp_path):
    teacher = open_teacher(teachers["eomt"], device="cpu")
    label(photos, tmp_path / "out", teacher=teacher, limit=2, threshold=0.4, **QUIET)
    labels = label(photos, tmp_path / "out", teacher=teacher, threshold=0.4, **QUIET)
    assert (labels.images, labels.earlier) == (3, 2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for folder, name in (("same", "1.jpg"), ("others", "9.jpg")):
        (tmp_path / folder).mkdir()
        photo(SIZES[0], seed=9).save(tmp_path / folder / name)
    for source, limit, expected in (
        ([photos / "0.jpg", tmp_path / "same" / "1.jpg", photos / "2.jpg"], None, r"'1.jpg' from .*photos"),
        (tmp_path / "others", None, r"labels of 3 images not in the source, first '0.jpg'"),
        (photos, 1, r"labels of 2 images not in the source, first '1.jpg'"),
    ):
        with pytest.raises(ValueError, match=rf"`output` .*out' holds .*{expected}"):
            label(source, tmp_path / "out", teacher=teacher, limit=limit, threshold=0.4, **QUIET)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_only_cards_of_folders_and_repositories_are_read(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        ModelCard, "load", lambda name, **_: asked.append(name) or SimpleNamespace(data={"license": "mit"})
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    for name in ("my/model", str(tmp_path), "EomtForUniversalSegmentation"):
        assert license_of(name) is None
    assert not asked
    assert license_of("owner/name") == "mit"
    (tmp_path / "my" / "model" / "README.md").touch()
    assert license_of("my/model") == "mit"
    assert [str(name) for name in asked] == ["owner/name", "my/model/README.md"]


def test_our_models_are_teachers(model_folder, photos, tmp_path):
    paths = sorted(photos.iterdir())
    (tmp_path / "2").mkdir()
    second = tmp_path / "2" / paths[0].name
    second.write_bytes(paths[1].read_bytes())
    labels = label(
        [paths[0], second], tmp_path / "out", teacher=Predictor.from_pretrained(model_folder), threshold=0.3, **QUIET
    )
    assert labels.images == 2  # of the same name
    data = read_panoptic(tmp_path / "out")
    assert list(data.records["file_name"]) == ["0.jpg", "0_2.jpg"]
    assert labels.void_after < 1


def test_a_detr_of_transformers_in_memory_is_a_teacher(photos, tmp_path):
    config = DetrConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=8, decoder_attention_heads=8, num_queries=5,
        id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    pair = DetrForSegmentation(config), DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    labels = label(photos, tmp_path / "out", teacher=pair, threshold=0.05, **QUIET)
    assert labels.images == len(SIZES)
    assert read_panoptic(tmp_path / "out").categories.names == NAMES


def test_wrong_teachers_are_named(photos, teachers, tmp_path):
    other = tmp_path / "classifier"
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(other)
    ViTImageProcessor().save_pretrained(other)
    eomt = AutoModelForUniversalSegmentation.from_pretrained(teachers["eomt"])
    for teacher, expected in (
        (other, r"`teacher` must do panoptic segmentation.* 'vit'"),
        ((eomt, ViTImageProcessor()), r"`teacher` .*`post_process_panoptic_segmentation`, got ViTImageProcessor"),
        (tmp_path / "nothing", r"`teacher` must be an existing folder"),
        (photos, r"`teacher` .*cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=expected):
            label(photos, tmp_path / "out", teacher=teacher, **QUIET)
    wrong: Any = ({"threshold": 2}, {"dtype": "int8"})
    for options in wrong:
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            label(photos, tmp_path / "out", teacher=teachers["eomt"], **options, **QUIET)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="`output`"):
        label(photos, tmp_path, teacher=teachers["eomt"], **QUIET)
