"""`evaluate`: the official numbers, whatever the order of the classes, the batches or the files that exist already."""

import dataclasses
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticData
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.records import ids_to_rgb, panoptic_features, truth_ids
from detr_panoptic.evaluation import Evaluation, evaluate, evaluate_files
from detr_panoptic.evaluation.panoptic_quality import PanopticQuality
from detr_panoptic.inference.predictor import Predictor
from detr_panoptic.scenes.source import read_source
from tests.conftest import CATEGORY_IDS, NAMES, photo
from tests.data_folders import coco_panoptic

COUNT = 6
UNCLOSED = "ignore::pytest.PytestUnraisableExceptionWarning"  # `datasets` leaves a broken picture's file open
QUIET: Any = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def data(predictor) -> PanopticData:
    """Photos whose annotation the model finds in part: its own predictions, moved, and some of another class."""
    categories = Categories(NAMES, (True, True, False), tuple(CATEGORY_IDS))
    records = []
    for index in range(COUNT):
        image = photo((71 if index % 2 else 53, 53), seed=index)
        prediction = predictor(image)
        segments = [
            {
                "id": s.id,
                "label_id": 1 if place == 1 else s.label_id,
                "iscrowd": 0,
                "area": s.area,
                "bbox": list(s.bbox),
            }
            for place, s in enumerate(prediction.segments)
        ]
        ids = np.roll(prediction.segmentation, 3 * index, axis=1)
        records.append(
            {
                "image": image,
                "image_id": index + 1,
                "file_name": f"{index + 1}.png",
                "segmentation": Image.fromarray(ids_to_rgb(ids)),
                "segments_info": segments,
            }
        )
    return PanopticData(Dataset.from_list(records, features=panoptic_features(categories)), categories)


@pytest.fixture(scope="module")
def evaluated(predictor, data) -> Evaluation:
    return evaluate(predictor, data, **QUIET)


def in_order(data: PanopticData, names: tuple[str, ...], written: tuple[str, ...] | None = None) -> PanopticData:
    """The same data with the classes in another order, or written differently; segments of others become void."""
    old = data.categories
    labels = {old.names.index(name): place for place, name in enumerate(names)}
    categories = Categories(
        written or names,
        tuple(old.is_thing[old.names.index(name)] for name in names),
        tuple(100 + place for place in range(len(names))),
    )

    def changed(record):
        kept = [s for s in record["segments_info"] if s["label_id"] in labels]
        ids = np.where(np.isin(truth_ids(record), [s["id"] for s in kept]), truth_ids(record), 0)
        segments = [{**s, "label_id": labels[s["label_id"]]} for s in kept]
        return {**record, "segmentation": Image.fromarray(ids_to_rgb(ids)), "segments_info": segments}

    records = [changed(record) for record in data.records]
    return PanopticData(Dataset.from_list(records, features=panoptic_features(categories)), categories)


def numbers(evaluation: Evaluation) -> dict:
    """What must not depend on the order of the classes."""
    per_class = {name.casefold(): (row.pq, row.tp, row.fp, row.fn) for name, row in evaluation.per_class.items()}
    return {"pq": pytest.approx(evaluation.pq, abs=1e-12), "classes": per_class}


def test_the_result_is_worth_comparing_and_prints(evaluated):
    assert 0.1 < evaluated.pq < 0.9
    assert all(row.tp and row.fp + row.fn for row in evaluated.per_class.values())
    text = str(evaluated)
    assert f"{100 * evaluated.pq:.1f}" in text
    assert f"{COUNT} images" in text
    assert all(f"| {name} " in text for name in NAMES)


@pytest.mark.parametrize("with_output", [False, True])
def test_the_order_of_the_classes_does_not_matter(tmp_path, predictor, data, evaluated, with_output):
    reordered = in_order(data, ("sky-other-merged", "boat", "person"))
    result = evaluate(predictor, reordered, output=tmp_path / "out" if with_output else None, **QUIET)
    assert numbers(result) == numbers(evaluated)


def test_average_precision_does_not_depend_on_the_order_of_the_classes_either():
    """The tiny model's boxes meet nothing; those of the bundled checkpoint do."""
    bundled, scenes = Predictor.from_pretrained(BUNDLED, device="cpu"), read_source("scenes", limit=4)
    expected = evaluate(bundled, scenes, **QUIET)
    assert all(0.1 < expected.ap[kind]["ap"] < 0.9 for kind in ("box", "mask"))
    reordered = evaluate(bundled, in_order(scenes, scenes.categories.names[::-1]), **QUIET)
    assert numbers(reordered) == numbers(expected)
    for kind in ("box", "mask"):
        assert reordered.ap[kind]["ap"] == pytest.approx(expected.ap[kind]["ap"], abs=1e-12)
        assert reordered.ap[kind]["per_class"] == expected.ap[kind]["per_class"][::-1]


def test_names_in_another_case_match_and_the_log_says_so(predictor, data, evaluated, caplog):
    other = in_order(data, NAMES, ("Boat", "PERSON", "sky-other-merged"))
    with caplog.at_level(logging.WARNING):
        assert numbers(evaluate(predictor, other, **QUIET)) == numbers(evaluated)
    assert "'PERSON'" in caplog.text


def test_a_class_that_the_model_lacks_is_an_error_that_lists_it(predictor, data):
    with pytest.raises(ValueError, match="no class for 2 of the 3 classes of the data: 'ship', 'human'"):
        evaluate(predictor, in_order(data, NAMES, ("ship", "human", "sky-other-merged")), **QUIET)


def test_what_the_data_does_not_know_is_void(predictor, data):
    fewer = in_order(data, ("sky-other-merged", "person"))
    result = evaluate(predictor, fewer, average_precision=False, **QUIET)
    assert (result.quality.overall.n, set(result.per_class)) == (2, {"sky-other-merged", "person"})
    expected = PanopticQuality(fewer.categories)
    for record in fewer.records:
        expected.update(record, predictor(record["image"]))
    assert result.quality == expected.compute()
    assert result.stuff.pq > 0


def test_training_measures_the_same_as_the_defaults(model_folder, data, evaluated):
    """Training validates a model in training mode, without AP; the card says what the defaults give."""
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).train()
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    result = evaluate(Predictor(model, processor), data, average_precision=False, progress=False)
    assert result.quality == evaluated.quality
    assert result.ap == {}
    assert model.training
    assert evaluate((model.eval(), processor), data, average_precision="box", progress=False).ap == {
        "box": evaluated.ap["box"]
    }


def test_files_say_the_same_to_the_last_bit(tmp_path, predictor, data, evaluated):
    result = evaluate(predictor, data, output=tmp_path / "out", **QUIET)
    assert (result.quality, result.ap) == (evaluated.quality, evaluated.ap)
    (tmp_path / "truth").mkdir()
    annotations = []
    for record in data.records:
        name = f"{record['image_id']}.png"
        record["segmentation"].save(tmp_path / "truth" / name)
        segments = [{**s, "category_id": CATEGORY_IDS[s["label_id"]]} for s in record["segments_info"]]
        annotations.append({"image_id": record["image_id"], "file_name": name, "segments_info": segments})
    contents = {"annotations": annotations, "categories": data.categories.to_coco()}
    (tmp_path / "truth.json").write_text(json.dumps(contents))
    predictions = tmp_path / "out" / "predictions" / "panoptic.json"
    assert evaluate_files(tmp_path / "truth.json", predictions) == evaluated.quality


def test_the_result_is_saved(tmp_path, predictor, data, evaluated):
    evaluate(predictor, data, output=tmp_path / "out", **QUIET)
    evaluated.save(tmp_path / "saved")
    for name in ("metrics.json", "metrics.md", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    metrics = json.loads((tmp_path / "saved" / "metrics.json").read_text())
    assert metrics["panoptic_quality"]["all"]["pq"] == evaluated.pq
    assert metrics["average_precision"]["mask"]["ap"] == evaluated.ap["mask"]["ap"]
    assert [row["name"] for row in metrics["per_class"]] == list(NAMES)
    assert (metrics["images"], metrics["skipped"], metrics["settings"]["batch_size"]) == (COUNT, [], 1)
    qualities = [example.pq for example in evaluated.worst]
    assert len(qualities) == 4
    assert qualities == sorted(qualities)


def test_predictions_that_exist_are_used(tmp_path, predictor, data, evaluated):
    folder = tmp_path / "out" / "predictions"
    evaluate(predictor, data, output=tmp_path / "out", **QUIET)
    (tmp_path / "out" / "metrics.json").unlink()
    first, *others = sorted((folder / "segments").glob("*.json"))
    first.unlink()
    before = [path.stat().st_mtime_ns for path in others]
    result = evaluate(predictor, data, output=tmp_path / "out", **QUIET)
    assert [path.stat().st_mtime_ns for path in others] == before
    assert (result.quality, result.ap) == (evaluated.quality, evaluated.ap)
    assert (tmp_path / "out" / "metrics.json").exists()
    with pytest.raises(ValueError, match="threshold"):
        evaluate(predictor, data, output=tmp_path / "out", threshold=0.9, **QUIET)


def test_batches_without_padding_give_the_numbers_of_single_images(predictor, data, evaluated):
    """There are three images of each of two sizes: sorted by shape, batches of three need no padding."""
    together = evaluate(predictor, data, batch_size=3, **QUIET)
    for group in ("overall", "things", "stuff"):
        found, expected = (vars(getattr(result.quality, group)) for result in (together, evaluated))
        assert found == pytest.approx(expected, abs=2e-3), group


@pytest.mark.filterwarnings(UNCLOSED)
@pytest.mark.parametrize("with_output", [False, True])
def test_an_image_that_cannot_be_read_stops_or_is_listed(tmp_path, predictor, with_output):
    folder = coco_panoptic(tmp_path / "data")
    renamed = json.loads((folder / "panoptic.json").read_text())
    for place, category in enumerate(renamed["categories"]):
        category["name"] = NAMES[place]
    (folder / "panoptic.json").write_text(json.dumps(renamed))
    whole = evaluate(predictor, folder, average_precision=False, **QUIET)
    broken = sorted((folder / "images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    output = tmp_path / "out" if with_output else None
    with pytest.raises(ValueError, match=broken.name):
        evaluate(predictor, folder, output=output, **QUIET)
    result = evaluate(predictor, folder, output=output, on_error="skip", **QUIET)
    assert result.images == whole.images - 1
    (message,) = result.failures
    assert broken.name in message
    assert result.metrics["skipped"] == [message]
    assert "1 could not be read" in str(result)
    assert message.split(":")[0] in (result.save(tmp_path / "saved") / "metrics.md").read_text()


@pytest.mark.parametrize("weight", [float("nan"), 3e38])  # finite, but its products are not
def test_outputs_that_are_not_finite_are_no_result(tmp_path, model_folder, data, weight):
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        model.class_head.weight.fill_(weight)
    with pytest.raises(FloatingPointError, match=r"1\.png"):
        evaluate((model, processor), data, output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not list((tmp_path / "out").rglob("*.png"))


def test_weights_that_are_not_finite_are_refused(tmp_path, model_folder, data):
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    with torch.no_grad():
        model.class_head.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    DetrPanopticImageProcessor.from_pretrained(model_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32: class_head\.weight"):
        evaluate(tmp_path, data, **QUIET)


def test_names_cannot_break_the_tables(tmp_path, evaluated):
    names = ("a|b<script>", "c\n\x1b[2J", "d")
    per_class = dict(zip(names, evaluated.per_class.values(), strict=True))
    quality = dataclasses.replace(evaluated.quality, per_class=per_class)
    nasty = dataclasses.replace(evaluated, quality=quality, failures=["x|\n<y>: broken"], worst=[])
    assert "\x1b" not in str(nasty)
    text = (nasty.save(tmp_path) / "metrics.md").read_text()
    assert "| a\\|b&lt;script>" in text
    assert "- x\\| &lt;y>: broken" in text


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"threshold": 1.5}, "threshold"),
        ({"average_precision": "yes"}, "average_precision"),
    ],
)
def test_a_wrong_argument_is_named(predictor, data, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        evaluate(predictor, data, **options)
