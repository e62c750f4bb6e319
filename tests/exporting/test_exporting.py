"""Exported graphs against the model in PyTorch, in the runtimes that read them."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import Conv2dSame
from torch import nn
from torch.export import Dim

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.exporting import GraphOptions, export, graph_inputs
from detr_panoptic.exporting.graph import CANVAS_STEP, PREDICTIONS, ExportGraph, missing_pixels
from detr_panoptic.exporting.inputs import calibration_batches, calibration_pictures, fitted_to_canvas
from detr_panoptic.exporting.merging import merge_batch
from detr_panoptic.exporting.writing import trace, write_onnx
from detr_panoptic.panoptic_merging import ImageSizes
from detr_panoptic.runtimes.onnx_files import quantize_file
from detr_panoptic.runtimes.same_padding import pad_in_whole_numbers
from tests.conftest import build_tiny
from tests.merging import merge_paper

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

QUERIES, MASKS, THRESHOLD = 11, 7, 0.3
CANVAS = (65, 97)  # every stage of the mask head meets an odd length
ANY_SIZE = [(2, 65, 97), (1, 64, 96), (3, 83, 71), (1, 33, 38)]


@pytest.fixture(scope="module")
def model() -> DetrPanopticForSegmentation:
    """A model whose queries disagree, so that images get several segments."""
    model = build_tiny(
        num_queries=QUERIES, encoder_layers=1, decoder_layers=1, threshold=THRESHOLD, stuff_label_ids=[1, 2]
    )
    with torch.no_grad():
        model.model.query_embeddings.weight.mul_(30)
        model.class_head.weight.mul_(8)
        model.mask_head.predictor.weight.mul_(4)
        states = model.eval().model(*batch(2, *CANVAS)).last_hidden_state
        # Centered, so that the queries choose different classes.
        model.class_head.bias.copy_(-model.class_head.weight @ states.mean((0, 1)))
    return model


@pytest.fixture(scope="module")
def processor(model) -> DetrPanopticImageProcessor:
    return DetrPanopticImageProcessor.for_model(model.config)


def batch(count: int, height: int, width: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, the first as large as the canvas and each further one smaller by some pixels."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, height, width, dtype=torch.int64)
    for i in range(count):
        mask[i, : height - 5 * i, : width - 7 * i] = 1
    return torch.randn(count, 3, height, width, generator=generator) * mask[:, None], mask


def padded(images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """On the canvas that a graph of any size pads to."""
    margins = [side for length in mask.shape[:0:-1] for side in (0, -length % CANVAS_STEP)]
    return torch.nn.functional.pad(images, margins), torch.nn.functional.pad(mask, margins)


def predictions(model, images, mask) -> list[np.ndarray]:
    with torch.no_grad():
        output = model(images, mask, mask_queries=MASKS)
    return [output[name].float().numpy() for name in PREDICTIONS]


def assert_close(outputs, expected, *, tolerance: float = 1e-4) -> None:
    for value, wanted in zip(outputs, expected, strict=True):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def program(model, processor):
    """Traces each kind of graph once, which takes seconds."""
    traced = {}

    def program(options):
        if options not in traced:
            traced[options] = trace(model, processor, options)
        return traced[options]

    return program


@pytest.fixture(scope="module")
def write(tmp_path_factory, model, program):
    """Writes an ONNX file, each kind once."""
    written = {}

    def write(**settings):
        options = GraphOptions(mask_queries=MASKS, **settings)
        if options not in written:
            file = tmp_path_factory.mktemp("onnx") / "model.onnx"
            write_onnx(program(options), file, options, labels=model.config.id2label)
            written[options] = file
        return written[options]

    return write


def run_onnxruntime(file, *arrays):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def run_openvino(file, *arrays):
    settings: Any = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    results = compiled(list(arrays))
    return [np.array(results[output]) for output in compiled.outputs]


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_a_graph_of_one_size_equals_the_model(model, write, run):
    images, mask = batch(1, *CANVAS)
    mask[:, -9:], mask[:, :, -11:] = 0, 0
    outputs = run(write(size=CANVAS), images.numpy(), mask.numpy())
    assert_close(outputs, predictions(model, images, mask))


@pytest.mark.slow  # the exported program has the same graph
@pytest.mark.promise
@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
@pytest.mark.parametrize("shape", ANY_SIZE, ids=str)
def test_a_graph_of_any_size_equals_the_model_on_the_padded_canvas(model, write, run, shape):
    images, mask = batch(*shape)
    logits, boxes, masks = predictions(model, *padded(images, mask))
    masks = masks[..., : -(-shape[1] // 4), : -(-shape[2] // 4)]
    assert_close(run(write(dynamic=True), images.numpy(), mask.numpy()), (logits, boxes, masks))


def test_an_exported_program_of_any_size_equals_the_model(tmp_path, model, program):
    file = tmp_path / "model.pt2"
    torch.export.save(program(GraphOptions(mask_queries=MASKS, dynamic=True)), file)
    run = torch.export.load(file).module()
    for shape in ANY_SIZE:
        images, mask = batch(*shape)
        logits, boxes, masks = predictions(model, *padded(images, mask))
        masks = masks[..., : -(-shape[1] // 4), : -(-shape[2] // 4)]
        assert_close([value.detach().numpy() for value in run(images, mask)], (logits, boxes, masks))


@pytest.mark.slow  # the C++ compiler takes a minute or more
@pytest.mark.promise
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_package_equals_the_model(tmp_path, model, processor):
    exported = export((model, processor), tmp_path, format="aotinductor", size=CANVAS, mask_queries=MASKS)
    images, mask = batch(1, *CANVAS)
    outputs = torch._inductor.aoti_load_package(str(exported.file))(images, mask)
    assert_close([value.numpy() for value in outputs], predictions(model, images, mask), tolerance=2e-5)


def test_a_compiled_package_needs_a_compiler(tmp_path, model, processor, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"needs a C\+\+ compiler"):
        export((model, processor), tmp_path / "out", format="aotinductor", size=CANVAS)
    assert not (tmp_path / "out").exists()


def test_nothing_is_folded_at_run_time(write):
    """What the backbone and the mask head do to their weights is done: convolutions read constants."""
    graph = onnx.load(write(size=CANVAS)).graph
    constants = {value.name for value in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert {node.op_type for node in convolutions} == {"Conv", "ConvTranspose"}
    for node in convolutions:
        assert set(node.input[1:]) <= constants, node.name
    assert not {"Sqrt", "Pad"} & {node.op_type for node in graph.node}


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (2, 3, 1), (1, 2, 1)])
def test_tensorflow_s_padding_is_the_same_in_whole_numbers(kernel, stride, dilation):
    expected = nn.Sequential(Conv2dSame(3, 5, kernel, stride=stride, dilation=dilation))
    found = copy.deepcopy(expected)
    pad_in_whole_numbers(found)
    for height, width in ((7, 11), (8, 13), (9, 16)):
        image = torch.randn(2, 3, height, width)
        assert torch.equal(found(image), expected(image))


def test_tensorflow_s_padding_is_a_constant_of_a_graph_of_any_size():
    """Otherwise shapes nest, and the bundled EfficientNet cannot be exported in reasonable time."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.Sequential(*(Conv2dSame(3, 3, kernel, stride=2) for kernel in (3, 5, 3)))

        def forward(self, images):
            margins = [side for length in images.shape[:1:-1] for side in (0, missing_pixels(length))]
            return self.stages(nn.functional.pad(images, margins))

    stages = Stages()
    pad_in_whole_numbers(stages)
    free = {2: Dim("height", min=33, max=999), 3: Dim("width", min=33, max=999)}
    program = torch.export.export(stages, (torch.zeros(1, 3, 65, 97),), dynamic_shapes=(free,))
    paddings = [node.args[1] for node in program.graph.nodes if "pad" in str(node.target)]
    assert len(paddings) == 4
    assert paddings[1:] == [[0, 1, 0, 1], [1, 2, 1, 2], [0, 1, 0, 1]]


@pytest.mark.slow  # the other graphs test the same code in float32
def test_half_precision_computes_in_float16_and_takes_float32(model, write):
    file = write(size=CANVAS, half=True)
    graph = onnx.load(file).graph
    large = [value.data_type for value in graph.initializer if np.prod(value.dims) > 1000]
    assert set(large) == {onnx.TensorProto.FLOAT16}
    images, mask = batch(1, *CANVAS)
    outputs = run_onnxruntime(file, images.numpy(), mask.numpy())
    expected = predictions(model, images, mask)
    for value, wanted in zip(outputs[:2], expected[:2], strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted, atol=0.02 * np.abs(wanted).max())


def test_pictures_are_normalized_inside_as_the_processor_does_it(model, processor):
    pictures = [np.random.default_rng(i).integers(256, size=(65 - 5 * i, 97, 3), dtype=np.uint8) for i in range(2)]
    fitted = fitted_to_canvas(processor, CANVAS)
    graphs = [
        ExportGraph(model, fitted, GraphOptions(size=CANVAS, mask_queries=MASKS, uint8=uint8))
        for uint8 in (False, True)
    ]
    outputs = []
    for graph in graphs:
        inputs = graph_inputs(pictures, fitted, graph.options)
        assert list(inputs) == list(graph.options.input_names)
        with torch.no_grad():
            outputs.append([value.numpy() for value in graph(*map(torch.from_numpy, inputs.values()))])
    assert inputs["pixels"].dtype == np.uint8
    assert inputs["pixels"].shape == (2, *CANVAS, 3)
    assert not inputs["pixel_mask"].all()
    assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("seed", range(5))
def test_merging_in_the_graph_equals_the_paper_s(seed):
    """Tiny segments, stuff that fuses, padding, and an image where nothing is kept, in one batch."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = 13, 67, 101
    masks = torch.nn.functional.interpolate(torch.randn(3, count, 5, 7, generator=generator), (17, 26), mode="bicubic")
    masks = masks + torch.randn(3, count, 1, 1, generator=generator) * 0.7
    masks[1] = torch.randn(count, 17, 26, generator=generator) * 3  # specks, of which some fall away
    logits = torch.randn(3, count, 5, generator=generator) * 4
    logits[2, :, -1] = 30
    _, mask = batch(3, height, width)
    merged = merge_batch(logits, masks, mask, threshold=THRESHOLD, stuff_label_ids=[1, 3])
    for i in range(3):
        size = (height - 5 * i, width - 7 * i)
        expected = merge_paper(
            logits[i], masks[i], ImageSizes(size, (height, width), size), threshold=THRESHOLD, stuff_label_ids=[1, 3]
        )
        info = expected["segments_info"]
        assert bool(info) == (i != 2)
        assert torch.equal(merged.segmentation[i, : size[0], : size[1]], expected["segmentation"])
        assert not merged.segmentation[i][mask[i] == 0].any()
        for table, key, empty in zip(merged[1:], ("label_id", "score", "area"), (-1, 0, 0), strict=True):
            values = [segment[key] for segment in info] + [empty] * (count - len(info))
            torch.testing.assert_close(table[i].double(), torch.tensor(values).double(), atol=1e-6, rtol=0)


@pytest.mark.slow  # the merging has a test of its own
@pytest.mark.promise
@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_a_merging_graph_equals_post_processing(model, processor, write, run):
    segments = 0
    for seed in range(3):
        images, mask = batch(1, *CANVAS, seed=seed)
        segmentation, labels, _, areas = run(write(size=CANVAS, with_merging=True), images.numpy(), mask.numpy())
        with torch.no_grad():
            output = model(images, mask, mask_queries=MASKS)
        (expected,) = processor.post_process_panoptic_segmentation(output)
        info = expected["segments_info"]
        segments += len(info)
        wrong = segmentation[0] != expected["segmentation"].numpy()
        assert wrong.mean() < 1e-3  # pixels at a border, where two masks are equal to rounding
        assert labels[0].tolist() == [segment["label_id"] for segment in info] + [-1] * (MASKS - len(info))
        assert np.abs(areas[0, : len(info)] - [segment["area"] for segment in info]).sum() <= 2 * wrong.sum()
    assert segments > 3


@pytest.mark.parametrize(("kind", "axes"), [("dynamic", 2), ("static", 4)])  # of weights: of linear layers, of Conv
def test_an_int8_graph_is_close(tmp_path, model, write, kind, axes):
    target = tmp_path / "int8.onnx"
    images, mask = batch(1, *CANVAS)
    quantize_file(write(size=CANVAS), target, kind, [{"pixel_values": images.numpy(), "pixel_mask": mask.numpy()}])
    assert list(tmp_path.iterdir()) == [target]
    weights = [value for value in onnx.load(target).graph.initializer if np.prod(value.dims) > 1000]
    assert {len(value.dims) for value in weights if value.data_type == onnx.TensorProto.INT8} == {axes}
    logits, _, _ = run_onnxruntime(target, images.numpy(), mask.numpy())
    expected, _, _ = predictions(model, images, mask)
    difference = np.abs(logits - expected).max()
    assert 0 < difference < 0.2 * np.abs(expected).max()


def test_a_model_is_not_exported_into_its_own_folder(tmp_path, model, processor):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`output` must be another folder than the model's"):
        export(tmp_path, tmp_path, format="torch", size="65x97")


@pytest.mark.parametrize("size", [{"height": 64, "width": 64}, {"shortest_edge": 64, "longest_edge": 64}])
def test_the_one_size_of_a_processor_is_that_of_the_graph(model, processor, size):
    fixed = DetrPanopticImageProcessor.from_dict(processor.to_dict() | {"size": size})
    assert GraphOptions().resolved(model, fixed).size == (64, 64)


def test_a_short_side_alone_is_no_size(model, processor):
    many = DetrPanopticImageProcessor.from_dict(processor.to_dict() | {"size": {"shortest_edge": 64}})
    with pytest.raises(ValueError, match="makes many sizes"):
        GraphOptions().resolved(model, many)


def test_export_writes_a_folder_that_says_how_to_use_the_graph(tmp_path, model, processor):
    exported = export((model, processor), tmp_path, format="torch", size="65x97", uint8=True, mask_queries=MASKS)
    assert "65x97" in str(exported)
    names = ["config.json", "model.pt2", "preprocessor_config.json"]
    assert sorted(path.name for path in exported.folder.iterdir()) == names
    fitted = DetrPanopticImageProcessor.from_pretrained(tmp_path)
    for size in ((50, 20), (20, 50), (300, 200)):
        inputs = fitted(np.zeros((*size, 3), dtype=np.uint8), return_tensors="pt")
        assert tuple(inputs["pixel_values"].shape) == (1, 3, *CANVAS)
        shown = inputs["pixel_mask"].sum(1).max(), inputs["pixel_mask"].sum(2).max()
        assert shown[0] == CANVAS[0] or shown[1] == CANVAS[1]
    picture = np.random.default_rng(0).integers(256, size=(200, 300, 3), dtype=np.uint8)
    arrays = graph_inputs([picture], fitted, exported.options).values()
    logits, _, masks = torch.export.load(exported.file).module()(*map(torch.from_numpy, arrays))
    assert logits.shape == (1, QUERIES, 4)
    assert masks.shape == (1, QUERIES, 17, 25)


@pytest.mark.slow  # its parts have tests of their own
def test_export_writes_int8_onnx_with_the_names_of_the_labels(tmp_path, model, processor):
    settings: Any = {"size": CANVAS, "quantize": "static", "calibration": "scenes", "mask_queries": MASKS}
    exported = export((model, processor), tmp_path, **settings)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "config.json",
        "model.onnx",
        "preprocessor_config.json",
    ]
    written = {entry.key: entry.value for entry in onnx.load(exported.file).metadata_props}
    assert json.loads(written["id2label"]) == json.loads((tmp_path / "config.json").read_text())["id2label"]


def test_calibration_reads_a_folder_in_whole_batches(tmp_path, processor):
    for i in range(5):
        Image.new("L", (7 + i, 5)).save(tmp_path / f"{i}.png")
    options = GraphOptions(size=CANVAS, batch_size=2)
    pictures = calibration_pictures(tmp_path, options)
    batches = list(calibration_batches(pictures, fitted_to_canvas(processor, CANVAS), options))
    assert [batch["pixel_values"].shape for batch in batches] == [(2, 3, *CANVAS)] * 2
    with pytest.raises(ValueError, match="at least 6"):
        calibration_pictures(tmp_path, GraphOptions(size=CANVAS, batch_size=6))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"dynamic": True, "size": (64, 64)}, "leave out"),
        ({"size": "64"}, "HEIGHTxWIDTH"),
        ({"size": "0x64"}, "positive"),
        ({}, "`size`"),
        ({"size": (64, 64), "mask_queries": 12}, "from 1 to 11"),
        ({"size": (64, 64), "batch_size": 0}, "at least 1"),
        ({"size": (64, 64), "quantize": "static"}, "`calibration`"),
        ({"size": (64, 64), "calibration": "scenes"}, "`calibration`"),
        ({"size": (64, 64), "quantize": "dynamic", "half": True}, "float32"),
        ({"size": (64, 64), "quantize": "dynamic", "format": "torch"}, "onnx"),
        ({"size": (64, 64), "format": "tflite"}, "tflite"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, model, processor, settings, part):
    with pytest.raises(ValueError, match=part):
        export((model, processor), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
