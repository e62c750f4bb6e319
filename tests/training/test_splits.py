"""Without validation data, a part of the images is held out; numbers of training images are called that."""

import json
import logging

import pytest

from detr_panoptic.data import write_coco_panoptic_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from detr_panoptic.training.data import LEAST_TO_SPLIT, read_data
from detr_panoptic.training.settings import DataSettings
from tests.training.runs import SIDE, metrics_of, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    write_coco_panoptic_dataset(folder, scenes_dataset(LEAST_TO_SPLIT, height=SIDE, width=SIDE), SCENE_CATEGORIES)
    return folder


def names(records):
    return list(records.with_format(None)["file_name"])


def test_images_are_held_out_from_twenty_on(folder):
    data = read_data(DataSettings(data=str(folder)), 0)
    assert len(data.validation) == 3
    assert set(names(data.train)).isdisjoint(names(data.validation))
    assert not data.is_measured_on_training
    assert data.describe()["validation"] == "3 images, held out of data, see split.json"
    other = read_data(DataSettings(data=str(folder)), 1)
    assert names(other.validation) != names(data.validation)
    for settings in (
        DataSettings(data=str(folder), limit=LEAST_TO_SPLIT - 1),
        DataSettings(data=str(folder), validation_fraction=0),
        DataSettings(data=str(folder), validation_data=str(folder)),
    ):
        data = read_data(settings, 0)
        assert len(data.train) == (settings.limit or LEAST_TO_SPLIT)
        assert data.held_out is None


def test_the_choice_is_written_and_numbers_of_training_images_say_so(folder, tmp_path, caplog):
    settings = {"data": str(folder), "limit": None, "max_steps": 1, "epochs": 1, "evaluate_training": 1}
    with caplog.at_level(logging.INFO, "detr_panoptic"):
        result = run(tmp_path / "held", validation_fraction=0.1, **settings)
    choice = json.loads((tmp_path / "held" / "split.json").read_text())
    assert (len(choice["training"]), len(choice["validation"])) == (18, 2)
    assert "training PQ" not in str(result)
    assert "  pq 0" in caplog.text
    card = (tmp_path / "held" / "README.md").read_text()
    assert "training images**" not in card
    choice["validation"].append("another.png")
    (tmp_path / "held" / "split.json").write_text(json.dumps(choice))
    with pytest.raises(ValueError, match=r"`data` has changed since .*split\.json"):
        run(tmp_path / "held", validation_fraction=0.1, **settings)

    caplog.clear()
    few = settings | {"limit": 2}
    with caplog.at_level(logging.INFO, "detr_panoptic"):
        result = run(tmp_path / "few", **few)
    assert "training PQ" in str(result)
    assert str(result).count("training") == 3
    (line,) = [record.getMessage() for record in caplog.records if " pq " in record.getMessage()]
    numbers = [word for word in line.split("  ")[2:] if not word.startswith("training_")]
    assert numbers
    assert all(word.startswith("training ") for word in numbers)
    assert "pq" in metrics_of(tmp_path / "few")[-1]
    assert "on **training images** of data, 2 images" in (tmp_path / "few" / "README.md").read_text()
