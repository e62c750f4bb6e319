"""The one loop over images: objects, files, datasets, failures and repetition."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import read_panoptic
from detr_panoptic.inference import Predictor
from detr_panoptic.scenes import make_scene, scenes_dataset
from detr_panoptic.segment_ids import rgb_to_ids

SEED = 77_000_000


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def scenes():
    return scenes_dataset(4, seed=SEED, height=96, width=128)


@pytest.fixture
def photos(tmp_path, scenes):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, scene in enumerate(scenes):
        scene["image"].save(folder / f"{number}.png")
    return folder


def ids_in(file):
    with Image.open(file) as picture:
        return rgb_to_ids(np.asarray(picture))


def test_a_prediction_agrees_with_model_and_processor(predictor, scenes):
    image = scenes[0]["image"]
    prediction = predictor(image)
    inputs = predictor.processor(image, return_tensors="pt")
    with torch.inference_mode():
        output = predictor.model(**inputs)
    expected = predictor.processor.post_process_panoptic_segmentation(output, target_sizes=[image.size[::-1]])[0]
    assert np.array_equal(prediction.segmentation, expected["segmentation"].numpy())
    scores = [s["score"] for s in expected["segments_info"]]
    assert [s.score for s in prediction.segments] == pytest.approx(scores, abs=1e-5)  # the predictor's model is fused
    for segment in prediction.segments:
        pixels = prediction.segmentation == segment.id
        rows, columns = np.nonzero(pixels)
        assert segment.area == pixels.sum() > 0
        x, y, width, height = segment.bbox
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert segment.is_thing == (segment.label_id not in predictor.model.config.stuff_label_ids)


def test_a_list_gives_what_single_images_give(predictor, scenes):
    images = [scene["image"] for scene in scenes] + [make_scene(SEED + 9)["image"]]  # of two sizes
    for image, prediction in zip(images, predictor(images), strict=True):
        assert np.array_equal(prediction.segmentation, predictor(image).segmentation)


def test_the_loop_leaves_the_model_in_its_mode(predictor, scenes):
    predictor.model.train()
    try:
        predictor(scenes[0]["image"])
        assert predictor.model.training
    finally:
        predictor.model.eval()


def test_a_semantic_map_covers_every_pixel(predictor, scenes):
    prediction = predictor(scenes[0]["image"], task="semantic")
    assert prediction.segmentation.min() == 1
    labels = [segment.label_id for segment in prediction.segments]
    assert len(set(labels)) == len(labels)
    assert all(segment.score is None for segment in prediction.segments)


def test_instances_are_things(predictor, scenes):
    assert all(segment.is_thing for segment in predictor(scenes[0]["image"], task="instance").segments)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"task": "boxes"}, "task"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": 0.5, "task": "semantic"}, "threshold"),
    ],
)
def test_wrong_options_are_named(predictor, scenes, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        predictor(scenes[0]["image"], **options)


def test_folder_files_hold_the_prediction(predictor, photos, tmp_path):
    folder = predictor.predict(photos, tmp_path / "out", progress=False)
    assert len(folder) == 4
    for _, prediction in folder:
        direct = predictor(photos / prediction.name.rpartition("/")[2])
        assert np.array_equal(prediction.segmentation, direct.segmentation)
        assert prediction.segments == direct.segments
        assert prediction.detections is None
    content = json.loads((tmp_path / "out" / "0.json").read_text())
    ids = ids_in(tmp_path / "out" / content["segmentation"])
    assert set(np.unique(ids)) - {0} == {segment["id"] for segment in content["segments_info"]}
    with Image.open(tmp_path / "out" / "0_overlay.png") as overlay:
        assert overlay.size == (128, 96)


def test_what_exists_is_done(predictor, photos, tmp_path):
    output = tmp_path / "out"
    predictor.predict(photos, output, progress=False)
    times = {path.name: path.stat().st_mtime_ns for path in output.glob("*.json")}
    (output / "2.json").unlink()
    folder = predictor.predict(photos, output, progress=False)
    again = {path.name: path.stat().st_mtime_ns for path in output.glob("*.json")}
    assert {name for name in times if times[name] != again[name]} == {"2.json"}
    assert folder.num_earlier == 3


def test_results_of_another_image_of_the_same_name_are_refused(predictor, photos, tmp_path):
    predictor.predict([photos / "0.png"], tmp_path / "out", progress=False)
    (photos / "1.png").replace(photos / "0.png")
    with pytest.raises(ValueError, match=r"another image of the name '.*0\.png'"):
        predictor.predict([photos / "0.png"], tmp_path / "out", progress=False)


@pytest.mark.parametrize(("to", "name"), [("coco", "panoptic.json"), ("parquet", "data/train.parquet")])
def test_files_of_others_are_not_replaced(predictor, photos, tmp_path, to, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"`output` must not have '(panoptic\.json|data)'"):
        predictor.predict(photos, tmp_path, to=to, progress=False)
    assert (tmp_path / name).read_text() == "mine"


def test_image_ids_stay_unique_when_photographs_are_added(predictor, photos, tmp_path):
    (photos / "0.png").rename(tmp_path / "0.png")
    predictor.predict(photos, tmp_path / "out", to="coco", progress=False)
    (tmp_path / "0.png").rename(photos / "0.png")
    predictor.predict(photos, tmp_path / "out", to="coco", progress=False)
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]


def test_a_saved_prediction_does_not_replace_its_image(predictor, photos):
    prediction = predictor(photos / "0.png")
    before = (photos / "0.png").read_bytes()
    with pytest.raises(ValueError, match="`stem` must be given"):
        prediction.save(photos)
    assert (photos / "0.png").read_bytes() == before
    prediction.save(photos / "results")
    prediction.save(photos / "results")  # again


def test_other_settings_do_not_mix(predictor, photos, tmp_path):
    predictor.predict(photos, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="`threshold`"):
        predictor.predict(photos, tmp_path / "out", threshold=0.3, progress=False)


def test_an_unreadable_image_costs_only_itself(predictor, photos, tmp_path):
    (photos / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1\.png"):
        predictor.predict(photos, tmp_path / "stop", progress=False)
    folder = predictor.predict(photos, tmp_path / "skip", on_error="skip", batch_size=2, progress=False)
    assert len(folder) == 3
    (failure,) = folder.failures
    assert "1.png" in failure


def test_missing_paths_are_named(predictor, photos, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.png"):
        predictor.predict([photos / "0.png", tmp_path / "nowhere.png"], tmp_path / "out", progress=False)
    folder = predictor.predict(
        [photos / "0.png", tmp_path / "nowhere.png"], tmp_path / "out", on_error="skip", progress=False
    )
    assert len(folder) == len(folder.failures) == 1


def test_inputs_are_not_overwritten(predictor, photos):
    before = (photos / "0.png").read_bytes()
    folder = predictor.predict([photos / "0.png"], photos, progress=False)
    assert (photos / "0.png").read_bytes() == before
    assert len(folder) == 1


@pytest.mark.parametrize("to", ["coco", "parquet"])
def test_datasets_of_predictions_are_read_back(predictor, scenes, tmp_path, to):
    folder = predictor.predict(scenes, tmp_path / "out", to=to, progress=False)
    found = {record["image_id"]: prediction for record, prediction in folder}
    if to == "coco":
        content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
        assert [image["id"] for image in content["images"]] == [scene["image_id"] for scene in scenes]
        for annotation in content["annotations"]:
            ids = ids_in(tmp_path / "out" / "panoptic" / annotation["file_name"])
            assert np.array_equal(ids, found[annotation["image_id"]].segmentation)
        return
    data = read_panoptic(tmp_path / "out" / "data")
    assert data.categories.names == predictor.categories.names
    for record in data.records:
        ids = rgb_to_ids(np.asarray(record["segmentation"]))
        assert np.array_equal(ids, found[record["image_id"]].segmentation)


def test_detections_hold_every_query(predictor, scenes):
    ((_, prediction),) = predictor.iterate(scenes.select([0]), detections="mask")
    assert len(prediction.detections) == predictor.model.config.num_queries
    assert all({"label_id", "score", "bbox", "counts"} <= set(detection) for detection in prediction.detections)


def test_outputs_that_are_not_finite_stop_the_loop(scenes):
    predictor = Predictor.from_pretrained(BUNDLED, device="cpu")
    with torch.no_grad():
        predictor.model.class_head.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        predictor(scenes[0]["image"])


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"`model`.*config\.json"):
        Predictor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`device`"):
        Predictor.from_pretrained(BUNDLED, device="abacus")
    with pytest.raises(ValueError, match="`model`"):
        Predictor.from_pretrained("no/such/folder")


def test_int8_of_a_model_that_was_not_quantized_is_refused():
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="`dtype`"):
        Predictor.from_pretrained(BUNDLED, dtype="int8")
