"""Registers the package with transformers, and lets `from_pretrained` read checkpoints of transformers' DETR.

Model files on the Hub know nothing of this: their lists of readers are empty there, and a model's config.json names
its pipeline. The package's import calls the functions of this file.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.peft import maybe_load_adapters
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticPreTrainedModel
from ..pipeline_detr_panoptic import TASK, DetrPanopticImageSegmentationPipeline
from .configs import stuff_labels
from .conversion import NO_MASK_HEAD, convert_files, weights_for
from .names import StateDict
from .reading import local_checkpoint, processor_settings

logger = logging.get_logger(__name__)
MODEL_TYPE, FOREIGN_MODEL_TYPE = "detr_panoptic", "detr"


def register_readers() -> None:
    """Appends the readers to the lists of the model and of the image processor, once."""
    if read_foreign_model not in DetrPanopticPreTrainedModel.foreign_readers:
        DetrPanopticPreTrainedModel.foreign_readers.append(read_foreign_model)
        DetrPanopticImageProcessor.foreign_readers.append(read_foreign_processor)


def read_foreign_model(
    cls: type[DetrPanopticPreTrainedModel], source: Any, **hub_arguments: Any
) -> tuple[dict[str, Any], StateDict] | None:
    """Reads transformers' DETR from a folder or the Hub, as `foreign_readers` of the model describes it.

    Raises ValueError for an adapter of one, which transformers would put on a model with random weights.
    """
    config = _config_of(source, hub_arguments)
    options: Any = dict(hub_arguments)
    base = source if config else maybe_load_adapters(source, options)[1]
    if base != source and _config_of(base, {}).get("model_type") == FOREIGN_MODEL_TYPE:
        how = f"peft.PeftModel.from_pretrained({cls.__name__}.from_pretrained({str(base)!r}), {str(source)!r})"
        raise ValueError(f"{source} is an adapter of a checkpoint of transformers: load it as {how}.")
    if config.get("model_type") != FOREIGN_MODEL_TYPE:
        return None
    subfolder = hub_arguments.pop("subfolder", "")
    converted = convert_files(local_checkpoint(source, **hub_arguments) / subfolder)
    notes = [note for note in converted.notes if note != NO_MASK_HEAD or issubclass(cls, DetrPanopticForSegmentation)]
    for note in notes:
        logger.warning(note)
    return converted.config_kwargs, weights_for(cls, converted)


def read_foreign_processor(settings: Mapping[str, Any], source: Any, **hub_arguments: Any) -> dict[str, Any]:
    """Translates the settings of a `DetrImageProcessor`, with the stuff labels of the model beside it."""
    path = Path(source)
    config = _config_of(path.parent if path.is_file() else source, hub_arguments)
    labels = {"stuff_label_ids": stuff_labels(config), "category_ids": config.get("category_ids")}
    return processor_settings(settings) | labels


def _config_of(source: Any, hub_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model's config; empty if there is none."""
    try:
        return PreTrainedConfig.get_config_dict(source, **hub_arguments)[0]
    except OSError:
        return {}


def register_pipeline() -> None:
    """Makes `pipeline("image-segmentation")` build our pipeline for our models, and the previous one for others."""
    registered = PIPELINE_REGISTRY.supported_tasks[TASK]
    other: Any = registered["impl"]
    if isinstance(other, str):
        module, _, name = other.rpartition(".")
        other = getattr(import_module(module), name)
    if hasattr(other, "knows_detr_panoptic"):
        return

    class ChoosingPipeline(other):  # `pipeline` reads the other's attributes
        knows_detr_panoptic = True
        _load_video_processor = False  # `pipeline` would ask whether to trust a repository's code

        def __new__(cls, model: Any, **kwargs: Any) -> Any:
            if model.config.model_type == FOREIGN_MODEL_TYPE:
                logger.warning(
                    "This is the DETR of transformers, which does not fuse stuff and has no names for COCO's labels. "
                    "`DetrPanopticImageSegmentationPipeline.from_pretrained` loads the same checkpoint as our model."
                )
            chosen = DetrPanopticImageSegmentationPipeline if model.config.model_type == MODEL_TYPE else other
            return chosen(model=model, **kwargs)

    registered["impl"] = ChoosingPipeline
