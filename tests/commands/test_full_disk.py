"""A disk that fills up: one line that names what could not be written, and a run that goes on once there is room."""

import re

import pytest

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.commands import main
from detr_panoptic.data import write_coco_panoptic_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene, scenes_dataset
from tests.fault_injection import fill, small_disk
from tests.inference.test_video import write_clip

MODEL = ("--model", str(BUNDLED), "--runtime", "torch")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    scenes = scenes_dataset(3, height=96, width=128)
    write_coco_panoptic_dataset(folder / "my_data", scenes, SCENE_CATEGORIES)
    write_clip(folder / "clip.mp4", [make_scene(seed, height=96, width=128)["image"] for seed in range(8)])
    return folder


@pytest.fixture
def disk(place, monkeypatch):
    monkeypatch.chdir(place)
    with small_disk(place / "disk", "1m") as folder:
        yield folder
    folder.rmdir()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "my_data/images", *MODEL, "--output", "disk/out"),
        ("predict", "clip.mp4", *MODEL, "--output", "disk/out"),
        ("evaluate", "--data", "my_data", *MODEL, "--output", "disk/out", "--average-precision", "none"),
        ("data", "convert", "my_data", "disk/out"),
        ("data", "convert", "my_data", "disk/out", "--to", "parquet"),
        ("data", "split", "my_data", "disk/out", "--validation-fraction", "0.4"),
        ("data", "label", "my_data/images", "disk/out", "--teacher", str(BUNDLED)),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_full_disk_is_named(disk, words, capsys):
    fill(disk, leave=24_000)
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"detr-panoptic: error: .*disk/out\S*: .*No space left on device", last), last


def test_a_run_goes_on_once_there_is_room(disk, capsys):
    words = ("predict", "my_data/images", *MODEL, "--output", "disk/out")
    filler = fill(disk, leave=60_000)
    assert main(words) == 2
    filler.unlink()
    before = {path: path.stat().st_mtime_ns for path in (disk / "out").glob("[!.]*.json")}
    assert main(words) == 0
    assert f"3 images, {len(before)} of them from earlier runs" in capsys.readouterr().out
    assert 0 < len(before) < 3
    assert before == {path: path.stat().st_mtime_ns for path in before}
