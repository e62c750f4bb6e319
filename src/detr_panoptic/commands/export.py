"""`detr-panoptic export`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .options import Model


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the graph takes and returns."""

    size: Annotated[str | None, Parameter(help="HxW in pixels; by default the model's own, if it is square.")] = None
    dynamic: Annotated[bool, Parameter(help="Accept any batch size, height and width.")] = False
    batch_size: Annotated[int, Parameter(help="Images per call, if the size is fixed.")] = 1
    half: Annotated[bool, Parameter(help="Compute in float16, for GPUs; inputs stay float32.")] = False
    mask_queries: Annotated[int | None, Parameter(help="Masks per image; by default 20, or all if fewer.")] = None
    uint8: Annotated[bool, Parameter(help="Take images (B, H, W, 3) uint8 and normalize inside.")] = False
    with_merging: Annotated[bool, Parameter(help="Return the panoptic map and its segments.")] = False


GRAPH = Graph()


def export(
    model: Model,
    output: Annotated[Path, Parameter(help="Folder for the files.")],
    /,
    *,
    format: Annotated[
        Literal["onnx", "torch", "aotinductor", "transformers"], Parameter(help="Format of the files.")
    ] = "onnx",
    graph: Graph = GRAPH,
    quantize: Annotated[
        Literal["dynamic", "static"] | None,
        Parameter(help="int8: the linear layers (dynamic) or the convolutions (static)."),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        Parameter(help="Images, folders or `scenes` for --quantize static.", consume_multiple=True),
    ] = None,
) -> None:
    """Writes a model for programs that do not use this package.

    The folder gets config.json with the labels, preprocessor_config.json with the
    preparation of images (docs/export.md describes inputs and outputs), and

        --format onnx          model.onnx for ONNX Runtime, OpenVINO, TensorRT
        --format torch         model.pt2 for torch.export.load
        --format aotinductor   compiled.pt2 for torch._inductor.aoti_load_package
        --format transformers  a folder for transformers' DetrForSegmentation

    For example:

        detr-panoptic export my_model exported --size 800x1066
        detr-panoptic export my_model exported --dynamic --with-merging
        detr-panoptic export my_model out --quantize static --calibration photos/
    """
    from .. import export as write

    images = calibration[0] if calibration and len(calibration) == 1 else calibration
    print(write(model, output, format=format, quantize=quantize, calibration=images, **asdict(graph)))
