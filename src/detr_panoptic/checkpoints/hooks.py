"""Registers the package with transformers, and lets `from_pretrained` read checkpoints of transformers' DETR.

Model files on the Hub know nothing of this: their lists of readers are empty there, and a model's config.json names
its pipeline. The package's import calls the functions of this file.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import logging

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticPreTrainedModel
from ..pipeline_detr_panoptic import TASK, DetrPanopticImageSegmentationPipeline
from .configs import stuff_labels
from .conversion import NO_MASK_HEAD, convert_files, weights_for
from .names import StateDict
from .reading import fetch_checkpoint, processor_settings

logger = logging.get_logger(__name__)
MODEL_TYPE, FOREIGN_MODEL_TYPE = "detr_panoptic", "detr"


def register_readers() -> None:
    """Appends the readers to the lists of the model and of the image processor, once."""
    if read_foreign_model not in DetrPanopticPreTrainedModel.foreign_readers:
        DetrPanopticPreTrainedModel.foreign_readers.append(read_foreign_model)
        DetrPanopticImageProcessor.foreign_readers.append(read_foreign_processor)


def read_foreign_model(
    cls: type[DetrPanopticPreTrainedModel], source: Any, **hub_arguments: Any
) -> tuple[dict[str, Any], StateDict, list[str]] | None:
    """Reads and converts transformers' DETR from a folder or the Hub.

    Args:
        cls: the class to load, whose weights are wanted.
        source: a folder, or OWNER/NAME on the Hub.
        **hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Returns:
        Arguments of `DetrPanopticConfig`, the weights in our names and notes on what was assumed; None if the source
        is not a DETR of transformers, or does not exist.

    Raises:
        ValueError: the checkpoint has weights that have no place here, or lacks some.
    """
    config = _config_of(source, hub_arguments)
    if config.get("model_type") != FOREIGN_MODEL_TYPE:
        return None
    subfolder = hub_arguments.pop("subfolder", "")
    folder = Path(source)
    if not folder.is_dir():
        folder = fetch_checkpoint(str(source), **hub_arguments)
    converted = convert_files(folder / subfolder)
    notes = [note for note in converted.notes if note != NO_MASK_HEAD or issubclass(cls, DetrPanopticForSegmentation)]
    return converted.config_kwargs, weights_for(cls, converted), notes


def read_foreign_processor(settings: Mapping[str, Any], source: Any, **hub_arguments: Any) -> dict[str, Any]:
    """Translates the settings of a `DetrImageProcessor`, with the stuff labels of the model beside it.

    Args:
        settings: what was read from `preprocessor_config.json`.
        source: the file, the folder, or OWNER/NAME on the Hub that they came from.
        **hub_arguments: those of `from_pretrained`.

    Raises:
        ValueError: they belong to the processor of another model.
    """
    path = Path(source)
    config = _config_of(path.parent if path.is_file() else source, hub_arguments)
    labels = {"stuff_label_ids": stuff_labels(config), "category_ids": config.get("category_ids")}
    return processor_settings(settings) | labels


def _config_of(source: Any, hub_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model's config; empty if there is none."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, **hub_arguments)
    except OSError:
        return {}
    return config


def register_pipeline() -> None:
    """Makes `pipeline("image-segmentation")` build our pipeline for our models, and the previous one for others."""
    registered = PIPELINE_REGISTRY.supported_tasks[TASK]
    other: Any = registered["impl"]
    if isinstance(other, str):
        module, _, name = other.rpartition(".")
        other = getattr(import_module(module), name)
    if not getattr(other, "knows_detr_panoptic", False):
        registered["impl"] = _choosing_pipeline(other)


def _choosing_pipeline(other: type[Pipeline]) -> type[Pipeline]:
    """Returns a class that builds our pipeline for our models, and an `other` for others."""

    class ChoosingPipeline(other):  # type: ignore[valid-type, misc]  # `pipeline` reads the other's attributes
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

    return ChoosingPipeline
