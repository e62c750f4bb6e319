"""What is wrong beside the model is named before the model is loaded: here there is no model to load."""

import re
from importlib.util import find_spec

import pytest

from detr_panoptic import complete_stuff, convert_checkpoint, evaluate, explain, export, label, tune_thresholds
from detr_panoptic.inference import Predictor
from tests.commands.bad_input.place import Place
from tests.conftest import photo
from tests.data_folders import coco_panoptic

NO_MODEL = ("--model", "no_model")
PREDICT = ("predict", "photo.png", *NO_MODEL)
EVALUATE = ("evaluate", "--data", "my_data", *NO_MODEL)
EXPLAIN = ("explain", "photo.png", *NO_MODEL)
COMPLETE = ("data", "complete-stuff", "my_data", "out", *NO_MODEL)
EXPORT = ("export", "no_model")
TRAIN = ("train", "--data", "my_data", *NO_MODEL)
NEEDS_ONNX = pytest.mark.skipif(not find_spec("onnx"), reason="onnx is not installed")

COMMANDS = [
    *(((*words, "--threshold", "1.5"), "`threshold` .* got 1.5") for words in (PREDICT, EVALUATE, EXPLAIN, COMPLETE)),
    *(((*words, "--threshold", "abc"), "--threshold.*abc") for words in (PREDICT, EVALUATE, EXPLAIN, COMPLETE)),
    *(((*words, "--batch-size", "0"), "`batch_size` .* got 0") for words in (PREDICT, EVALUATE, COMPLETE)),
    *(((*words, "--workers", "-1"), "`num_workers` .* got -1") for words in (PREDICT, EVALUATE, COMPLETE)),
    *(((*words, "--output", "file"), "`output` .*'.*file'") for words in (PREDICT, EVALUATE, EXPLAIN, TRAIN)),
    *(
        ((*words, "--output", "file/x"), "`output` .*file' in the way of .*file/x")
        for words in (PREDICT, EVALUATE, TRAIN)
    ),
    ((*COMPLETE, "--report", "file"), "`report` .*file"),
    ((*PREDICT, "--tile", "0"), "`tile` .* got 0"),
    ((*PREDICT, "--overlap", "64"), "`overlap` has no meaning without `tile`, got 64"),
    (("predict", "clip.mp4", *NO_MODEL, "--every", "0"), "`every` .* got 0"),
    ((*PREDICT, "--every", "2"), "`--every` is for videos"),
    ((*PREDICT, "--limit", "0"), "`limit` .* got 0"),
    ((*PREDICT, "--split", "val"), "`split` .*'val'"),
    ((*PREDICT, "--task", "semantic", "--threshold", "0.5"), "`threshold` has no meaning"),
    (("predict", "empty", *NO_MODEL), "no images in empty"),
    (("predict", "gone.jpg", *NO_MODEL, "--on-error", "stop"), "gone.jpg"),
    (("predict", "--data", "my_data", "--split", "tset", *NO_MODEL), "'tset'"),
    ((*EVALUATE, "--split", "tset"), "'tset'"),
    ((*EVALUATE, "--tune", "common", "--threshold", "0.5"), "`--threshold` has no meaning with `--tune`"),
    ((*EVALUATE, "--tune", "common", "--average-precision", "none"), "`--average-precision` has no meaning with"),
    *(
        (("predict", "clip.mp4", *NO_MODEL, *words), f"`{words[0]}` is for images, and clip.mp4 is a video")
        for words in (
            ("--tile", "256"),
            ("--overlap", "64"),
            ("--on-error", "stop"),
            ("--to", "coco"),
            ("--limit", "3"),
            ("--batch-size", "2"),
            ("--split", "val"),
            ("--format", "rows"),
            ("--workers", "2"),
        )
    ),
    (("data", "convert", "scenes", "out", "--stuff", "sky", "--limit", "1"), "`stuff` .* do not apply"),
    (("data", "label", "my_data", "out", "--teacher", "o/n", "--dtype", "int8"), "`dtype` must be float32, .* 'int8'"),
    ((*COMPLETE, "--dtype", "int8"), "`dtype` must be float32, .* 'int8'"),
    (("explain", "gone.jpg", *NO_MODEL), "gone.jpg"),
    ((*EXPLAIN, "--query", "-1"), "`queries` .* got -1"),
    ((*EXPLAIN, "--segments", "0"), "`segments` .* got 0"),
    ((*EXPLAIN, "--layer", "0"), "--layer"),
    ((*EXPORT, "file"), "`output` .*file"),
    ((*EXPORT, "model.onnx"), "`output` must be a folder.*'model.onnx'"),
    ((*EXPORT, "out", "--mask-queries", "0"), "`mask_queries` .* got 0"),
    pytest.param((*EXPORT, "out", "--quantize", "static", "--calibration", "gone"), "gone", marks=NEEDS_ONNX),
    ((*TRAIN, "--output", "my_data"), "`output` must not be the folder of the data"),
    ((*TRAIN, "--output", "trained"), "`output` trained holds a run with other settings: .*`epochs` .*, not 7"),
    ((*TRAIN, "--output", "run", "--split", "tset"), "'tset'"),
    ((*TRAIN, "--output", "run", "--tracker", "nope"), "`tracker` .*'nope'"),
    (("app", *NO_MODEL, "--port", "99999"), "`port` .* got 99999"),
    (("app", *NO_MODEL, "--max-pixels", "0"), "--max-pixels"),
    (("demo", "--output", "demo.xyz"), "--output.*'demo.xyz'"),
    (("data", "check", "my_data", "--report", "file"), "`report` .*file"),
    (("data", "check", "my_data", "--queries", "0"), "`num_queries` must be a whole number of at least 1, got 0"),
]


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco_panoptic(tmp_path / "my_data")
    photo((31, 23), seed=0).save("photo.png")
    for name in ("empty", "trained"):
        (tmp_path / name).mkdir()
    (tmp_path / "trained" / "training.yaml").write_text("epochs: 7\n")
    (tmp_path / "file").write_text("a file")
    return Place(tmp_path, model_folder)


@pytest.mark.parametrize(("words", "message"), COMMANDS, ids=str)
def test_a_command_names_what_is_wrong_beside_the_model(words, message, place):
    line = place.program(*words)
    assert re.search(message, line), line


BAD_OPTIONS = ({"threshold": 2}, {"threshold": "0.5"}, {"batch_size": 0}, {"num_workers": -1}, {"on_error": "ignore"})
CALLS = [
    *((evaluate, ("my_data",), options) for options in (*BAD_OPTIONS, {"average_precision": "boxes"})),
    *((complete_stuff, ("my_data", "out"), options) for options in BAD_OPTIONS),
    *((label, ("my_data", "out"), options) for options in (*BAD_OPTIONS, {"report": "file"})),
    *((tune_thresholds, ("my_data",), options) for options in (*BAD_OPTIONS[2:], {"thresholds": (2,)})),
    *((explain, ("photo.png",), options) for options in ({"threshold": 2}, {"task": "semantic"}, {"queries": [-1]})),
    *((export, ("out",), options) for options in ({"format": "tflite"}, {"quantize": "int4"}, {"size": "64"})),
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("function", "arguments", "options"), CALLS, ids=str)
def test_a_function_names_what_is_wrong_beside_the_model(function, arguments, options):
    places = {complete_stuff: {"model": "no_model"}, label: {"teacher": "no_model"}}.get(function, {})
    leading = arguments if places else ("no_model", *arguments)
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        function(*leading, **places, **options)


def test_options_of_loading_are_not_ignored(model_folder):
    predictor = Predictor.from_pretrained(model_folder, device="cpu")
    assert Predictor.of(predictor) is predictor
    assert Predictor.of(predictor, device="cpu", dtype="float32") is predictor
    for name, value in (("dtype", "bfloat16"), ("device", "meta")):
        with pytest.raises(ValueError, match=f"`{name}` is for models that are loaded"):
            Predictor.of(predictor, **{name: value})


@pytest.mark.parametrize("name", ["", "/below"])
def test_a_checkpoint_is_not_converted_to_a_file(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`output` must be a folder, got .*file"):
        convert_checkpoint("no_model", f"{tmp_path}/file{name}")


def test_a_folder_that_is_closed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OSError, match=r"`output` .*out cannot be written"):
        evaluate("no_model", "scenes", output=tmp_path / "out")
