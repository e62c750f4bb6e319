"""DETR for panoptic segmentation as a Hugging Face model package.

Importing this package registers its classes with transformers' Auto classes and its pipeline.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
)

from . import checkpoints as checkpoints  # so that `from_pretrained` reads the checkpoints of other projects
from .configuration_detr_panoptic import DetrPanopticConfig
from .image_processing_detr_panoptic import DetrPanopticImageProcessor
from .modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticModel
from .pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline, register_pipeline

AutoConfig.register(DetrPanopticConfig.model_type, DetrPanopticConfig)
AutoImageProcessor.register(DetrPanopticConfig, image_processor_classes={"torchvision": DetrPanopticImageProcessor})
AutoModel.register(DetrPanopticConfig, DetrPanopticModel)
AutoModelForImageSegmentation.register(DetrPanopticConfig, DetrPanopticForSegmentation)
AutoModelForUniversalSegmentation.register(DetrPanopticConfig, DetrPanopticForSegmentation)
register_pipeline()
DetrPanopticConfig.register_for_auto_class()
DetrPanopticImageProcessor.register_for_auto_class()
DetrPanopticModel.register_for_auto_class("AutoModel")
DetrPanopticForSegmentation.register_for_auto_class("AutoModelForImageSegmentation")

__version__ = "0.1.0"

__all__ = [
    "DetrPanopticConfig",
    "DetrPanopticForSegmentation",
    "DetrPanopticImageProcessor",
    "DetrPanopticImageSegmentationPipeline",
    "DetrPanopticModel",
]
