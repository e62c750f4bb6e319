"""Tuning of thresholds: what it measures is what `evaluate` measures, and what it saves is used everywhere."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from detr_panoptic import DetrPanopticImageProcessor, Predictor, evaluate, tune_thresholds
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import panoptic_features
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.reading import PanopticData
from detr_panoptic.evaluation import tuning as tuning_module
from detr_panoptic.exporting.merging import merge_batch
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene, scenes_dataset
from tests.conftest import NAMES, photo

COUNT, SIDE = 3, 128


@pytest.fixture(scope="module")
def scenes():
    return PanopticData(scenes_dataset(COUNT, seed=17, height=SIDE, width=SIDE), SCENE_CATEGORIES)


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED, device="cpu")


def measured(predictor, processor, scenes):
    return evaluate((predictor.model, processor), scenes, average_precision=False, progress=False).quality


@pytest.mark.parametrize("per_class", [False, True])
def test_before_and_after_are_what_evaluate_measures(predictor, scenes, monkeypatch, per_class):
    monkeypatch.setattr(tuning_module, "MIN_SEGMENTS", 2)
    counts, forward = [], type(predictor.model).forward
    monkeypatch.setattr(
        type(predictor.model), "forward", lambda self, **inputs: (counts.append(1), forward(self, **inputs))[1]
    )
    tuning = tune_thresholds(predictor, scenes, per_class=per_class, thresholds=(0.3, 0.6, 0.95), progress=False)
    assert len(counts) == COUNT  # the model ran once over the images
    assert tuning.before == measured(predictor, predictor.processor, scenes)
    assert tuning.after == measured(predictor, tuning.processor, scenes)
    assert tuning.after.pq > tuning.before.pq
    assert tuning.images == COUNT
    assert isinstance(tuning.settings["threshold"], list) == per_class
    before, after = str(tuning).splitlines()[2:4]
    assert f"{100 * tuning.before.pq:.1f}" in before
    assert f"{100 * tuning.after.pq:.1f}" in after
    assert tuning.after.pq >= max(pq for _, pq in tuning.tried)
    settings, pq = tuning.tried[1]
    processor = DetrPanopticImageProcessor(**{**predictor.processor.to_dict(), **settings})
    assert pq == measured(predictor, processor, scenes).pq


def test_rare_classes_keep_the_common_threshold(predictor, scenes):
    tuning = tune_thresholds(predictor, scenes, per_class=True, thresholds=(0.3, 0.6, 0.95), progress=False)
    segments = [segment["label_id"] for record in scenes.records for segment in record["segments_info"]]
    frequent = {SCENE_CATEGORIES.names[label] for label in segments if segments.count(label) >= 10}
    assert set(tuning.own_thresholds) <= frequent


def test_what_is_best_already_stays(predictor, scenes):
    own = predictor.processor
    tuning = tune_thresholds(
        predictor, scenes, merging=[own.merging], thresholds=[own.threshold, 0.9999], progress=False
    )
    expected = {"merging": own.merging, "threshold": own.threshold}
    assert expected.items() <= tuning.settings.items()
    # The model's own processor is not changed.
    assert tuning.processor is not own


def test_the_settings_are_saved_with_the_model(model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    record = {
        "image": photo((71, 53), seed=0),
        "image_id": 1,
        "file_name": "1.png",
        "segmentation": np.zeros((53, 71, 3), np.uint8),
        "segments_info": [],
    }
    categories = Categories(NAMES, (True, True, False), (9, 1, 187))
    data = PanopticData(Dataset.from_list([record], features=panoptic_features(categories)), categories)
    predictor = Predictor.from_pretrained(tmp_path)
    tuning = tune_thresholds(predictor, data, thresholds=[0.2], progress=False)
    limits = [0.25, 1.0, 0.3]
    tuning.settings["threshold"] = limits
    tuning.save(tmp_path)
    changed = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert changed == {**config, **tuning.settings}

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "preprocessor_config.json").write_text('{"image_processor_type": "DetrImageProcessor"}')
    with pytest.raises(ValueError, match=r"other.* holds a DetrImageProcessor.*: save to another folder"):
        tuning.save(tmp_path / "other")

    picture = photo((71, 53), seed=0)
    before, after = (Predictor.from_pretrained(folder)(picture) for folder in (model_folder, tmp_path))
    assert {"person"} < {segment.label for segment in before.segments}
    assert "person" not in {segment.label for segment in after.segments}
    found = pipeline("image-segmentation", model=str(tmp_path))(picture)
    assert [segment["label"] for segment in found] == [segment.label for segment in after.segments]


@pytest.mark.parametrize("merging", ["paper", "score_weighted"])
def test_every_post_processing_has_thresholds_of_classes(model_folder, merging):
    predictor = Predictor.from_pretrained(model_folder)
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder, merging=merging)
    inputs = processor([photo((71, 53), seed=seed) for seed in range(3)], return_tensors="pt")
    with torch.inference_mode():
        outputs = predictor.model(**inputs)
    scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
    limits = [0.3, 0.99, 0.35]
    # What the thresholds of classes drop, an infinitely unlikely object is dropped as well.
    dropped = scores <= torch.tensor(limits)[labels]
    assert dropped.any(0).any()
    hidden = {**outputs, "logits": outputs.logits.masked_fill(dropped[..., None], 0)}  # every class the same: 0.25
    hidden = type(outputs)(**hidden)
    for name in ("panoptic_segmentation", "instance_segmentation", "object_detection"):
        process = getattr(processor, f"post_process_{name}")
        for found, expected in zip(process(outputs, limits), process(hidden, 0.3), strict=True):
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        one, several = process(outputs, 0.3), process(outputs, [0.3, 0.3, 0.3])
        assert str(one) == str(several)
    tables = merge_batch(
        outputs.logits, outputs.pred_masks, inputs["pixel_mask"], threshold=limits, stuff_label_ids=(2,)
    )
    expected = merge_batch(
        hidden.logits, outputs.pred_masks, inputs["pixel_mask"], threshold=0.3, stuff_label_ids=(2,)
    )
    assert all(torch.equal(a, b) for a, b in zip(tables, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"merging": "paper"}, "merging"),
        ({"merging": ["papers"]}, "merging"),
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [1.5]}, "thresholds"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments_are_refused(predictor, scenes, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        tune_thresholds(predictor, scenes, progress=False, **arguments)


def test_wrong_thresholds_of_classes_are_refused(model_folder):
    with pytest.raises(ValueError, match=r"`threshold` .* 1.5"):
        DetrPanopticImageProcessor(threshold=[0.5, 1.5])
    predictor = Predictor.from_pretrained(model_folder)
    predictor.processor.threshold = [0.5, 0.5]  # three labels
    with pytest.raises(ValueError, match=r"`threshold` .* one per label"):
        predictor(make_scene(1)["image"])


def test_several_processes_are_refused(predictor, scenes, monkeypatch):
    monkeypatch.setattr(tuning_module, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match=r"`tune_thresholds` needs .* got 2 processes"):
        tune_thresholds(predictor, scenes, progress=False)


def test_a_full_disk_is_named(predictor, scenes, monkeypatch):
    def fail(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="detr_panoptic_tuning_"):
        tune_thresholds(predictor, scenes, progress=False)
