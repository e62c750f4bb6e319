"""Each command calls its function with the options, prints the result and says where the files are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.commands import main


def run(*words) -> int:
    return main([str(word) for word in words])


class Called:
    """A function of the package that notes its arguments."""

    def __init__(self, monkeypatch, name, **attributes):
        monkeypatch.setattr(f"detr_panoptic.{name}", self)
        self.attributes = attributes

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        return type("Result", (), {"__str__": lambda _: "the result", **self.attributes})()


def test_the_demo_measures_and_draws(tmp_path, capsys):
    picture = tmp_path / "pictures" / "demo.png"
    assert run("demo", "--scenes", 3, "--output", picture) == 0
    shown = capsys.readouterr().out
    assert "PQ" in shown
    assert str(picture) in shown
    with Image.open(picture) as image:
        assert image.width > 3 * 2 * 256
        assert image.height > 3 * 2 * 256
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 1000


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--scenes", 0], "--scenes"), (["--seed", -1], "--seed"), (["--output", "folder"], "`--output`")],
)
def test_the_demo_refuses_by_name(words, named, capsys):
    assert run("demo", *words) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_an_evaluation_is_printed_and_saved(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--data", "scenes", "--limit", 2, "--average-precision", "box", "--batch-size", 2, "--threshold", 0.5]
    assert run("evaluate", "--model", BUNDLED, *words, "--output", out) == 0
    shown = capsys.readouterr().out
    assert "AP50" in shown
    assert str(out) in shown
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 2


def test_evaluation_options_and_images_that_could_not_be_read(monkeypatch, tmp_path, capsys):
    called = Called(monkeypatch, "evaluate", failures=["31.jpg"])
    words = ["--on-error", "skip", "--dtype", "bfloat16", "--threshold", 0.5, "--average-precision", "none"]
    words += ["--runtime", "openvino"]
    assert run("evaluate", "--model", "m", "--data", "d", "--output", tmp_path, *words, "--workers", 3) == 2
    assert called.arguments == ("m", "d")
    assert called.options == {
        "output": tmp_path,
        "threshold": 0.5,
        "average_precision": False,
        "on_error": "skip",
        "split": None,
        "data_format": None,
        "limit": None,
        "runtime": "openvino",
        "device": "auto",
        "dtype": "bfloat16",
        "batch_size": 1,
        "num_workers": 3,
    }
    assert "the result" in capsys.readouterr().out


def test_export_passes_every_option(monkeypatch, tmp_path):
    called = Called(monkeypatch, "export")
    words = ["--size", "64x96", "--quantize", "static", "--calibration", "a.jpg", "b.jpg", "--half", "--uint8"]
    assert run("export", "my_model", tmp_path, *words, "--mask-queries", 5) == 0
    assert called.options == {
        "format": "onnx",
        "size": "64x96",
        "dynamic": False,
        "batch_size": 1,
        "half": True,
        "mask_queries": 5,
        "uint8": True,
        "with_merging": False,
        "quantize": "static",
        "calibration": ["a.jpg", "b.jpg"],
    }


def test_int8_is_written_and_its_cost_printed(monkeypatch, tmp_path, capsys):
    called = Called(monkeypatch, "quantize")
    words = ["--data", "my_data", "--calibration", "photos", "--runtime", "onnxruntime", "--limit", 3]
    assert run("quantize", "my_model", tmp_path / "new", *words) == 0
    assert called.arguments == ("my_model", "my_data", tmp_path / "new")
    options = {"calibration": "photos", "runtime": "onnxruntime", "split": None, "data_format": None, "limit": 3}
    assert called.options == options
    assert "the result" in capsys.readouterr().out


def test_push_prepares_without_sending(model_folder, capsys):
    assert run("push", model_folder, "me/my-model", "--dry-run", "--license", "mit") == 0
    shown = capsys.readouterr().out
    assert "me/my-model" in shown
    assert "mit" in shown
    assert run("push", model_folder, "no name!", "--dry-run") == 2
    assert "no name!" in capsys.readouterr().err


def test_a_dataset_is_checked_and_converted(tmp_path, capsys):
    data, out = tmp_path / "my_data", tmp_path / "out"
    assert run("data", "convert", "scenes", data, "--limit", 3, "--seed", 5) == 0
    assert str(data) in capsys.readouterr().out
    (data / "images" / next((data / "images").iterdir()).name).write_bytes(b"broken")
    assert run("data", "check", data, "--report", tmp_path / "report") == 1
    assert str(tmp_path / "report") in capsys.readouterr().out
    assert run("data", "convert", data, out, "--to", "parquet") == 2
    assert not out.exists()
    assert run("data", "convert", data, out, "--to", "parquet", "--on-error", "skip") == 2
    assert "2 images" in capsys.readouterr().out
    assert out.is_dir()


def test_training_layers_recipe_file_and_options(monkeypatch, tmp_path):
    called = Called(monkeypatch, "train", is_finished=True, stop_signal=None)
    (tmp_path / "mine.yaml").write_text("recipe: masks\nepochs: 17\n")
    words = ["--config", tmp_path / "mine.yaml", "--data", "d", "--output", "o", "--batch-size", "auto", "--no-aids"]
    assert run("train", *words, "--learning-rate", "2e-4") == 0
    assert called.arguments == ("d",)
    assert called.options == {
        "recipe": None,
        "config": tmp_path / "mine.yaml",
        "dry_run": False,
        "overwrite": False,
        "output": "o",
        "batch_size": "auto",
        "aids": False,
        "learning_rate": 2e-4,
    }


def test_a_stopped_training_has_the_exit_code_of_its_signal(monkeypatch):
    Called(monkeypatch, "train", is_finished=False, stop_signal=15)
    assert run("train", "--data", "d", "--output", "o") == 143


def test_stuff_is_completed(monkeypatch, tmp_path, capsys):
    called = Called(monkeypatch, "complete_stuff", failures=[])
    words = ["--model", "m", "--things", "--threshold", 0.5, "--report", "r", "--split", "val", "--format", "rows"]
    assert run("data", "complete-stuff", "d", tmp_path / "out", *words) == 0
    assert called.options == {
        "model": "m",
        "with_things": True,
        "threshold": 0.5,
        "report": Path("r"),
        "on_error": "stop",
        "split": "val",
        "data_format": "rows",
        "limit": None,
        "device": "auto",
        "dtype": "float32",
        "batch_size": 1,
        "num_workers": None,
    }
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_the_page_gets_bytes_and_pixels(monkeypatch, capsys):
    given = {}

    class Page:
        local_url = "http://127.0.0.1:7861/"

        def block_thread(self): ...

    monkeypatch.setattr("detr_panoptic.app.launch", lambda *_, **options: given.update(options) or Page())
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert run("app", "--port", 7861, "--max-upload-mb", 0.5, "--max-pixels", 2, "--queue", 3) == 0
    assert given["max_file_size"] == 500_000
    assert given["max_pixels"] == 2_000_000
    assert given["max_queue"] == 3
    assert Page.local_url in capsys.readouterr().out


def test_without_gradio_the_page_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("detr_panoptic.commands.app.find_spec", lambda _: None)
    assert run("app") == 2
    assert "detr-panoptic[demo]" in capsys.readouterr().err


def test_the_bundled_checkpoint_fits_in_a_wheel():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 12 * 2**20


def test_tuning_is_printed_and_saved_with_the_model(monkeypatch, tmp_path, capsys):
    saved = []
    called = Called(monkeypatch, "tune_thresholds", failures=[], save=lambda _, folder: saved.append(folder))
    words = ["--data", "d", "--tune", "per-class", "--limit", 9]
    assert run("evaluate", "--model", tmp_path, *words) == 0
    assert called.arguments == (str(tmp_path), "d")
    assert called.options["per_class"] is True
    assert called.options["limit"] == 9
    assert run("evaluate", "--model", "OWNER/NAME", *words, "--output", tmp_path / "out") == 0
    assert saved == [str(tmp_path), tmp_path / "out"]
    assert "the result" in capsys.readouterr().out


def test_settings_go_to_the_output_if_the_model_has_a_processor_of_another_program(monkeypatch, tmp_path, capsys):
    def save(_, folder):
        if folder == str(tmp_path):
            raise ValueError("another program's")
        return folder

    Called(monkeypatch, "tune_thresholds", failures=[], save=save)
    words = ["--data", "d", "--tune", "common", "--output", tmp_path / "out"]
    assert run("evaluate", "--model", tmp_path, *words) == 0
    assert f"The settings are in {tmp_path / 'out'}" in capsys.readouterr().out


def test_labels_are_printed(monkeypatch, tmp_path, capsys):
    called = Called(monkeypatch, "label", failures=["31.jpg"])
    words = ["--stuff", "sky", "road", "--classes", "map.yaml", "--threshold", 0.7, "--report", tmp_path / "report"]
    assert run("data", "label", "photos", tmp_path / "out", "--teacher", "m", *words, "--on-error", "skip") == 2
    assert called.arguments == ("photos", tmp_path / "out")
    expected = {"teacher": "m", "stuff": ["sky", "road"], "classes": "map.yaml", "threshold": 0.7, "on_error": "skip"}
    assert expected.items() <= called.options.items()
    assert "the result" in capsys.readouterr().out


def test_a_split_is_printed(monkeypatch, tmp_path, capsys):
    called = Called(monkeypatch, "split_data")
    assert run("data", "split", "d", tmp_path / "out", "--validation-fraction", 0.3, "--seed", 4) == 0
    assert called.arguments == ("d", tmp_path / "out")
    assert called.options == {"fraction": 0.3, "seed": 4, "data_format": None}
    assert "the result" in capsys.readouterr().out
