"""`detr-panoptic predict`: what it writes, what it says, and its exit codes."""

import json

import av
import pytest
from PIL import Image

from detr_panoptic.commands import main
from tests.conftest import photo


@pytest.fixture(autouse=True)
def photos(tmp_path):
    paths = [tmp_path / "in" / f"{i}.png" for i in range(3)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        photo((71 + i, 53), seed=i).save(path)
    return paths


def run(*words) -> int:
    return main([str(word) for word in words])


def test_files_of_a_folder_and_where_they_are(tmp_path, model_folder, capsys):
    out = tmp_path / "out"
    assert run("predict", tmp_path / "in", "--model", model_folder, "--output", out, "--batch-size", 2) == 0
    assert sorted(path.name for path in out.glob("[!.]*.json")) == ["0.json", "1.json", "2.json"]
    content = json.loads((out / "1.json").read_text())
    assert (content["width"], content["height"]) == (72, 53)
    shown = capsys.readouterr()
    assert str(out) in shown.out
    assert f"{len(content['segments_info'])} segments" in shown.out
    assert str(model_folder) in shown.err  # loading says that it loads


def test_options_reach_the_predictor(tmp_path, model_folder, photos):
    out = tmp_path / "out"
    words = ["--task", "semantic", "--to", "coco", "--dtype", "bfloat16", "--workers", 0]
    assert run("predict", *photos[:2], "--model", model_folder, "--output", out, *words) == 0
    content = json.loads((out / "panoptic.json").read_text())
    assert len(content["annotations"]) == 2
    assert all(segment["score"] is None for a in content["annotations"] for segment in a["segments_info"])


def test_a_dataset_takes_split_and_limit(tmp_path, model_folder):
    out = tmp_path / "out"
    assert run("predict", "--data", "scenes", "--limit", 2, "--model", model_folder, "--output", out) == 0
    assert len(list(out.glob("[!.]*.json"))) == 2


def test_an_unreadable_image_is_reported_and_the_others_are_done(tmp_path, model_folder, photos, capsys):
    photos[1].write_bytes(photos[1].read_bytes()[:90])
    words = ["--model", model_folder, "--output", tmp_path / "out"]
    assert run("predict", tmp_path / "in", tmp_path / "gone.jpg", *words) == 2
    error = capsys.readouterr().err
    assert "1.png" in error
    assert "gone.jpg" in error
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*.json")) == ["0.json", "2.json"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "`--data`"),
        (["{photo}", "--data", "scenes"], "`--data`"),
        (["{photo}", "--threshold", "2"], "`threshold`"),
        (["{photo}", "--batch-size", "0"], "`batch_size`"),
        (["{photo}", "--device", "abacus"], "abacus"),
        (["{photo}", "--model", "no/such/model"], "no/such/model"),
        (["{photo}", "--output", "{photo}"], "`output`"),
        (["{folder}/empty"], "empty"),
    ],
)
def test_a_mistake_is_exit_code_2_and_names_the_argument(tmp_path, model_folder, photos, capsys, words, named):
    (tmp_path / "empty").mkdir()
    words = [word.format(photo=photos[0], folder=tmp_path) for word in words]
    model = [] if "--model" in words else ["--model", model_folder]
    output = [] if "--output" in words else ["--output", tmp_path / "out"]
    assert run("predict", *words, *model, *output) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("detr-panoptic: error: ")
    assert named in last


def test_tiles_open_images_that_are_too_large_otherwise(tmp_path, model_folder, photos, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = ["predict", photos[0], "--model", model_folder, "--output", tmp_path / "out"]
    assert run(*words) == 2
    assert "exceeds limit" in capsys.readouterr().err
    assert run(*words, "--tile", 32, "--overlap", 33) == 2
    assert "`overlap`" in capsys.readouterr().err
    words[-1] = tmp_path / "tiled"
    assert run(*words, "--tile", 40, "--overlap", 8) == 0
    assert (tmp_path / "tiled" / "0.png").is_file()


def test_videos_and_images_are_told_apart(tmp_path, model_folder, photos, capsys):
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(photo((64, 48), seed=1))))
        container.mux(stream.encode())
    assert run("predict", clip, photos[0], "--model", model_folder, "--output", out, "--every", 2) == 0
    assert "2 frames" in capsys.readouterr().out
    assert {path.name for path in out.glob("[!.]*")} == {"0.json", "0.png", "0_overlay.png", "clip", "clip.mp4"}
    assert len(list((out / "clip").glob("*.json"))) == 2
    assert run("predict", clip, "--model", model_folder, "--output", out) == 2
    assert "clip.mp4" in capsys.readouterr().err
