"""`detr-panoptic quantize`."""

from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from .options import READING, Model, NewFolder, Reading, Source


def quantize(
    model: Model,
    output: NewFolder,
    /,
    *,
    data: Source,
    calibration: Annotated[
        list[str] | None,
        Parameter(help="Images or folders that show the value ranges; by default the data.", consume_multiple=True),
    ] = None,
    runtime: Annotated[
        Literal["openvino", "onnxruntime"], Parameter(help="Runtime that measures the quality.")
    ] = "openvino",
    reading: Reading = READING,
) -> None:
    """Writes a model in int8 for OpenVINO and ONNX Runtime, and prints its cost in PQ.

    The convolutions are quantized; 64 images show their value ranges. The output
    is a copy of the model for `--dtype int8` of `predict` and `evaluate`.

    For example:

        detr-panoptic quantize my_model my_model_int8 --data my_data
        detr-panoptic predict a.jpg --model my_model_int8 --dtype int8
    """
    from .. import quantize as write

    images = calibration[0] if calibration and len(calibration) == 1 else calibration
    print(write(model, data, output, calibration=images, runtime=runtime, **asdict(reading)))
