"""`quantize`: a model in int8 for OpenVINO and ONNX Runtime, and what that costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from ..data.files import check_new_folder, whole_folder
from ..evaluation.model_evaluation import evaluate
from ..inference import Predictor
from ..runtimes.choice import SESSIONS, WRITERS, check_installed, write_int8
from ..scenes.source import read_source
from .graph import GraphOptions
from .inputs import calibration_pictures

if TYPE_CHECKING:
    from ..data import PanopticData
    from ..evaluation.results import Evaluation


@dataclass(frozen=True)
class QuantizedModel:
    """A model in int8, and its panoptic quality beside that in float32.

    Args:
        folder: for `Predictor.from_pretrained(folder, runtime=..., dtype="int8")`.
        runtime: in which both were measured.
        calibrated: number of images that showed the value ranges.
        before: in float32.
        after: in int8.
    """

    folder: Path
    runtime: str
    calibrated: int
    before: Evaluation
    after: Evaluation

    @property
    def cost(self) -> float:
        """The panoptic quality that int8 loses, in [-1, 1]."""
        return self.before.pq - self.after.pq

    def __str__(self) -> str:
        """Returns the cost in words."""
        measured = f"PQ {100 * self.after.pq:.2f} on {self.after.images} images with {self.runtime}"
        change = f"{100 * abs(self.cost):.2f} points {'less' if self.cost >= 0 else 'more'} than in float32"
        return f"{self.folder}: int8, calibrated on {self.calibrated} images\n{measured}, {change}"


def quantize(
    model: Any,
    source: str | Path | PanopticData,
    output: str | Path,
    *,
    calibration: Any = None,
    runtime: str = "openvino",
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
) -> QuantizedModel:
    """Writes a model with graphs in int8 for OpenVINO and ONNX Runtime, and measures what int8 costs.

    Convolutions are quantized. The folder is a copy of the model, with the graphs in its folder `int8`.

    Args:
        model: a folder, a name on the Hub, a `Predictor`, or a (model, image processor) pair. It stays as it is.
        source: annotated images on which panoptic quality is measured, as in `evaluate`.
        output: a folder that is empty or does not exist.
        calibration: images that show the value ranges, in any form that `Predictor.predict` takes; None: those of
            `source`. The first 64 are used.
        runtime: measures the quality: "openvino" or "onnxruntime".
        split: of the source.
        data_format: of the source; None recognizes it.
        limit: number of images of the source, from the first.

    Raises:
        ValueError: an argument is wrong, or the model cannot run in other runtimes than PyTorch.
        ImportError: the extra `export` is not installed.

    Examples:
        >>> from detr_panoptic import quantize
        >>> print(quantize("my_model", "my_data", "my_model_int8"))  # doctest: +SKIP
        my_model_int8: int8, calibrated on 64 images
        PQ 69.44 on 100 images with openvino, 0.61 points less than in float32
    """
    if runtime not in SESSIONS:
        raise ValueError(f"`runtime` must be {' or '.join(SESSIONS)}, got {runtime!r}.")
    check_installed("onnxruntime", runtime, *WRITERS)
    check_new_folder(output)
    data = read_source(source, split=split, data_format=data_format, limit=limit)
    pictures = calibration_pictures(data if calibration is None else calibration, GraphOptions())
    loaded = Predictor.of(model, device="auto" if isinstance(model, Predictor | tuple) else "cpu")
    indices: Any = range(len(pictures))
    network, processor = copy.deepcopy(loaded.model).cpu().float().eval(), loaded.processor

    def prepare(index: Any) -> Any:
        return processor(pictures[index]["image"], return_tensors="pt")

    with whole_folder(output) as folder:
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_int8(network, folder, DataLoader(indices, batch_size=None, collate_fn=prepare))
    options: dict[str, Any] = {"average_precision": False, "runtime": runtime, "device": "cpu"}
    before, after = (evaluate(str(output), data, dtype=dtype, **options) for dtype in ("float32", "int8"))
    return QuantizedModel(Path(output), runtime, len(pictures), before, after)
