"""`detr-panoptic convert`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def convert(
    source: Annotated[str, Parameter(help="File, folder or Hub id of the checkpoint.")],
    output: Annotated[Path, Parameter(help="Folder for the model and its image processor.")],
    /,
    *,
    dilation: Annotated[
        bool | None,
        Parameter(
            help="Whether it is a DC5 model, which the weights do not show. By default, as its config or name says.",
            negative="--no-dilation",
        ),
    ] = None,
    compact: Annotated[
        bool, Parameter(help="Drop the classes that the dataset never has: of COCO's 250, 133 remain.")
    ] = False,
) -> None:
    """Turns a DETR checkpoint of another implementation into a model folder.

    The weights stay the same to the bit. Sources are

        FILE.pth    what facebookresearch/detr publishes and trains
        FOLDER      what transformers saves for DetrForSegmentation
                    and DetrForObjectDetection
        OWNER/NAME  such a folder on the Hugging Face Hub

    A detection-only model gets a new mask head, which has to be trained.

    For example:

        detr-panoptic convert detr-r50-panoptic-00ce5173.pth detr_r50
        detr-panoptic convert facebook/detr-resnet-50-panoptic detr_r50 --compact
        detr-panoptic convert detr-r50-dc5-panoptic.pth detr_r50_dc5 --dilation
    """
    from .. import convert_checkpoint

    print(convert_checkpoint(source, output, dilation=dilation, compact=compact))
    print(f"Try it: detr-panoptic predict photo.jpg --model {output}")
