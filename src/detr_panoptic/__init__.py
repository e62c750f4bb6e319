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

from .configuration_detr_panoptic import DetrPanopticConfig
from .image_processing_detr_panoptic import DetrPanopticImageProcessor
from .modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticModel

AutoConfig.register(DetrPanopticConfig.model_type, DetrPanopticConfig)
AutoImageProcessor.register(DetrPanopticConfig, DetrPanopticImageProcessor)
AutoModel.register(DetrPanopticConfig, DetrPanopticModel)
AutoModelForImageSegmentation.register(DetrPanopticConfig, DetrPanopticForSegmentation)
AutoModelForUniversalSegmentation.register(DetrPanopticConfig, DetrPanopticForSegmentation)

__version__ = "0.1.0"

__all__ = [
    "DetrPanopticConfig",
    "DetrPanopticForSegmentation",
    "DetrPanopticImageProcessor",
    "DetrPanopticModel",
]
