"""`detr-panoptic evaluate`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .options import READING, RUNNING_ANYWHERE, Model, OnError, Output, Reading, RunningAnywhere, Source, Threshold

KINDS: dict[str, bool | Literal["box"]] = {"none": False, "box": "box", "mask": True}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured."""

    threshold: Threshold = None
    average_precision: Annotated[
        Literal["none", "box", "mask"],
        Parameter(help="box takes almost no time; mask measures box and mask AP, and computes all masks."),
    ] = "mask"
    tune: Annotated[
        Literal["common", "per-class"] | None,
        Parameter(help="Find the threshold and the merging with the best PQ on these images, and save them."),
    ] = None


MEASURES = Measures()


def evaluate(
    *,
    model: Model,
    data: Source,
    output: Output = Path("evaluation"),
    measures: Measures = MEASURES,
    on_error: OnError = "stop",
    reading: Reading = READING,
    running: RunningAnywhere = RUNNING_ANYWHERE,
) -> int:
    """Measures a model on a dataset: panoptic quality and average precision.

    PQ equals the official evaluator's to the last bit. Classes of the model and
    of the data are matched by name. The output folder gets

        metrics.json, metrics.md   all numbers, also of each class
        predictions/               the predictions in COCO's panoptic format
        report.html                metrics, what went wrong, the worst errors in pictures

    Existing predictions are kept, so an interrupted run continues when it is
    started again. On several processes: accelerate launch -m
    detr_panoptic.commands evaluate with the same options.

    --tune writes no report. It tries score thresholds, one for all classes or also
    one for each, and both ways of merging, and prints PQ before and after. It
    writes the best settings into the model's image processor. If the model is no
    folder, or has the image processor of another program, it writes them to
    --output. Tune on images that the model is not tested on.

    For example:

        detr-panoptic evaluate --model my_model --data my_data
        detr-panoptic evaluate --model my_model --data coco --split val2017
        detr-panoptic evaluate --model my_model --data my_data --tune per-class
    """
    from .. import evaluate as measure
    from .. import tune_thresholds

    for name in ("threshold", "average_precision"):
        if measures.tune is not None and getattr(measures, name) != getattr(MEASURES, name):
            raise ValueError(
                f"`--{name.replace('_', '-')}` has no meaning with `--tune`, which looks for the best PQ."
            )
    options = {**asdict(reading), **running.loading(), **running.steps(), "on_error": on_error}
    if measures.tune is not None:
        tuning = tune_thresholds(model, data, per_class=measures.tune == "per-class", **options)
        print(tuning)
        try:
            file = tuning.save(model if Path(model).is_dir() else output)
        except ValueError:  # the folder holds the image processor of another program
            file = tuning.save(output)
        print(f"The settings are in {file}")
        return 2 if tuning.failures else 0
    result = measure(
        model,
        data,
        output=output,
        threshold=measures.threshold,
        average_precision=KINDS[measures.average_precision],
        **options,
    )
    print(result)
    print(f"The report is in {output}")
    return 2 if result.failures else 0
