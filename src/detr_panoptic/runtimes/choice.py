"""Which runtime computes a model's outputs, and its graphs in float32 and int8."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..mask_head import select_rows
from .cache import hash_of, key_of, prepared, prepared_key
from .graphs import graph_files, write_graphs
from .onnx_files import quantize_file
from .running import DIFFERENCES, ROWS_AT_ONCE, GraphRuntime
from .sessions import OnnxRuntimeSession, OpenVinoSession

if TYPE_CHECKING:
    import numpy as np

    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime")
SESSIONS: dict[str, Any] = {"openvino": OpenVinoSession, "onnxruntime": OnnxRuntimeSession}
WRITERS = ("onnx", "onnxscript")  # packages that write graphs
INT8 = "int8"  # the precision, and the folder of its graphs beside the model
WEIGHTS = "weights.txt"  # a hash of the weights whose graphs are in that folder


@dataclass(frozen=True)
class Choice:
    """A runtime with its device and precision; `check` makes one."""

    name: str
    device: str
    dtype: str

    @classmethod
    def check(cls, runtime: str, *, device: Any, dtype: Any, compile: str | None) -> Choice | None:
        """Returns what is to run graphs, or None for PyTorch.

        Raises:
            ValueError: there is no such runtime, or it lacks the device or the precision.
            ImportError: a package is not installed.
        """
        if runtime not in RUNTIMES:
            raise ValueError(f"`runtime` must be {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}, got {runtime!r}.")
        precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        if runtime == "auto":
            runtime = _automatic(str(device), precision, compile)
        if runtime == "torch":
            if precision == INT8:
                raise ValueError('`dtype` "int8" needs `runtime="openvino"` or `runtime="onnxruntime"`.')
            return None
        if compile is not None:
            raise ValueError(f'`compile` is for `runtime="torch"`, got {runtime!r}.')
        check_installed(runtime, *(WRITERS if precision != INT8 else ()))
        return cls(runtime, SESSIONS[runtime].find_device(str(device), precision), precision)


def check_installed(*packages: str) -> None:
    """Raises ImportError, with what to install, if a package is missing."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ImportError(f"{', '.join(missing)} must be installed: pip install 'detr-panoptic[export]'")


def open_runtime(
    model: DetrPanopticForSegmentation, source: str | Path, choice: Choice, *, key: str | None = None
) -> GraphRuntime:
    """Opens the graphs of a model, which are written to the cache if they are not there.

    Args:
        model: the model in float32 on CPU.
        source: the folder it was read from, which has the graphs in int8.
        choice: what runs them.
        key: of the model in the cache, if it is known: it takes a hash of all weights.

    Raises:
        ValueError: the model cannot be traced, its results differ from PyTorch's, or there are no graphs in int8.
    """
    int8 = find_int8(model, source) if choice.dtype == INT8 else ()
    if int8:
        key = hashlib.blake2b(b"".join(file.read_bytes() for file in int8)).hexdigest()[:32]
    key = key or key_of(model)
    with prepared(key, (lambda _: None) if int8 else partial(_write, model)) as cache:
        files = int8 or graph_files(cache)
        sessions = [SESSIONS[choice.name](file, choice.device, choice.dtype, cache) for file in files]
    runtime = GraphRuntime(model, sessions, choice.name, choice.dtype)
    difference = runtime.difference()
    if not difference <= DIFFERENCES[choice.dtype]:
        raise ValueError(
            f'`runtime="{choice.name}"` gives other results than PyTorch on this machine: in {choice.dtype} they '
            f"differ by {difference:.2g} standard deviations."
        )
    logger.info("running on %s %s in %s", choice.name, sessions[0].version, choice.dtype)
    return runtime


def open_if_prepared(model: DetrPanopticForSegmentation, source: str | Path, choice: Choice) -> GraphRuntime | None:
    """Opens the graphs of a model for "auto": None unless they exist and agree with PyTorch."""
    key = None if choice.dtype == INT8 else prepared_key(model)
    if choice.dtype != INT8 and key is None:
        return None
    try:
        return open_runtime(model, source, choice, key=key)
    except (ValueError, RuntimeError, OSError) as error:  # also a cache that cannot be written, or a broken graph
        if choice.dtype == INT8:
            raise
        logger.warning("running on torch: %s", error)
        return None


def write_int8(model: DetrPanopticForSegmentation, folder: Path, images: Iterable[Any]) -> None:
    """Writes the graphs of a model in int8 into the folder `int8` of its own folder.

    Args:
        model: the model in float32 on CPU.
        folder: the folder of the model.
        images: what the image processor makes of images that show the value ranges; read twice.
    """
    with prepared(key_of(model), partial(_write, model)) as cache:
        files, written = graph_files(cache), graph_files(folder / INT8)
        device = OnnxRuntimeSession.find_device("cpu", "float32")
        sessions = [OnnxRuntimeSession(file, device, "float32", cache) for file in files]
        runtime = GraphRuntime(model, sessions, "onnxruntime", "float32")
        (folder / INT8).mkdir(parents=True)
        quantize_file(files[0], written[0], "static", map(runtime.detection_inputs, images))
        quantize_file(files[1], written[1], "static", _mask_inputs(runtime, images))
    (folder / INT8 / WEIGHTS).write_text(hash_of(model))


def find_int8(model: DetrPanopticForSegmentation, source: str | Path) -> tuple[Path, Path]:
    """Returns the graphs in int8 beside a model; ValueError if there are none, or those of other weights."""
    folder = Path(source) / INT8
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f'`dtype` "int8" needs a folder that `quantize` wrote, got {str(source)!r}.')
    if (folder / WEIGHTS).read_text() != hash_of(model):
        raise ValueError(f"`model` {str(source)!r} has other weights than `quantize` found there: run it again.")
    return graph_files(folder)


def _automatic(device: str, dtype: str, compile: str | None) -> str:
    """Returns the runtime to try for "auto"."""
    if dtype == INT8:
        return next((name for name in SESSIONS if find_spec(name)), "openvino")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if not on_cpu or compile is not None or not all(map(find_spec, ("openvino", *WRITERS))):
        return "torch"
    try:
        OpenVinoSession.find_device("cpu", dtype)
    except ValueError:  # no such precision
        return "torch"
    return "openvino"


def _write(model: DetrPanopticForSegmentation, folder: Path) -> None:
    logger.info("preparing the model for other runtimes, once: about half a minute")
    write_graphs(model, folder)


def _mask_inputs(runtime: GraphRuntime, images: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Yields inputs of the second graph: the most confident queries of each image."""
    for inputs in images:
        found = runtime.detect(runtime.detection_inputs(inputs))
        logits = torch.from_numpy(found["logits"])
        rows = select_rows(logits, min(ROWS_AT_ONCE, logits.shape[1]))
        yield from (arrays for _, _, arrays in runtime.mask_inputs(found, rows))
