"""An ONNX file in OpenVINO or ONNX Runtime: arrays by name to arrays by name, safe to call from several threads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from ..data.files import write_file

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16", "int8": "INT8"}


class OpenVinoSession:
    """A graph in OpenVINO, with as many threads as PyTorch uses.

    With "int8", what is not quantized is computed in bfloat16 if the device can. `cache` gets the compiled graph.
    """

    def __init__(self, file: Path, device: str, dtype: str, cache: Path) -> None:
        from .openvino_core import CORE, openvino

        able = CORE.get_property(device, "OPTIMIZATION_CAPABILITIES")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS.get(dtype, "bf16" if "BF16" in able else "f32")}
        if device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        compiled = _compiled(file, device, settings, cache)
        self.version = openvino.__version__.partition("-")[0]
        self._names = [output.any_name for output in compiled.outputs]
        self._request = compiled.create_infer_request()
        self._lock = Lock()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph."""
        with self._lock:
            results = self._request.infer(inputs, share_inputs=True)
            return {name: results[index] for index, name in enumerate(self._names)}

    @staticmethod
    def find_device(name: str, dtype: str) -> str:
        """Returns OpenVINO's name of a device; ValueError if there is none or it lacks the precision."""
        from .openvino_core import CORE

        device = "CPU" if name == "auto" else name.upper().replace(":", ".")
        if device not in CORE.available_devices:
            found = ", ".join(CORE.available_devices).lower()
            raise ValueError(f'`device` must be auto or {found} with `runtime="openvino"`, got {name!r}.')
        able = CORE.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES.get(dtype) not in able:
            names = [known for known, capability in CAPABILITIES.items() if capability in able]
            raise ValueError(
                f'`dtype` must be {", ".join(names)} with `runtime="openvino"` on this {device}, got {dtype!r}.'
            )
        return device


class OnnxRuntimeSession:
    """A graph in ONNX Runtime, with as many threads as PyTorch uses; it has no use for `dtype` and `cache`."""

    def __init__(self, file: Path, device: str, dtype: str, cache: Path) -> None:  # noqa: ARG002  as above
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self.version = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession(file, settings, providers=[device])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph."""
        return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))

    @staticmethod
    def find_device(name: str, dtype: str) -> str:
        """Returns the execution provider of a device; ValueError if there is none or it lacks the precision."""
        import onnxruntime

        if dtype not in ("float32", "int8"):
            raise ValueError(f'`dtype` must be float32 or int8 with `runtime="onnxruntime"`, got {dtype!r}.')
        known = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        able = [device for device, provider in known.items() if provider in onnxruntime.get_available_providers()]
        device = "cpu" if name == "auto" else name
        if device not in able:
            raise ValueError(
                f'`device` must be auto or {", ".join(able)} with `runtime="onnxruntime"` here, got {name!r}.'
            )
        return known[device]


def _compiled(file: Path, device: str, settings: dict[str, Any], cache: Path) -> Any:
    """Returns a compiled graph, from the cache if it is there; writes it whole, so that processes may race."""
    from .openvino_core import CORE, openvino

    about = (openvino.__version__, CORE.get_property(device, "FULL_DEVICE_NAME"), settings["INFERENCE_PRECISION_HINT"])
    able = sorted(CORE.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    blob = cache / f"{file.stem}_{hashlib.blake2b(repr((about, able)).encode(), digest_size=6).hexdigest()}.blob"
    if blob.is_file():
        with suppress(RuntimeError):  # of another build of OpenVINO: compiled again
            return CORE.import_model(blob.read_bytes(), device, settings)
    compiled = CORE.compile_model(str(file), device, settings)
    if "EXPORT_IMPORT" in able:
        write_file(blob, compiled.export_model().getbuffer())
    return compiled
