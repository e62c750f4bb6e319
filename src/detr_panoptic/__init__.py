"""DETR for panoptic segmentation as a Hugging Face model package.

Importing the package registers its classes with transformers' Auto classes and its pipeline, and lets
`from_pretrained` read checkpoints of transformers' DETR. The other public names are imported when they are first used.
In the console script `detr-panoptic`, which parses its arguments before it imports anything heavy, the first use of a
public name registers.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints.conversion import convert_checkpoint
    from .configuration_detr_panoptic import DetrPanopticConfig
    from .data.checking import DataCheck, check_data
    from .data.reading import PanopticData, read_panoptic
    from .data.splitting import DataSplit, split_data
    from .data.writing import DataConversion, convert_data
    from .evaluation.model_evaluation import evaluate
    from .evaluation.panoptic_quality import PanopticQuality
    from .evaluation.results import Evaluation, PanopticQualityResult
    from .evaluation.tuning import Tuning, tune_thresholds
    from .explanation import Explanation, explain
    from .exporting import export, quantize
    from .image_processing_detr_panoptic import DetrPanopticImageProcessor
    from .inference import Prediction, PredictionFolder, Predictor
    from .labeling import Labels, complete_stuff, label
    from .modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticModel
    from .pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline
    from .sharing import push
    from .training.run import TrainingResult, train

__version__ = "0.1.0"

__all__ = [
    "DataCheck",
    "DataConversion",
    "DataSplit",
    "DetrPanopticConfig",
    "DetrPanopticForSegmentation",
    "DetrPanopticImageProcessor",
    "DetrPanopticImageSegmentationPipeline",
    "DetrPanopticModel",
    "Evaluation",
    "Explanation",
    "Labels",
    "PanopticData",
    "PanopticQuality",
    "PanopticQualityResult",
    "Prediction",
    "PredictionFolder",
    "Predictor",
    "TrainingResult",
    "Tuning",
    "check_data",
    "complete_stuff",
    "convert_checkpoint",
    "convert_data",
    "evaluate",
    "explain",
    "export",
    "label",
    "push",
    "quantize",
    "read_panoptic",
    "split_data",
    "train",
    "tune_thresholds",
]

_NAMES = {
    "configuration_detr_panoptic": ("DetrPanopticConfig",),
    "modeling_detr_panoptic": ("DetrPanopticForSegmentation", "DetrPanopticModel"),
    "image_processing_detr_panoptic": ("DetrPanopticImageProcessor",),
    "pipeline_detr_panoptic": ("DetrPanopticImageSegmentationPipeline",),
    "inference": ("Prediction", "PredictionFolder", "Predictor"),
    "explanation": ("Explanation", "explain"),
    "data.checking": ("DataCheck", "check_data"),
    "data.writing": ("DataConversion", "convert_data"),
    "data.splitting": ("DataSplit", "split_data"),
    "data.reading": ("PanopticData", "read_panoptic"),
    "evaluation.model_evaluation": ("evaluate",),
    "evaluation.panoptic_quality": ("PanopticQuality",),
    "evaluation.results": ("Evaluation", "PanopticQualityResult"),
    "evaluation.tuning": ("Tuning", "tune_thresholds"),
    "checkpoints.conversion": ("convert_checkpoint",),
    "training.run": ("TrainingResult", "train"),
    "exporting": ("export", "quantize"),
    "labeling": ("Labels", "complete_stuff", "label"),
    "sharing": ("push",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
_CONSOLE_SCRIPT = "detr-panoptic"


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Registers the classes with transformers, and the readers of foreign checkpoints with the classes.

    Repeating it changes nothing.
    """
    import transformers

    from .checkpoints.hooks import register_pipeline, register_readers
    from .configuration_detr_panoptic import DetrPanopticConfig
    from .image_processing_detr_panoptic import DetrPanopticImageProcessor
    from .modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticModel

    transformers.AutoConfig.register(DetrPanopticConfig.model_type, DetrPanopticConfig, exist_ok=True)
    transformers.AutoImageProcessor.register(
        DetrPanopticConfig, image_processor_classes={"torchvision": DetrPanopticImageProcessor}, exist_ok=True
    )
    for auto_class, model_class in (
        (transformers.AutoModel, DetrPanopticModel),
        (transformers.AutoModelForImageSegmentation, DetrPanopticForSegmentation),
        (transformers.AutoModelForUniversalSegmentation, DetrPanopticForSegmentation),
    ):
        auto_class.register(DetrPanopticConfig, model_class, exist_ok=True)
    register_pipeline()
    DetrPanopticConfig.register_for_auto_class()
    DetrPanopticImageProcessor.register_for_auto_class()
    DetrPanopticModel.register_for_auto_class("AutoModel")
    DetrPanopticForSegmentation.register_for_auto_class("AutoModelForImageSegmentation")
    register_readers()


if Path(sys.argv[0] if sys.argv else "").stem != _CONSOLE_SCRIPT:
    register()
