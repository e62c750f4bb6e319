"""`export`: a model as files for programs without this package."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.files import check_folder
from ..inference import Predictor
from ..runtimes.choice import WRITERS, check_installed
from ..runtimes.onnx_files import quantize_file
from .graph import GraphOptions, parse_size
from .inputs import calibration_batches, calibration_pictures, fitted_to_canvas
from .transformers_detr import write_transformers
from .writing import trace, write_onnx

FILE_NAMES = {"onnx": "model.onnx", "torch": "model.pt2", "aotinductor": "compiled.pt2"}
FILE_SUFFIXES = (".onnx", ".pt2", ".pt", ".safetensors")
FORMATS = (*FILE_NAMES, "transformers")
QUANTIZATIONS = ("dynamic", "static")


@dataclass(frozen=True)
class ExportedModel:
    """The files that `export` wrote.

    Args:
        file: the graph or the weights; `config.json` and `preprocessor_config.json` are beside it.
        format: "onnx", "torch", "aotinductor" or "transformers".
        options: inputs and outputs of the graph. None for "transformers".
    """

    file: Path
    format: str
    options: GraphOptions | None = None

    @property
    def folder(self) -> Path:
        """The folder that `export` wrote to."""
        return self.file.parent

    def __str__(self) -> str:
        """Describes the file in one line."""
        text, options = f"{self.file}, {self.file.stat().st_size / 1e6:.1f} MB", self.options
        if options is None:
            return text
        size = f"{options.batch_size} x {options.size[0]}x{options.size[1]} pixels" if options.size else "any size"
        names = f"{', '.join(options.input_names)} to {', '.join(options.output_names)}"
        return f"{text}, for {size}: {names}, {options.mask_queries} masks"


def export(  # noqa: PLR0913  every option of a graph, each with a default
    model: Any,
    output: str | Path,
    *,
    format: str = "onnx",
    size: tuple[int, int] | str | None = None,
    dynamic: bool = False,
    batch_size: int = 1,
    half: bool = False,
    mask_queries: int | None = None,
    uint8: bool = False,
    with_merging: bool = False,
    quantize: str | None = None,
    calibration: Any = None,
) -> ExportedModel:
    """Writes a model as files for programs without this package.

    The folder gets the graph or the weights, `config.json` (label names and stuff) and `preprocessor_config.json` (how
    to prepare images).

    Args:
        model: a folder, a name on the Hub, a `Predictor`, or a (model, image processor) pair. It stays as it is.
        output: the folder to write to.
        format: "onnx" for ONNX Runtime, OpenVINO and TensorRT, "torch" for `torch.export.load`, "aotinductor" for
            `torch._inductor.aoti_load_package` on CPUs like this one (compiling takes minutes), or "transformers" for
            `transformers.DetrForSegmentation`, which takes none of the options below.
        size: height and width of the padded canvas in pixels, as a pair or as "800x1066". None takes the size of the
            image processor if it makes square images.
        dynamic: accept any batch size, height and width. The graph pads the canvas to a multiple of 32.
        batch_size: images per call, if the size is fixed.
        half: compute in float16, for GPUs. Inputs and outputs stay float32.
        mask_queries: masks per image, those of the most confident queries. None: 20, or all queries if there are
            fewer.
        uint8: take images as decoded, (B, H, W, 3) uint8, and normalize them inside the graph. Otherwise the input is
            `pixel_values` (B, 3, H, W) float32.
        with_merging: return the merged map and its segments in place of logits, boxes and masks.
        quantize: int8 weights for ONNX. "dynamic" quantizes the linear layers, "static" the convolutions.
        calibration: for "static", images that show the value ranges: a folder, a dataset, a list of files, or
            "scenes". The first 64 are used.

    Raises:
        ValueError: an option is wrong, or options exclude each other. Nothing is written then.
        ImportError: the extra `export` is not installed.
        OSError: "aotinductor" finds no C++ compiler.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic import export
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> exported = export(BUNDLED, tempfile.mkdtemp(), format="torch", size=(64, 96))
        >>> exported.file.name, exported.options.mask_queries
        ('model.pt2', 20)
    """
    output = Path(output)
    options = GraphOptions(
        size=parse_size(size) if isinstance(size, str) else size,
        dynamic=dynamic,
        batch_size=batch_size,
        half=half,
        mask_queries=mask_queries,
        uint8=uint8,
        with_merging=with_merging,
    )
    _check(output, format, quantize, calibration, options)
    if isinstance(model, str | Path) and output.resolve() == Path(model).resolve():
        raise ValueError(f"`output` must be another folder than the model's, got {str(output)!r}.")
    pictures = None if calibration is None else calibration_pictures(calibration, options)
    predictor = Predictor.of(model, device="auto" if isinstance(model, Predictor | tuple) else "cpu")
    loaded, processor = predictor.model, predictor.processor
    if format == "transformers":
        write_transformers(loaded, processor, output)
        return ExportedModel(output / "model.safetensors", format)
    options = options.resolved(loaded, processor)
    program = trace(loaded, processor, options)
    if options.size is not None:
        processor = fitted_to_canvas(processor, options.size)
    output.mkdir(parents=True, exist_ok=True)
    file = output / FILE_NAMES[format]
    if format == "torch":
        torch.export.save(program, file)
    elif format == "aotinductor":
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    else:
        floats = file if quantize is None else file.with_name("float.onnx")
        write_onnx(program, floats, options, labels=loaded.config.id2label or {})
        if quantize is not None:
            try:
                quantize_file(floats, file, quantize, calibration_batches(pictures or [], processor, options))
            finally:
                floats.unlink()
    # Not `save_pretrained`, which would write the code for the Hub as well.
    loaded.config.to_json_file(output / "config.json")
    processor.to_json_file(output / "preprocessor_config.json")
    return ExportedModel(file, format, options)


def _check(output: Path, format: str, quantize: str | None, calibration: Any, options: GraphOptions) -> None:
    """Raises ValueError for options that exclude each other, and ImportError, before anything is loaded."""
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}, got {format!r}.")
    check_folder(output)
    if output.suffix in FILE_SUFFIXES:
        raise ValueError(f"`output` must be a folder, in which `export` names the file, got {str(output)!r}.")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ValueError(f"`quantize` must be one of {', '.join(QUANTIZATIONS)}, got {quantize!r}.")
    if format == "transformers" and options != GraphOptions():
        raise ValueError(f'`format="transformers"` takes no options of a graph, got {options}.')
    if quantize is not None and (format != "onnx" or options.half):
        raise ValueError(
            f'`quantize` needs `format="onnx"` in float32, got {format!r}{" with `half`" * options.half}.'
        )
    if format == "aotinductor" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise OSError('`format="aotinductor"` needs a C++ compiler, such as g++.')
    if (quantize == "static") != (calibration is not None):
        raise ValueError('`quantize="static"` and `calibration` need each other.')
    if format == "onnx":
        check_installed(*WRITERS, *(["onnxruntime"] if quantize else []))
