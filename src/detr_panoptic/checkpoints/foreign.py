"""Transformers' DETR, loaded by `from_pretrained` of this package's models."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from ..configuration_detr_panoptic import DetrPanopticConfig
from ..convert import ConvertedCheckpoint, convert_checkpoint, fetch_checkpoint
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticPreTrainedModel

NEW_MASK_HEAD = "The checkpoint has no mask head. A new one was initialized and has to be trained."
Foreign = tuple[dict[str, Any], dict[str, Tensor], list[str]]


def read_foreign(cls: type[DetrPanopticPreTrainedModel], source: Any, **hub_arguments: Any) -> Foreign | None:
    """Reads transformers' DETR from a folder or from the Hub.

    Args:
        cls: the class that is being loaded.
        source: a folder or the name of a repository.
        **hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Returns:
        Arguments of `DetrPanopticConfig`, a state dict for `cls` and notes for the log. None if the source is not
        transformers' DETR, or cannot be found, which loading then reports.

    Raises:
        ValueError: parameters are missing or left over; lists them.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, **hub_arguments)
    except OSError:
        return None
    if config.get("model_type") != "detr":
        return None
    folder = Path(source)
    subfolder = hub_arguments.pop("subfolder", "")
    if not folder.is_dir():
        folder = fetch_checkpoint(str(source), **hub_arguments)
    return fields_for(cls, convert_checkpoint(folder / subfolder))


def fields_for(cls: type[DetrPanopticPreTrainedModel], converted: ConvertedCheckpoint) -> Foreign:
    """Returns what a reader returns, given a converted checkpoint.

    Raises:
        ValueError: parameters are missing or left over; lists them.
    """
    with torch.device("meta"):
        model = DetrPanopticForSegmentation(DetrPanopticConfig(**converted.config_kwargs))
    converted.check_fit(model.state_dict())
    if issubclass(cls, DetrPanopticForSegmentation):
        notes = [*converted.notes, NEW_MASK_HEAD] if converted.is_detection_only else list(converted.notes)
        return dict(converted.config_kwargs), converted.state_dict, notes
    prefix = cls.base_model_prefix + "."
    states = {name.removeprefix(prefix): x for name, x in converted.state_dict.items() if name.startswith(prefix)}
    return dict(converted.config_kwargs), states, list(converted.notes)


def build_model(converted: ConvertedCheckpoint, **kwargs: Any) -> DetrPanopticForSegmentation:
    """Builds a model from a converted checkpoint; takes the arguments of `from_pretrained`.

    Raises:
        ValueError: parameters are missing or left over; lists them.
    """
    config_fields, state_dict, _ = fields_for(DetrPanopticForSegmentation, converted)
    config = DetrPanopticConfig(**config_fields)
    return DetrPanopticForSegmentation.from_pretrained(None, config=config, state_dict=state_dict, **kwargs)
