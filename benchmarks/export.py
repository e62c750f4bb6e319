r"""Measures exported models: time of R50 in PyTorch, ONNX Runtime and OpenVINO, and PQ of int8 on scenes.

    python benchmarks/export.py write --folder exported --sizes 800x1066 480x640    # the graphs, once; minutes
    python benchmarks/export.py time --folder exported --sizes 800x1066 480x640
    python benchmarks/export.py quality --folder exported --scenes 300              # the bundled checkpoint

`time` checks that the outputs agree and then runs all of them in turns in one process.
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
from PIL import Image
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
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor, evaluate, export
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticData
from detr_panoptic.inference import load
from detr_panoptic.mask_head import SKIPPED_MASK_LOGIT
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset

MASKS = 20  # per image, of R50's 100 queries
TOLERANCE = 1e-4
UNSEEN_SEED = 77_000_000  # not a seed of the training scenes
PAUSE = 1.0  # seconds: each library has threads of its own, which wait for more work at full speed
NAMES = ("logits", "pred_boxes", "pred_masks")
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def main() -> None:
    """Runs one part."""
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
    """Writes R50 for each size, in float32 and with int8 convolutions."""
    model = r50()
    processor = DetrPanopticImageProcessor.for_model(model.config)
    noise = arguments.folder / "noise.png"  # int8 takes the same time for all images
    Image.effect_noise((640, 480), 90).convert("RGB").save(noise)
    for size in arguments.sizes:
        start = time.perf_counter()
        for name, settings in (("float32", {}), ("int8", {"quantize": "static", "calibration": noise})):
            folder = arguments.folder / f"r50_{size[0]}x{size[1]}" / name
            print(export((model, processor), folder, size=size, mask_queries=MASKS, **settings))
        print(f"{time.perf_counter() - start:.0f} s")


def compare_times(arguments: argparse.Namespace) -> None:
    """Prints a table per size."""
    model = r50()
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__}"
    print(describe_run("cpu") + versions)
    for size in arguments.sizes:
        print(f"### 1 x {size[0]}x{size[1]}, {MASKS} masks\n")
        print(times_of(model, arguments.folder / f"r50_{size[0]}x{size[1]}", size, arguments))


def times_of(
    model: DetrPanopticForSegmentation, folder: Path, size: tuple[int, int], arguments: argparse.Namespace
) -> str:
    """Returns a table with a row for each contestant."""
    file, int8 = (folder / name / "model.onnx" for name in ("float32", "int8"))
    images = random_images(1, size)
    arrays = {name: value.numpy() for name, value in images.items()}
    small = copy.deepcopy(model).to(torch.bfloat16)
    half_images = images | {"pixel_values": images["pixel_values"].to(torch.bfloat16)}
    contestants: dict[str, Callable[[], Any]] = {
        "PyTorch": partial(run_torch, model, images),
        "PyTorch, bfloat16": partial(run_torch, small, half_images),
        "ONNX Runtime": partial(run_onnxruntime(file), arrays),
        "ONNX Runtime, int8 convolutions": partial(run_onnxruntime(int8), arrays),
        "OpenVINO": partial(run_openvino(file, "f32"), arrays),
        "OpenVINO, bfloat16": partial(run_openvino(file, "bf16"), arrays),
        "OpenVINO, int8 convolutions": partial(run_openvino(int8, "f32"), arrays),
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
    """Returns the largest difference of logits, boxes and the masks that both have; rounding may select others."""
    # Half of the value, since bfloat16 rounds it.
    made = (output[2].max((-2, -1)) > SKIPPED_MASK_LOGIT / 2) & (expected[2].max((-2, -1)) > SKIPPED_MASK_LOGIT / 2)
    pairs = [*zip(output[:2], expected[:2], strict=True), (output[2][made], expected[2][made])]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def compare_quality(arguments: argparse.Namespace) -> None:
    """Prints the PQ of the bundled checkpoint on unseen scenes, in PyTorch and exported."""
    model, processor = load(BUNDLED, device="cpu")
    count = min(MASKS, model.config.num_queries)
    kinds: dict[str, dict[str, Any]] = {
        "float32": {},
        "dynamic": {"quantize": "dynamic"},
        "static": {"quantize": "static", "calibration": "scenes"},
    }
    files = {
        kind: export((model, processor), arguments.folder / f"scenes_{kind}", mask_queries=count, **settings).file
        for kind, settings in kinds.items()
    }
    fitted = DetrPanopticImageProcessor.from_pretrained(arguments.folder / "scenes_float32")
    runs: dict[str, tuple[Run, Path | None]] = {
        f"PyTorch, {count} masks": (partial(run_torch_arrays, model, count), None),
        "ONNX Runtime": (run_onnxruntime(files["float32"]), files["float32"]),
        "ONNX Runtime, dynamic int8": (run_onnxruntime(files["dynamic"]), files["dynamic"]),
        "ONNX Runtime, static int8": (run_onnxruntime(files["static"]), files["static"]),
        "OpenVINO": (run_openvino(files["float32"], "f32"), files["float32"]),
        "OpenVINO, bfloat16": (run_openvino(files["float32"], "bf16"), files["float32"]),
        "OpenVINO, static int8": (run_openvino(files["static"], "f32"), files["static"]),
    }
    contestants = [("PyTorch, every kept query", model, None)]
    contestants += [(name, Exported(run, model.config), file) for name, (run, file) in runs.items()]
    scenes = PanopticData(scenes_dataset(arguments.scenes, seed=UNSEEN_SEED), SCENE_CATEGORIES)
    print(describe_run("cpu") + f"{arguments.scenes} scenes of 256x256\n")
    rows = [quality_row(name, contestant, file, fitted, scenes) for name, contestant, file in contestants]
    print(markdown_table(["", "PQ", "things", "stuff", "MB"], rows))


def quality_row(
    name: str, model: Any, file: Path | None, processor: DetrPanopticImageProcessor, scenes: PanopticData
) -> list[str]:
    """Returns the PQ of one contestant, in percent, and the size of its file."""
    quality = evaluate((model, processor), scenes, average_precision=False, progress=False)
    values = [f"{100 * value:.2f}" for value in (quality.pq, quality.things.pq, quality.stuff.pq)]
    return [name, *values, "" if file is None else f"{file.stat().st_size / 1e6:.1f}"]


class Exported(nn.Module):
    """An exported graph in place of a model.

    Args:
        run: takes the graph's inputs by name and returns its three outputs.
        config: of the model.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, run: Run, config: Any) -> None:
        super().__init__()
        self.run, self.config = run, config

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, **_: Any) -> ModelOutput:
        """Returns the outputs that post-processing reads."""
        outputs = self.run({"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()})
        named = {name: torch.from_numpy(np.array(value)) for name, value in zip(NAMES, outputs, strict=True)}
        sizes = torch.stack((pixel_mask.sum(1).amax(1), pixel_mask.sum(2).amax(1)), dim=-1)
        canvas = torch.tensor(pixel_mask.shape[1:]).expand(len(pixel_mask), 2)
        return ModelOutput(**named, image_sizes=sizes, canvas_sizes=canvas)


def run_torch(model: nn.Module, images: dict[str, Tensor]) -> list[np.ndarray]:
    """Returns the outputs of a model."""
    output = model(**images, mask_queries=MASKS)
    return [output[name].float().numpy() for name in NAMES]


def run_torch_arrays(model: nn.Module, count: int, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the same for arrays, with as many masks as a graph computes."""
    output = model(**{name: torch.from_numpy(x) for name, x in arrays.items()}, mask_queries=count)
    return [output[name].numpy() for name in NAMES]


def run_onnxruntime(file: Path) -> Run:
    """Opens a session with as many threads as PyTorch uses."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)


def run_openvino(file: Path, precision: str) -> Run:
    """Compiles a graph for float32 or bfloat16, with as many threads as PyTorch uses."""
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()

    def run(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = request.infer(arrays)
        return [results[output] for output in compiled.outputs]

    return run


def r50() -> DetrPanopticForSegmentation:
    """Returns R50 with random weights, the same every time."""
    return our_model(transformers_model()).eval()


if __name__ == "__main__":
    main()
