"""`detr-panoptic explain`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .options import PUBLISHED_MODEL, Device, Model, Output, Threshold


def explain(  # noqa: PLR0913  each option is an argument of `explain` or of its sheets
    image: Annotated[Path, Parameter(help="An image file.")],
    /,
    *,
    model: Model = PUBLISHED_MODEL,
    output: Output = Path("explanations"),
    segments: Annotated[list[int] | None, Parameter(consume_multiple=True, help="Only these segment ids.")] = None,
    queries: Annotated[
        list[int] | None, Parameter(consume_multiple=True, help="These queries, from 0, instead of segments.")
    ] = None,
    layer: Annotated[
        int | None, Parameter(help="Decoder layer, from 1, whose heads are shown. By default the last.")
    ] = (None),
    head: Annotated[int | None, Parameter(help="Shows only this head, from 1, in all layers.")] = None,
    threshold: Threshold = None,
    device: Device = "auto",
) -> None:
    """Shows where the model looked for each object of an image.

    For NAME.jpg the output folder gets

        NAME_overlay.png    the image with colored, labeled segments
        NAME_segment_3.png  for each object a sheet: its mask and box, the
                            attention maps of the mask head, and the decoder's
                            cross-attention by layer and head

    Bright is where attention is; the outline is the object's mask.

    For example:

        detr-panoptic explain photo.jpg --model my_model
        detr-panoptic explain photo.jpg --segments 2 5 --layer 1
        detr-panoptic explain photo.jpg --queries 17
    """
    from .. import Predictor, explain

    predictor = Predictor.from_pretrained(model, device=device)
    explanation = explain(predictor, image, threshold=threshold, segments=segments, queries=queries)
    print(explanation)
    files = explanation.save(output, layer=layer, head=head)
    print(f"{len(files)} pictures in {output}")
