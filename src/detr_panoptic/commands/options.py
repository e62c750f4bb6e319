"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

PUBLISHED_MODEL = "facebook/detr-resnet-50-panoptic"

Model = Annotated[str, Parameter(help="Folder of a saved model, or its id on the Hugging Face Hub.")]
Source = Annotated[str, Parameter(help="Annotated images: a folder, a file, a Hub dataset or `scenes` (generated).")]
Output = Annotated[Path, Parameter(help="Folder for the results.")]
NewFolder = Annotated[Path, Parameter(help="A folder that is empty or does not exist.")]
Threshold = Annotated[
    float | None, Parameter(help="Drop segments with a lower score, 0 to 1. The model's own if not given.")
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, mps …; auto uses a GPU if there is one.")]
OnError = Literal["stop", "skip"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which part of a dataset is read, and how."""

    split: Annotated[str | None, Parameter(help="Split of the data, where it has several: val2017.")] = None
    format: Annotated[
        str | None,
        Parameter(
            help="coco-panoptic, rows, two-channel, coco-instances, cityscapes or semantic, if it is not detected."
        ),
    ] = None
    limit: Annotated[int | None, Parameter(help="Use only the first images; of `scenes`, how many to generate.")] = (
        None
    )

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `read_panoptic`."""
        return {"split": self.split, "data_format": self.format, "limit": self.limit}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Running:
    """How images pass through the model."""

    batch_size: Annotated[
        int, Parameter(help="Images per step. The padding between images of a batch changes results slightly.")
    ] = 1
    workers: Annotated[
        int | None, Parameter(help="Processes that read images. By default none on CPU, up to 8 for a GPU.")
    ] = None
    device: Device = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(help="Precision of the model.")] = "float32"
    on_error: Annotated[
        OnError, Parameter(help="At an image that cannot be read: stop, or list it and go on. Exit code 2 either way.")
    ] = "stop"

    def loading(self) -> dict[str, Any]:
        """Returns the arguments that load a model."""
        return {"device": self.device, "dtype": self.dtype}

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of a run over many images."""
        return {"batch_size": self.batch_size, "num_workers": self.workers, "on_error": self.on_error}
