"""Which runtime computes a model's outputs."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .cache import has, is_empty, key_of, prepared
from .graph_runtime import DIFFERENCES, GraphRuntime
from .graphs import GraphFiles, write_graphs
from .int8 import INT8, find_int8
from .sessions import OnnxRuntimeSession, OpenVinoSession

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime")
SESSIONS: dict[str, Any] = {"openvino": OpenVinoSession, "onnxruntime": OnnxRuntimeSession}
WRITERS = ("onnx", "onnxscript")  # packages that write graphs
DTYPES = ("float32", "bfloat16", "float16", "int8")


class Runtime(Protocol):
    """Computes the outputs of batches."""

    name: str

    @property
    def dtype(self) -> str:
        """The precision, such as "float32"."""

    def __call__(self, inputs: Mapping[str, Tensor], *, mask_queries: str | int | None = None) -> Any:
        """Returns outputs as `DetrPanopticForSegmentation` does, given `pixel_values` and `pixel_mask`."""


@dataclass(frozen=True)
class Choice:
    """A runtime with its device and precision; `check` makes one."""

    name: str
    device: str
    dtype: str

    @classmethod
    def check(cls, runtime: str, *, device: Any, dtype: Any, compile: bool) -> Choice | None:
        """Returns what is to run graphs, or None for PyTorch.

        "auto" chooses OpenVINO on a CPU, if it is installed and has run this precision before.

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
                raise ValueError('`dtype="int8"` needs `runtime="openvino"` or `runtime="onnxruntime"`.')
            return None
        if compile:
            raise ValueError(f'`compile` is for `runtime="torch"`, got {runtime!r}.')
        if precision not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        check_installed(runtime, *(WRITERS if precision != INT8 else ()))
        return cls(runtime, SESSIONS[runtime].find_device(str(device), precision), precision)


def check_installed(*packages: str) -> None:
    """Raises ImportError, with what to install, if a package is missing."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ImportError(f"{', '.join(missing)} must be installed: pip install 'detr-panoptic[export]'")


def open_runtime(model: DetrPanopticForSegmentation, source: str | Path, choice: Choice) -> GraphRuntime:
    """Opens the graphs of a model, which are written to the cache if they are not there.

    Args:
        model: the model in float32 on CPU.
        source: the folder it was read from, which has the graphs in int8.
        choice: what runs them.

    Raises:
        ValueError: the model cannot be traced, its results differ from PyTorch's, or there are no graphs in int8.
    """
    if choice.dtype == INT8:
        graphs = find_int8(model, source)
        folder = prepared(_hash_of_files(graphs), lambda _: None)
    else:
        folder, graphs = prepared(key_of(model), partial(_write, model, choice)), None
    with folder as cache:
        options = {"device": choice.device, "dtype": choice.dtype, "cache": cache}
        files = GraphFiles.of(cache) if graphs is None else graphs
        detect, segment = (SESSIONS[choice.name](file, **options) for file in files)
    runtime = GraphRuntime(model, detect, segment, name=choice.name, dtype=choice.dtype)
    difference = runtime.difference()
    if not difference <= DIFFERENCES[choice.dtype]:
        raise ValueError(
            f'`runtime="{choice.name}"` gives other results than PyTorch on this machine: in {choice.dtype} they '
            f"differ by {difference:.2g} standard deviations."
        )
    logger.info("running on %s %s in %s", choice.name, detect.version, choice.dtype)
    return runtime


def open_if_prepared(model: DetrPanopticForSegmentation, source: str | Path, choice: Choice) -> GraphRuntime | None:
    """Opens the graphs of a model for "auto": None unless they exist and agree with PyTorch."""
    if choice.dtype != INT8 and not has(key_of(model)):
        return None
    try:
        return open_runtime(model, source, choice)
    except ValueError as error:
        if choice.dtype == INT8:
            raise
        logger.warning("running on torch: %s", error)
        return None


def _automatic(device: str, dtype: str, compile: bool) -> str:
    """Returns the runtime to try for "auto"."""
    if dtype == INT8:
        return next((name for name in SESSIONS if find_spec(name)), "openvino")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    usable = on_cpu and not compile and all(map(find_spec, ("openvino", *WRITERS))) and not is_empty()
    if not usable:
        return "torch"
    try:
        OpenVinoSession.find_device("cpu", dtype)
    except (ValueError, KeyError):  # no such precision
        return "torch"
    return "openvino"


def _write(model: DetrPanopticForSegmentation, choice: Choice, folder: Path) -> None:
    logger.info("preparing the model for %s, once: about half a minute", choice.name)
    write_graphs(model, folder)


def _hash_of_files(files: GraphFiles) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
