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
Report = Annotated[Path | None, Parameter(help="Folder for a report with pictures.")]
Threshold = Annotated[
    float | None, Parameter(help="Drop segments with a lower score, 0 to 1; by default the model's own.")
]
Stuff = Annotated[
    list[str] | None,
    Parameter(consume_multiple=True, help="Names of the classes that are stuff; the others are then things."),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, mps …; auto uses a GPU if there is one.")]
OnError = Annotated[
    Literal["stop", "skip"],
    Parameter(help="If an image cannot be read: stop, or list it and continue. The exit code is 2 in both cases."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which part of a dataset is read, and how."""

    split: Annotated[str | None, Parameter(help="Split of the data, where it has several: val2017.")] = None
    data_format: Annotated[
        str | None,
        Parameter(
            name="--format",
            help="coco-panoptic, rows, two-channel, coco-instances, cityscapes or semantic, if it is not detected.",
        ),
    ] = None
    limit: Annotated[int | None, Parameter(help="Use only the first images; of `scenes`, how many to generate.")] = (
        None
    )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Running:
    """How images pass through the model."""

    batch_size: Annotated[
        int, Parameter(help="Images per step. The padding between images of a batch changes results slightly.")
    ] = 1
    num_workers: Annotated[
        int | None,
        Parameter(name="--workers", help="Processes that read images; by default none on CPU, up to 8 for a GPU."),
    ] = None
    device: Device = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        Parameter(help="Precision. int8 needs a model that `quantize` wrote, and a runtime other than torch."),
    ] = "float32"

    def loading(self) -> dict[str, Any]:
        """Returns the arguments that load a model."""
        return {"device": self.device, "dtype": self.dtype}

    def steps(self) -> dict[str, Any]:
        """Returns the arguments of a run over many images."""
        return {"batch_size": self.batch_size, "num_workers": self.num_workers}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunningAnywhere(Running):
    """The same, also in other runtimes than PyTorch."""

    runtime: Annotated[
        Literal["auto", "torch", "openvino", "onnxruntime"] | None,
        Parameter(
            help="auto, the default of `predict`: OpenVINO if the model ran on it before, else torch. Others: torch."
        ),
    ] = None

    def loading(self) -> dict[str, Any]:
        """Returns the arguments that load a model."""
        return super().loading() | ({} if self.runtime is None else {"runtime": self.runtime})


READING, RUNNING, RUNNING_ANYWHERE = Reading(), Running(), RunningAnywhere()
