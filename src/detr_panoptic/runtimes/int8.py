"""A model's graphs in int8: convolutions, with value ranges that images show."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..mask_head import select_rows
from .cache import add_weights, key_of, prepared
from .graph_runtime import ROWS_AT_ONCE, GraphRuntime
from .graphs import GraphFiles, write_graphs
from .onnx_files import quantize_file
from .sessions import OnnxRuntimeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

INT8 = "int8"  # the precision, and the folder of its graphs beside the model
WEIGHTS = "weights.json"  # of which weights the graphs in the folder are


def write_int8(model: DetrPanopticForSegmentation, folder: Path, batches: Callable[[], Iterable[Any]]) -> None:
    """Writes the graphs of a model in int8 into the folder `int8` of its own folder.

    Args:
        model: the model in float32 on CPU.
        folder: the folder of the model.
        batches: returns what the image processor makes of some images; called twice.
    """
    with prepared(key_of(model), partial(write_graphs, model)) as cache:
        files = GraphFiles.of(cache)
        options = {"device": OnnxRuntimeSession.find_device("cpu", "float32"), "dtype": "float32", "cache": cache}
        detect, segment = (OnnxRuntimeSession(file, **options) for file in files)
        runtime = GraphRuntime(model, detect, segment, name="onnxruntime", dtype="float32")
        written = GraphFiles.of(folder / INT8)
        (folder / INT8).mkdir(parents=True)
        images = (runtime.detection_inputs(inputs["pixel_values"], inputs["pixel_mask"]) for inputs in batches())
        quantize_file(files.detection, written.detection, "static", images)
        quantize_file(files.masks, written.masks, "static", _mask_inputs(runtime, batches()))
    (folder / INT8 / WEIGHTS).write_text(json.dumps(hash_of_weights(model)))


def find_int8(model: DetrPanopticForSegmentation, source: str | Path) -> GraphFiles:
    """Returns the graphs in int8 beside a model; ValueError if there are none, or those of other weights."""
    folder = Path(source) / INT8
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f'`dtype="int8"` needs a folder that `quantize` wrote, got {str(source)!r}.')
    if json.loads((folder / WEIGHTS).read_text()) != hash_of_weights(model):
        raise ValueError(f"`model` {str(source)!r} has other weights than `quantize` found there: run it again.")
    return GraphFiles.of(folder)


def hash_of_weights(model: DetrPanopticForSegmentation) -> str:
    """Returns a hash of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    add_weights(digest, model)
    return digest.hexdigest()


def _mask_inputs(runtime: GraphRuntime, batches: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Yields inputs of the second graph: the most confident queries of each image."""
    for inputs in batches:
        found = runtime.detect(runtime.detection_inputs(inputs["pixel_values"], inputs["pixel_mask"]))
        logits = torch.from_numpy(found["logits"])
        rows = select_rows(logits, min(ROWS_AT_ONCE, logits.shape[1]))
        yield from (arrays for _, _, arrays in runtime.mask_inputs(found, rows))
