"""`detr-panoptic explain`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from .options import PUBLISHED_MODEL, Device, Model, Output, Threshold


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Heads:
    """Which heads the sheets show."""

    layer: Annotated[
        int | None,
        Parameter(help="Decoder layer, from 1, whose heads are shown; by default the last.", validator=Number(gte=1)),
    ] = None
    head: Annotated[
        int | None, Parameter(help="Show only this head, from 1, in all layers.", validator=Number(gte=1))
    ] = None


HEADS = Heads()


def explain(
    image: Annotated[Path, Parameter(help="An image file.")],
    /,
    *,
    model: Model = PUBLISHED_MODEL,
    output: Output = Path("explanations"),
    segments: Annotated[
        list[int] | None, Parameter(help="Ids of the segments to explain; by default all.", consume_multiple=True)
    ] = None,
    query: Annotated[
        list[int] | None, Parameter(help="Queries, from 0, instead of segments.", consume_multiple=True)
    ] = None,
    heads: Heads = HEADS,
    threshold: Threshold = None,
    device: Device = "auto",
) -> None:
    """Shows where the model looked for each object of an image.

    For the image NAME.jpg the output folder gets NAME_overlay.png and, for each
    object, a sheet such as NAME_segment_3.png: its mask and box, the attention
    maps from which the mask head made the mask, and the cross-attention of the
    decoder. docs/explaining.md says how to read the maps.

    For example:

        detr-panoptic explain photo.jpg
        detr-panoptic explain photo.jpg --model my_model --segments 2 5 --layer 1
        detr-panoptic explain photo.jpg --query 17
    """
    from .. import explain as attention_of
    from ..data.files import check_folder

    check_folder(output)
    explanation = attention_of(model, image, threshold=threshold, segments=segments, queries=query, device=device)
    files = explanation.save(output, **asdict(heads))
    print(explanation)
    print(f"Wrote {len(files)} pictures to {output}")
