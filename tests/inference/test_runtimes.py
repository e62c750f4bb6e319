"""Other runtimes than PyTorch: the same predictions, one cache for all processes, and errors that name the choice."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from detr_panoptic import Predictor, quantize
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import read_panoptic
from detr_panoptic.inference import load, predictor
from detr_panoptic.runtimes import GraphRuntime, cache, choice
from detr_panoptic.runtimes.sessions import OpenVinoSession
from tests.conftest import photo

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(not choice.find_spec(name), reason=f"{name} is not installed"))
    for name in choice.SESSIONS
]
SIZES = [(71, 53), (97, 64), (60, 97), (64, 31)]  # odd at every stride, and with padding in a batch
# What a user does who replaces a predictor and then presses Ctrl-C.
SIGNALED = """
import gc, signal, sys
from detr_panoptic import Predictor

older, newer = (Predictor.from_pretrained(sys.argv[1], runtime="openvino") for _ in range(2))
del older
gc.collect()
del newer
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, model_folder):
    """A cache with the graphs of the tiny model, which take many seconds to write."""
    folder = tmp_path_factory.mktemp("assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(folder))
        model = Predictor.from_pretrained(model_folder, runtime="torch", device="cpu").model
        with cache.prepared(cache.key_of(model), lambda files: choice.write_graphs(model, files)):
            pass
    return folder


@pytest.fixture
def own_home(home, tmp_path, monkeypatch):
    """A copy of that cache."""
    shutil.copytree(home, tmp_path / "assets")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def expected(model_folder):
    return Predictor.from_pretrained(model_folder, runtime="torch", device="cpu")


def photos():
    return [photo(size, seed=seed) for seed, size in enumerate(SIZES)]


@torch.no_grad()
def run(predictor, inputs, mask_queries=None):
    return (predictor.network or predictor.model)(**inputs, mask_queries=mask_queries)


def assert_same(found, wanted):
    assert len(found.segments) == len(wanted.segments) > 0
    assert (found.segmentation != wanted.segmentation).mean() < 0.002
    for one, other in zip(found.segments, wanted.segments, strict=True):
        assert one.label_id == other.label_id
        assert one.score == pytest.approx(other.score, abs=1e-3)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("own_home")
def test_predictions_are_those_of_torch(model_folder, expected, runtime):
    predictor = Predictor.from_pretrained(model_folder, runtime=runtime, device="cpu")
    assert (predictor.runtime, predictor.dtype) == (runtime, "float32")
    for task in ("panoptic", "instance", "semantic"):
        for found, wanted in zip(predictor(photos(), task=task), expected(photos(), task=task), strict=True):
            if task == "semantic":
                assert (found.segmentation != wanted.segmentation).mean() < 0.002
            elif wanted.segments:
                assert_same(found, wanted)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("mask_queries", [None, 3, "all"])
@pytest.mark.usefixtures("own_home")
def test_outputs_of_a_padded_batch_are_those_of_torch(model_folder, expected, runtime, mask_queries):
    predictor = Predictor.from_pretrained(model_folder, runtime=runtime)
    inputs = predictor.processor(photos(), return_tensors="pt")
    found, wanted = (run(each, inputs, mask_queries) for each in (predictor, expected))
    for name in ("logits", "pred_boxes", "pred_masks"):
        # This model's masks and logits are hundreds of times as large as usual.
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5 if name == "pred_boxes" else 5e-3, rtol=1e-3)
    assert torch.equal(found.image_sizes, wanted.image_sizes)
    assert torch.equal(found.canvas_sizes, wanted.canvas_sizes)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("own_home")
def test_a_tiny_image_runs_too(model_folder, expected, runtime):
    predictor = Predictor.from_pretrained(model_folder, runtime=runtime)
    sliver = {"pixel_values": torch.randn(1, 3, 20, 50)}
    with torch.no_grad():  # the graphs are traced for longer sides: the model itself runs
        assert torch.equal(run(predictor, sliver).logits, expected.model(**sliver).logits)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("own_home")
def test_threads_share_a_predictor(model_folder, runtime):
    predictor = Predictor.from_pretrained(model_folder, runtime=runtime)
    pictures = photos()
    alone = [predictor(picture).segmentation for picture in pictures]
    equal: list[bool] = []

    def repeat(index):
        found = [predictor(pictures[index]).segmentation for _ in range(5)]
        equal.extend(np.array_equal(segmentation, alone[index]) for segmentation in found)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 5 * len(pictures)


@pytest.mark.usefixtures("own_home")
def test_the_compiled_graph_is_used_again(model_folder, monkeypatch):
    openvino = pytest.importorskip("openvino")
    first = Predictor.from_pretrained(model_folder, runtime="openvino")
    monkeypatch.setattr(openvino.Core, "compile_model", None)
    second = Predictor.from_pretrained(model_folder, runtime="openvino")
    assert np.array_equal(first(photos()[0]).segmentation, second(photos()[0]).segmentation)


def test_signals_arrive_after_predictors_are_gone(model_folder, own_home):
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNALED, model_folder]
    environment = os.environ | {"HF_ASSETS_CACHE": str(own_home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr[-2000:]


@pytest.mark.usefixtures("own_home")
def test_changed_weights_get_graphs_of_their_own(expected):
    assert cache.prepared_key(expected.model)
    with torch.no_grad():
        expected.model.class_head.bias[0] += 1e-3
    assert cache.prepared_key(expected.model) is None


@pytest.mark.usefixtures("empty_home")
def test_graphs_are_written_once_by_all_who_need_them():
    written, folders = [], []

    def write(folder):
        written.append(folder)
        time.sleep(0.1)  # until the others are there
        (folder / "graph").write_text("graph")

    def use():
        with cache.prepared("key", write) as folder:
            folders.append((folder / "graph").read_text())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(written), folders) == (1, ["graph"] * 4)


@pytest.mark.usefixtures("empty_home")
def test_an_interrupted_write_leaves_nothing():
    def fail(folder):
        (folder / "graph").write_text("half a gra")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.prepared("key", fail):
        pass
    assert not (cache.cache_home() / "key").exists()


@pytest.mark.usefixtures("empty_home")
def test_the_cache_keeps_the_models_that_were_used_last():
    written: list = []
    for number in range(cache.KEPT + 2):
        for key in (str(number), "0"):
            with cache.prepared(key, written.append):
                time.sleep(0.01)  # longer than the resolution of the file system's clock
    newest = map(str, range(3, cache.KEPT + 2))
    assert {path.name for path in cache.cache_home().iterdir() if path.is_dir()} == {"0", *newest}
    assert len(written) == cache.KEPT + 2  # each once, "0" too


@pytest.mark.usefixtures("empty_home")
def test_auto_is_torch_until_openvino_has_run(home, model_folder, monkeypatch, caplog):
    pytest.importorskip("openvino")
    assert Predictor.from_pretrained(model_folder, device="cpu").runtime == "torch"
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home))
    with caplog.at_level(logging.INFO, "detr_panoptic"):
        assert Predictor.from_pretrained(model_folder, device="cpu").runtime == "openvino"
    assert "running on openvino" in caplog.text


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_auto_reads_a_model_once(model_folder, dtype, monkeypatch):
    pytest.importorskip("openvino")
    # Other processors than this one compute in bfloat16.
    monkeypatch.setattr(OpenVinoSession, "find_device", staticmethod(lambda _device, _dtype: "CPU"))
    loads = []
    monkeypatch.setattr(predictor, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    found = Predictor.from_pretrained(model_folder, device="cpu", dtype=dtype)
    assert (found.runtime, found.dtype, len(loads)) == ("torch", dtype or "float32", 1)
    expected = load(model_folder, device="cpu", dtype=dtype)[0]
    for name, tensor in expected.state_dict().items():
        assert tensor.dtype == found.model.state_dict()[name].dtype
        assert torch.equal(tensor, found.model.state_dict()[name])


@pytest.mark.usefixtures("own_home")
def test_results_that_differ_are_refused(model_folder, monkeypatch, caplog):
    pytest.importorskip("openvino")
    monkeypatch.setattr(GraphRuntime, "difference", lambda _: float("nan"))
    with pytest.raises(ValueError, match="other results than PyTorch"):
        Predictor.from_pretrained(model_folder, runtime="openvino")
    assert Predictor.from_pretrained(model_folder, device="cpu").runtime == "torch"
    assert "other results than PyTorch" in caplog.text


@pytest.mark.usefixtures("own_home")
def test_auto_falls_back_where_the_cache_is_broken(model_folder, caplog):
    pytest.importorskip("openvino")
    for file in cache.cache_home().rglob("*"):
        if file.is_file() and file.suffix != ".lock":
            file.write_bytes(b"broken")
    assert Predictor.from_pretrained(model_folder, device="cpu").runtime == "torch"
    assert "running on torch" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tensorrt"}, "`runtime` must be auto, torch, openvino or onnxruntime, got 'tensorrt'"),
        ({"runtime": "openvino", "device": "tpu"}, "`device` must be auto or cpu.*got 'tpu'"),
        ({"runtime": "onnxruntime", "device": "cuda"}, "`device` must be auto or cpu.*got 'cuda'"),
        ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "`dtype` must be float32 or int8"),
        ({"runtime": "openvino", "dtype": "int4"}, "`dtype` must be float32.*on this CPU, got 'int4'"),
        ({"runtime": "openvino", "compile": "cudagraph"}, "`compile` is for"),
        ({"runtime": "torch", "dtype": "int8"}, '`dtype` "int8" needs `runtime="openvino"`'),
        ({"runtime": "openvino", "dtype": "int8"}, '`dtype` "int8" needs a folder that `quantize` wrote'),
    ],
)
@pytest.mark.usefixtures("empty_home")
def test_wrong_choices_are_named(model_folder, options, message):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=message):
        Predictor.from_pretrained(model_folder, **options)


def test_a_runtime_that_is_not_installed_names_the_extra(model_folder, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"openvino.*pip install 'detr-panoptic\[export\]'"):
        Predictor.from_pretrained(model_folder, runtime="openvino")


@pytest.mark.usefixtures("own_home")
def test_int8_says_what_it_costs(model_folder, expected, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(photos()):
        picture.save(tmp_path / "photos" / f"{number}.png")
    # What the model itself predicts is the truth, so that its quality is 1.
    expected.predict(tmp_path / "photos", tmp_path / "truth", to="parquet", progress=False)
    folder = tmp_path / "int8"
    result = quantize(model_folder, read_panoptic(tmp_path / "truth"), folder, calibration=tmp_path / "photos")
    assert result.before.pq > 0.97
    assert f"{100 * result.after.pq:.2f} on 4 images with openvino" in str(result)
    for runtime in choice.SESSIONS:
        predictor = Predictor.from_pretrained(folder, runtime=runtime, dtype="int8")
        assert predictor.dtype == "int8"
        inputs = predictor.processor(photos()[:1], return_tensors="pt")
        found, wanted = (run(each, inputs).logits for each in (predictor, expected))
        assert 1e-3 < (found - wanted).abs().mean() / wanted.std() < 0.5  # large weights make it much
    assert Predictor.from_pretrained(folder, device="cpu", dtype="int8").runtime == "openvino"
    with torch.no_grad():
        predictor.model.class_head.bias[0] += 1
    predictor.model.save_pretrained(folder)
    with pytest.raises(ValueError, match="has other weights than `quantize` found"):
        Predictor.from_pretrained(folder, runtime="onnxruntime", dtype="int8")


@pytest.mark.slow  # the tiny model's graphs have the same operations
@pytest.mark.promise
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("empty_home")
def test_photographs_look_the_same(coco_folder, runtime):
    files = sorted((coco_folder / "images").iterdir())[:4]
    expected = Predictor.from_pretrained(BUNDLED, runtime="torch", device="cpu")(files)
    predictor = Predictor.from_pretrained(BUNDLED, runtime=runtime)
    for found, wanted in zip(predictor(files), expected, strict=True):
        assert (found.segmentation != wanted.segmentation).mean() < 1e-4
        assert [s.label_id for s in found.segments] == [s.label_id for s in wanted.segments]
