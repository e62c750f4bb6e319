r"""Exported models: time of R50 in PyTorch, ONNX Runtime and OpenVINO, and what int8 costs in PQ on scenes.

    python benchmarks/export.py write --folder exported --sizes 800x1066 480x640    # the graphs, once; minutes
    python benchmarks/export.py time --folder exported --sizes 800x1066 480x640
    python benchmarks/export.py quality --folder exported --scenes 300              # the model that ships

`time` runs all of them in one process, in turns, after checking that their outputs agree.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from cases import (
    describe_run,
    markdown_table,
    median_and_range,
    our_model,
    parser,
    random_images,
    time_in_turns,
    transformers_model,
)
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.commands.demo import UNSEEN_SEED, load_shipped_model
from detr_panoptic.commands.export import CALIBRATION_IMAGES, SCENE_SEED
from detr_panoptic.commands.sources import SCENE_SIDE
from detr_panoptic.evaluation import evaluate_model
from detr_panoptic.evaluation.panoptic_quality import panoptic_quality
from detr_panoptic.export import (
    GraphOptions,
    for_canvas,
    graph_inputs,
    quantize_dynamic,
    quantize_static,
    trace,
    write_onnx,
)
from detr_panoptic.mask_head import SKIPPED_MASK_LOGIT
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset

MASKS = 20  # per image, of R50's 100 queries
TOLERANCE = 1e-4
PAUSE = 1.0  # seconds: each library has threads of its own, which wait for more work at full speed
NAMES = ("logits", "pred_boxes", "pred_masks")
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def main() -> None:
    """Runs a part."""
    arguments = parser(str(__doc__).partition("\n")[0], size="480x640")
    arguments.add_argument("part", choices=("write", "time", "quality"))
    arguments.add_argument("--folder", type=Path, required=True, help="where the graphs are")
    arguments.add_argument("--scenes", type=int, default=300, help="scenes to measure PQ on")
    arguments.add_argument("--compile", action="store_true", help="time the compiled model as well")
    options = arguments.parse_args()
    torch.set_grad_enabled(False)
    options.folder.mkdir(parents=True, exist_ok=True)
    {"write": write, "time": compare_times, "quality": compare_quality}[options.part](options)


def write(arguments: argparse.Namespace) -> None:
    """R50 for each size; in int8 by the ranges of random images, whose time is that of any."""
    model, processor, options = r50()
    for size in arguments.sizes:
        file = graph_file(arguments.folder, size)
        start = time.perf_counter()
        program = trace(model, processor, options, canvas=size)
        write_onnx(program, file, options, labels=model.config.id2label)
        images = random_images(1, size)
        quantize_static(file, file.with_suffix(".int8.onnx"), [{name: x.numpy() for name, x in images.items()}])
        print(f"{file}: {file.stat().st_size / 1e6:.0f} MB, {time.perf_counter() - start:.0f} s")


def compare_times(arguments: argparse.Namespace) -> None:
    """Prints a table per size."""
    model, _, _ = r50()
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__}"
    print(describe_run("cpu") + versions)
    for size in arguments.sizes:
        print(f"### 1 x {size[0]}x{size[1]}, {MASKS} masks\n")
        print(times_of(model, graph_file(arguments.folder, size), size, arguments))


def times_of(
    model: DetrPanopticForSegmentation, file: Path, size: tuple[int, int], arguments: argparse.Namespace
) -> str:
    """A row for each contestant."""
    images = random_images(1, size)
    arrays = {name: value.numpy() for name, value in images.items()}
    small = copy.deepcopy(model).to(torch.bfloat16)
    half_images = images | {"pixel_values": images["pixel_values"].to(torch.bfloat16)}
    contestants: dict[str, Callable[[], Any]] = {
        "PyTorch": partial(run_torch, model, images),
        "PyTorch, bfloat16": partial(run_torch, small, half_images),
        "ONNX Runtime": partial(run_onnxruntime(file), arrays),
        "ONNX Runtime, int8 convolutions": partial(run_onnxruntime(file.with_suffix(".int8.onnx")), arrays),
        "OpenVINO": partial(run_openvino(file, "f32"), arrays),
        "OpenVINO, bfloat16": partial(run_openvino(file, "bf16"), arrays),
        "OpenVINO, int8 convolutions": partial(run_openvino(file.with_suffix(".int8.onnx"), "f32"), arrays),
    }
    if arguments.compile:
        contestants["PyTorch, compiled"] = partial(run_torch, torch.compile(model), images)
    expected = contestants["PyTorch"]()
    differences = {name: difference(run(), expected) for name, run in contestants.items()}
    for name, value in differences.items():
        if value > TOLERANCE and "," not in name:
            raise ValueError(f"{name} differs by {value}.")
    times = time_in_turns(contestants, arguments.repeats, "cpu", pause=PAUSE)
    first = statistics.median(times["PyTorch"])
    rows = [
        [name, median_and_range(values), f"{first / statistics.median(values):.2f}", f"{differences[name]:.1e}"]
        for name, values in times.items()
    ]
    return markdown_table(["", "seconds: median (range)", "times as fast as PyTorch", "difference"], rows)


def difference(output: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest of logits, boxes, and masks that both have: rounding may choose another one at the border."""
    # Half of it: bfloat16 rounds that number.
    made = (output[2].max((-2, -1)) > SKIPPED_MASK_LOGIT / 2) & (expected[2].max((-2, -1)) > SKIPPED_MASK_LOGIT / 2)
    pairs = [*zip(output[:2], expected[:2], strict=True), (output[2][made], expected[2][made])]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def compare_quality(arguments: argparse.Namespace) -> None:
    """Prints PQ on unseen scenes of the model that ships: PyTorch's, and as exported."""
    model, processor = load_shipped_model()
    side = processor.size["shortest_edge"]
    options = GraphOptions(mask_queries=min(MASKS, model.config.num_queries))
    fitted = for_canvas(processor, (side, side))
    file = arguments.folder / f"scenes_{side}.onnx"
    program = trace(model, processor, options, canvas=(side, side))
    write_onnx(program, file, options, labels=model.config.id2label)
    dynamic, static = file.with_suffix(".dynamic.onnx"), file.with_suffix(".static.onnx")
    quantize_dynamic(file, dynamic)
    pictures = scenes_dataset(CALIBRATION_IMAGES, seed=SCENE_SEED, height=SCENE_SIDE, width=SCENE_SIDE)["image"]
    quantize_static(file, static, (graph_inputs([picture], fitted, options) for picture in pictures))
    contestants: dict[str, tuple[nn.Module, Path | None]] = {
        "PyTorch, every kept query": (model, None),
        f"PyTorch, {options.mask_queries} masks": (Exported(partial(run_torch_arrays, model, options)), None),
        "ONNX Runtime": (Exported(run_onnxruntime(file)), file),
        "ONNX Runtime, dynamic int8": (Exported(run_onnxruntime(dynamic)), dynamic),
        "ONNX Runtime, static int8": (Exported(run_onnxruntime(static)), static),
        "OpenVINO": (Exported(run_openvino(file, "f32")), file),
        "OpenVINO, bfloat16": (Exported(run_openvino(file, "bf16")), file),
        "OpenVINO, static int8": (Exported(run_openvino(static, "f32")), static),
    }
    scenes = scenes_dataset(arguments.scenes, seed=UNSEEN_SEED, height=SCENE_SIDE, width=SCENE_SIDE)
    print(describe_run("cpu") + f"{len(scenes)} scenes of {SCENE_SIDE}x{SCENE_SIDE}, {side}x{side} for the model\n")
    rows = [quality_row(name, run, source, fitted, scenes) for name, (run, source) in contestants.items()]
    print(markdown_table(["", "PQ", "things", "stuff", "MB"], rows))


def quality_row(
    name: str, model: Any, source: Path | None, processor: DetrPanopticImageProcessor, scenes: Any
) -> list[str]:
    """PQ of one contestant, in percent, and the size of its file."""
    stats = evaluate_model(model, processor, scenes, SCENE_CATEGORIES, batch_size=1)
    quality = panoptic_quality(stats, category_ids=SCENE_CATEGORIES.category_ids, is_thing=SCENE_CATEGORIES.is_thing)
    values = [f"{100 * quality[group]['pq']:.2f}" for group in ("All", "Things", "Stuff")]
    return [name, *values, "" if source is None else f"{source.stat().st_size / 1e6:.1f}"]


class Exported(nn.Module):
    """A graph in place of the model, for what runs models.

    Args:
        run: takes the graph's inputs by name and returns its three outputs.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, **_: Any) -> ModelOutput:
        """What post-processing reads of the model's output."""
        outputs = self.run({"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()})
        named = {name: torch.from_numpy(np.array(value)) for name, value in zip(NAMES, outputs, strict=True)}
        sizes = torch.stack((pixel_mask.sum(1).amax(1), pixel_mask.sum(2).amax(1)), dim=-1)
        canvas = torch.tensor(pixel_mask.shape[1:]).expand(len(pixel_mask), 2)
        return ModelOutput(**named, image_sizes=sizes, canvas_sizes=canvas)


def run_torch(model: nn.Module, images: dict[str, Tensor]) -> list[np.ndarray]:
    """Outputs of a model."""
    output = model(**images, mask_queries=MASKS)
    return [output[name].float().numpy() for name in NAMES]


def run_torch_arrays(model: nn.Module, options: GraphOptions, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The same from arrays, with as many masks as a graph makes."""
    output = model(**{name: torch.from_numpy(x) for name, x in arrays.items()}, mask_queries=options.mask_queries)
    return [output[name].numpy() for name in NAMES]


def run_onnxruntime(file: Path) -> Run:
    """A session on as many threads as PyTorch has."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)


def run_openvino(file: Path, precision: str) -> Run:
    """A compiled model that computes in float32 or may take bfloat16, on as many threads as PyTorch has."""
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()

    def run(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = request.infer(arrays)
        return [results[output] for output in compiled.outputs]

    return run


def r50() -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor, GraphOptions]:
    """R50 with random weights, the same every time."""
    model = our_model(transformers_model()).eval()
    return model, DetrPanopticImageProcessor.for_model(model.config), GraphOptions(mask_queries=MASKS)


def graph_file(folder: Path, size: tuple[int, int]) -> Path:
    """Where R50 for a size is."""
    return folder / f"r50_{size[0]}x{size[1]}.onnx"


if __name__ == "__main__":
    main()
