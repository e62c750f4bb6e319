"""`detr-panoptic evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .options import READING, RUNNING, Model, OnError, Output, Reading, Running, Source, Threshold

KINDS: dict[str, bool | Literal["box"]] = {"none": False, "box": "box", "mask": True}


def evaluate(
    *,
    model: Model,
    data: Source,
    output: Output = Path("evaluation"),
    threshold: Threshold = None,
    average_precision: Annotated[
        Literal["none", "box", "mask"],
        Parameter(help="box costs next to nothing; mask is box and mask AP, for which every query needs a mask."),
    ] = "mask",
    on_error: OnError = "stop",
    reading: Reading = READING,
    running: Running = RUNNING,
) -> int:
    """Measures a model on a dataset: panoptic quality and average precision.

    PQ equals the official evaluator's to the last bit. Classes of the model and
    of the data are matched by name. The output folder gets

        metrics.json, metrics.md   all numbers, also of each class
        predictions/               the predictions in COCO's panoptic format
        worst_images.png           annotation and prediction side by side

    Existing predictions are kept, so an interrupted run continues when it is
    started again. On several processes: accelerate launch scripts/evaluate.py
    with the same options.

    For example:

        detr-panoptic evaluate --model my_model --data my_data
        detr-panoptic evaluate --model my_model --data coco --split val2017
        detr-panoptic evaluate --model my_model --data my_data --limit 200
    """
    from .. import evaluate as measure

    result = measure(
        model,
        data,
        output=output,
        threshold=threshold,
        average_precision=KINDS[average_precision],
        on_error=on_error,
        **reading.arguments(),
        **running.loading(),
        **running.steps(),
    )
    print(result)
    print(f"The report is in {output}")
    return 2 if result.failures else 0
