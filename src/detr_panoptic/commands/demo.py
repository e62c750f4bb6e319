"""`detr-panoptic demo`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

SHOWN = 4  # scenes in the picture
SCALE = 2  # enlargement, for readable labels


def demo(
    *,
    scenes: Annotated[int, Parameter(help="Number of scenes to segment.", validator=Number(gte=1))] = 16,
    seed: Annotated[int, Parameter(help="Another number gives other scenes.", validator=Number(gte=0))] = 0,
    output: Annotated[Path, Parameter(help="Picture to write.")] = Path("demo.png"),
) -> None:
    """Segments generated scenes with the bundled checkpoint.

    Measures panoptic quality (PQ) on scenes that the model was not trained on and
    draws some of them: scene, annotation and prediction side by side. Needs no
    network, no data and about ten seconds.

    For example:

        detr-panoptic demo
        detr-panoptic demo --scenes 500 --output demo_500.png
    """
    from PIL.Image import Resampling, registered_extensions

    from ..data.files import check_folder

    if output.suffix.lower() not in registered_extensions():
        raise ValueError(f"`--output` must be the name of a picture, such as demo.png, got {str(output)!r}.")
    check_folder(output.parent)

    from .. import Predictor, evaluate
    from ..checkpoints import BUNDLED
    from ..data import truth_ids
    from ..scenes import UNSEEN_SEED, read_source
    from ..visualization import draw_side_by_side, stack

    data = read_source("scenes", limit=scenes, scene_seed=UNSEEN_SEED + seed)
    predictor = Predictor.from_pretrained(BUNDLED)
    print(evaluate(predictor, data, average_precision=False))
    rows = []
    for record, prediction in predictor.iterate(data.records.select(range(min(SHOWN, scenes)))):
        image = prediction.image.resize([SCALE * side for side in prediction.image.size], Resampling.BICUBIC)
        truth, found = (
            {"segmentation": ids.repeat(SCALE, 0).repeat(SCALE, 1), "segments_info": segments}
            for ids, segments in (
                (truth_ids(record), record["segments_info"]),
                (prediction.segmentation, prediction.segments_info),
            )
        )
        rows.append(draw_side_by_side(image, truth, found, prediction.id2label))
    output.parent.mkdir(parents=True, exist_ok=True)
    stack(rows).save(output)
    print(f"The picture is {output}. For photographs: detr-panoptic predict --help")
