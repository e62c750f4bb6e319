"""What SECURITY.md promises: no code of a file runs, no name leaves its folder."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import EpsImagePlugin
from PIL import Image as PILImage
from transformers import pipeline

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.commands import main
from detr_panoptic.data import read_panoptic, write_coco_panoptic_dataset
from detr_panoptic.data import rows as rows_module
from detr_panoptic.data.contained_paths import path_inside
from detr_panoptic.evaluation.files import evaluate_files
from detr_panoptic.scenes import make_scene
from detr_panoptic.scenes.dataset import SCENE_CATEGORIES
from tests.commands.bad_input.checkpoints import Hostile
from tests.commands.bad_input.images import EPS
from tests.conftest import photo
from tests.data_folders import coco_panoptic
from tests.training.runs import run

PACKAGE = Path(__file__).parents[2] / "src" / "detr_panoptic"
SHORT = {"limit": 2, "epochs": 1, "max_steps": 1}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, in which hostile files leave a mark."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------ code


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("short") / "run"
    run(output, **SHORT)
    return output


@pytest.mark.parametrize(
    "name",
    ["custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"],
)
def test_no_part_of_a_training_checkpoint_is_run(name, short_run, place):
    shutil.copytree(short_run, "run")
    (checkpoint,) = sorted(Path("run/checkpoints").glob("step_*"))[-1:]
    assert (checkpoint / name).is_file() or name == "scheduler.bin"
    (checkpoint / name).write_bytes(pickle.dumps(Hostile(), protocol=2))
    if name == "scheduler.bin":  # there is none in these runs: nobody may read one
        run(Path("run"), **SHORT)
    else:
        torch.save(Hostile(), checkpoint / name)
        with pytest.raises(ValueError, match="contains more than tensors and plain values"):
            run(Path("run"), **SHORT)
    assert not (place / "touched").exists()


def test_weights_of_a_backbone_are_not_run(place):
    torch.save({"a": Hostile()}, "backbone.pth")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        run(Path("run"), backbone_weights="backbone.pth")
    assert not (place / "touched").exists()


@pytest.fixture
def model_with_code(place, model_folder):
    """A model whose repository has code of its own, which leaves a mark as soon as it is imported."""
    folder = place / "model"
    shutil.copytree(model_folder, folder)
    for path in folder.glob("*.py"):
        path.write_text("from pathlib import Path\nPath('touched').touch()\n")
    (folder / "evil.py").write_text("from pathlib import Path\nPath('touched').touch()\nclass Evil: ...\n")
    for name in ("config.json", "preprocessor_config.json"):
        contents = json.loads((folder / name).read_text())
        classes = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoModelForImageSegmentation")
        contents["auto_map"] = dict.fromkeys(classes, "evil.Evil")
        if name == "config.json":
            contents["custom_pipelines"] = {"image-segmentation": {"impl": "evil.Evil", "pt": [], "type": "image"}}
        (folder / name).write_text(json.dumps(contents))
    return folder


def test_no_code_of_a_model_is_run(model_with_code, place):
    picture = photo((31, 23), seed=0)
    picture.save("photo.png")
    DetrPanopticForSegmentation.from_pretrained(model_with_code)
    DetrPanopticImageProcessor.from_pretrained(model_with_code)
    assert main(["predict", "photo.png", "--model", str(model_with_code), "--output", "out"]) == 0
    assert main(["explain", "photo.png", "--model", str(model_with_code), "--output", "out"]) == 0
    pipeline("image-segmentation", model=str(model_with_code))(picture)
    assert not (place / "touched").exists()


FORBIDDEN = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "np.load", "numpy.load"} | {
    "os.system", "os.popen", "marshal.loads", "shelve.open", "joblib.load", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_file_of_the_package_runs_what_it_reads():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"subprocess", "shelve", "marshal", "dill", "joblib"}, path
            elif isinstance(node, ast.Call):
                check_call(node, f"{path.name}:{node.lineno}")


def check_call(node, where):
    name, options = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
    assert name not in FORBIDDEN, f"{where} calls {name}"
    assert "trust_remote_code" not in options, f"{where} decides about trust"
    if name == "torch.load":
        assert getattr(options.get("weights_only"), "value", False) is True, where
    if name == "yaml.load":
        assert dotted(options["Loader"]) == "_PlainLoader", where


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Pillow leaves the file open
def test_postscript_in_a_dataset_starts_no_ghostscript(place, model_folder, monkeypatch):
    data = coco_panoptic(place / "my_data")
    (data / "images" / "31.jpg").write_bytes(EPS.replace(b"10 10", b"7 5"))  # the size of its map
    program = place / "gs"
    program.write_text(f"#!/bin/sh\ntouch {place}/touched\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    predict = ["predict", "--model", str(model_folder), "--output", "predictions"]
    Dataset.from_dict({"image": [{"bytes": EPS, "path": None}]}).cast_column("image", Image()).to_parquet(
        "rows.parquet"
    )
    for words, code in (
        (["data", "convert", "my_data", "out"], 2),
        (["data", "check", "my_data"], 1),
        ([*predict, "my_data/images/31.jpg"], 2),
        ([*predict, "--data", "my_data/images"], 2),
        ([*predict, "--data", "rows.parquet"], 2),
    ):
        monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for anew
        assert main(words) == code
        assert not (place / "touched").exists(), words
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with (
        EpsImagePlugin.EpsImageFile(data / "images" / "31.jpg") as picture,
        pytest.raises(OSError, match=r"\.ppm|identify"),
    ):
        picture.load()
    assert (place / "touched").exists()  # what Pillow does by itself


# ------ names


@pytest.mark.parametrize(
    "name", ["../a.png", "b/../../a.png", "/a.png", "C:\\a.png", "\\a.png", "..\\a.png", "", ".", "a\0"]
)
def test_names_stay_in_their_folder(name, tmp_path):
    with pytest.raises(ValueError, match="where: expected a file name inside"):
        path_inside(tmp_path, name, "where")


def test_links_stay_in_their_folder(tmp_path):
    folder, secret = tmp_path / "images", tmp_path / "secret.png"
    (folder / "deep").mkdir(parents=True)
    for path in (secret, folder / "inside.png"):
        path.touch()
    (folder / "near.png").symlink_to("inside.png")
    (folder / "far.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "deep" / "far.png").symlink_to("../../secret.png")
    assert path_inside(folder, "near.png", "where") == folder / "near.png"
    for name in ("far.png", "up/secret.png", "deep/far.png"):
        with pytest.raises(ValueError, match="where: expected a file inside"):
            path_inside(folder, name, "where")


def test_links_that_are_common_are_followed(tmp_path):
    """A folder on another disk, and the Hub's cache, where every file is a link to a blob."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    (tmp_path / "images").symlink_to("disk")
    assert path_inside(tmp_path / "images", "a.png", "where").is_file()
    repository = tmp_path / "datasets--someone--data"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "4f").touch()
    images = repository / "snapshots" / "1" / "images"
    images.mkdir(parents=True)
    (images / "a.png").symlink_to("../../../blobs/4f")
    assert path_inside(images, "a.png", "where").is_file()
    (images / "b.png").symlink_to(tmp_path / "disk" / "a.png")
    with pytest.raises(ValueError, match="expected a file inside"):
        path_inside(images, "b.png", "where")


@pytest.mark.parametrize("name", ["../a.jpg", "/tmp/a.jpg", "x/../../a.jpg"])
def test_no_name_of_a_record_leads_what_is_written_out_of_the_folder(name, place):
    record = {**make_scene(1, height=64, width=64), "file_name": name}
    with pytest.raises(ValueError, match="expected a file name inside"):
        write_coco_panoptic_dataset(place / "deep" / "out", [record], SCENE_CATEGORIES)
    assert [path for path in place.rglob("*") if path.is_file()] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves a file open
@pytest.mark.parametrize("to", ["files", "coco", "parquet"])
def test_predictions_of_a_dataset_stay_in_their_folder(to, place, model_folder):
    scenes = [{**make_scene(seed, height=64, width=64), "file_name": f"../../{seed}.png"} for seed in (1, 2)]
    from detr_panoptic.data.writing import write_parquet

    write_parquet(place / "my_data", scenes, SCENE_CATEGORIES)
    before = {path for path in place.rglob("*") if path.is_file()}
    words = ["predict", "--data", "my_data", "--model", str(model_folder), "--output", "a/b/c/out", "--to", to]
    assert main(words) == 0
    written = {path for path in place.rglob("*") if path.is_file()} - before
    assert written
    assert all(path.is_relative_to(place / "a" / "b" / "c" / "out") for path in written)


def test_predictions_that_are_evaluated_stay_in_their_folder(place):
    data = coco_panoptic(place / "my_data")
    contents = json.loads((data / "panoptic.json").read_text())
    contents["annotations"][0]["file_name"] = "../images/31.jpg"
    (data / "predicted.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"predicted\.json: expected a file name inside"):
        evaluate_files(data / "panoptic.json", data / "predicted.json", data / "panoptic", data / "panoptic")


def test_pictures_of_rows_may_lie_beside_them_and_in_the_cache(place, monkeypatch):
    """What `datasets` has fetched and unpacked is a path, too."""
    PILImage.new("RGB", (4, 3), "red").save("a.png")
    segments = [[{"id": 255, "category_id": 7}]]
    columns = {"image": [str(place / "a.png")], "label": [str(place / "a.png")], "segments_info": segments}
    data = Dataset.from_dict(columns).cast_column("image", Image()).cast_column("label", Image())
    Path("rows").mkdir()
    data.to_parquet("rows/rows.parquet")
    Path("rows/categories.json").write_text('[{"id": 7, "name": "boat", "isthing": 1}]')
    with pytest.raises(ValueError, match=r"inside, got in `image` the path .*a\.png"):
        read_panoptic("rows")
    monkeypatch.setattr(rows_module, "CACHES", (place,))
    assert len(read_panoptic("rows").records) == 1
    assert Features(data.features)  # pictures, not texts
