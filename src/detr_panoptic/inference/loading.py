"""Loading of models that users name: a folder or a repository on the Hugging Face Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ..data.categories import Categories
from ..data.hub_names import hub_name
from ..data.plain_text import first_line, listing
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

logger = logging.getLogger(__name__)

MODEL_TYPES = ("detr_panoptic", "detr")  # `model_type` of our configurations, and of transformers' DETR


def load(
    source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype | None = None
) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """Loads a model in evaluation mode and its image processor.

    Args:
        source: a folder, or the name of a repository on the Hub; checkpoints of transformers' DETR are converted.
        device: "auto" takes a GPU if there is one.
        dtype: of the computation, such as "bfloat16"; None: float32, whatever the checkpoint was saved in.

    Raises:
        ValueError: there is no such model or device, or the checkpoint does not fit its configuration or has weights
            that are not finite.

    Examples:
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> model, processor = load(BUNDLED, device="cpu")
    """
    source = str(source)
    target = find_device(device)
    config = _read_config(source)
    if config.get("model_type") not in MODEL_TYPES:  # transformers would continue with random weights
        raise ValueError(
            f"`model` {source!r} must be of type {' or '.join(MODEL_TYPES)}, got {config.get('model_type')!r}."
        )
    logger.info("loading %s", source)
    kwargs: dict[str, Any] = {"dtype": _dtype(dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet_transformers():
            loaded: Any = DetrPanopticForSegmentation.from_pretrained(source, **kwargs)
            model, report = loaded
            # The model's own labels are authoritative: another program's processor may not tell stuff from things.
            processor = DetrPanopticImageProcessor.from_pretrained(
                source, stuff_label_ids=model.config.stuff_label_ids, category_ids=model.config.category_ids
            )
    except Exception as error:  # transformers, safetensors, torch and timm raise errors of their own
        is_invalid = type(error).__name__.startswith("StrictDataclass")  # its first line names the check alone
        reason = first_line((is_invalid and error.__cause__) or error)
        raise ValueError(f"`model` {source!r} cannot be loaded: {reason}") from error
    if config["model_type"] == MODEL_TYPES[0]:
        _check_fit(source, model, report)
    return converted(model, source, None).to(target).eval(), processor


def converted(model: Any, source: str | Path, dtype: Any) -> DetrPanopticForSegmentation:
    """Returns a model read from `source` in a precision, None its own; ValueError if its weights are not finite."""
    model = model if dtype is None else model.to(_dtype(dtype))
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"`model` {str(source)!r} has weights that are not finite in {model.dtype}: {listing(broken)}."
        )
    return model


def find_device(name: str | torch.device) -> torch.device:
    """Returns the device of PyTorch with this name, or the best one for "auto"; ValueError if it does not work."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).partition(". ")[0]
        raise ValueError(
            f"`device` must be auto, cpu, cuda, cuda:1, mps … and work on this machine, got {str(name)!r}: {reason}"
        ) from error
    return device


def model_categories(config: PreTrainedConfig) -> Categories:
    """Returns the names, kinds and category ids of a model's labels."""
    id2label = {int(label): name for label, name in (config.id2label or {}).items()}
    return Categories.from_labels(id2label, config.stuff_label_ids, config.category_ids)


def _read_config(source: str) -> dict[str, Any]:
    folder = Path(source)
    if folder.is_file():
        raise ValueError(
            f"`model` must be a folder or a name on the Hub, got the file {source!r}; `convert_checkpoint` turns "
            "checkpoint files into folders."
        )
    for name in ("config.json", "preprocessor_config.json"):
        if folder.is_dir() and not (folder / name).is_file():
            raise ValueError(
                f"`model` must be a folder with a model and image processor, but {source!r} has no {name}."
            )
    if not folder.is_dir() and not hub_name(source):
        raise ValueError(f"`model` must be an existing folder or a name on the Hub (OWNER/NAME), got {source!r}.")
    try:
        config: Any = PreTrainedConfig.get_config_dict(source)[0]
    except Exception as error:
        where = "cannot be loaded" if folder.is_dir() else "is not a folder here and could not be fetched from the Hub"
        raise ValueError(f"`model` {source!r} {where}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"`model` {source!r} has a config.json that is not an object.")
    return config


def can_be_read(source: str) -> bool:
    """Returns whether there is a model of this name, here or on the Hub."""
    try:
        return bool(_read_config(source))
    except ValueError:
        return False


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    found: Any = torch.float32 if dtype is None else getattr(torch, str(dtype), dtype)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"`dtype` must be float32, bfloat16, float16 or auto, got {dtype!r}.")
    return found


def _check_fit(source: str, model: DetrPanopticForSegmentation, report: dict[str, Any]) -> None:
    """Raises ValueError for weights that transformers would initialize at random or ignore."""
    misfits = sorted(f"{name} {tuple(saved)}, not {tuple(made)}" for name, saved, made in report["mismatched_keys"])
    shapes = f"has shapes that contradict its config.json ({model.config.num_labels} labels) in"
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    for names, problem in ((misfits, shapes), (missing, "lacks"), (unexpected, "has no place for")):
        if names:
            raise ValueError(f"`model` {source!r} {problem} weights: {listing(names)}.")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppresses transformers' progress bar and its table of mismatched weights, which `_check_fit` replaces."""
    library = logging.getLogger("transformers")
    level, has_bar = library.level, transformers_logging.is_progress_bar_enabled()
    library.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        library.setLevel(level)
        if has_bar:
            transformers_logging.enable_progress_bar()
