"""Models and devices as the user names them on the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands.frame import PROGRAM, CommandError, explain
from ..data.hub_names import hub_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedConfig

    from ..data.categories import Categories
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

COCO_CHECKPOINT = "facebook/detr-resnet-50-panoptic"
PROCESSOR_FILE = "preprocessor_config.json"
LOADED_TYPES = ("detr_panoptic", "detr")  # `model_type` of our configurations, and of transformers' DETR


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, by default the published model for photographs, to be read by `load_model`."""
    parser.add_argument(
        "--model",
        default=COCO_CHECKPOINT,
        metavar="MODEL",
        help="folder of a saved model, or its name on the Hugging Face Hub, from which it is fetched once",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, to be read by `resolve_device`."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps …; auto takes a GPU if there is one"
    )


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: a device of torch, or "auto".

    Raises:
        CommandError: there is no such device on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"`--device {name}` is no device: expected auto, cpu, cuda, cuda:1, mps …") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"`--device {name}`: torch finds {torch.cuda.device_count()} CUDA GPUs on this machine.")
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(
            f"`--device {name}` does not work on this machine: {explain(error).partition('. ')[0]}"
        ) from error
    return device


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for a file or two that are read or written at once."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_model(
    source: str, device: torch.device, *, dtype: str = "float32"
) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """A model in evaluation mode on its device, and its image processor.

    Args:
        source: a folder with a saved model, or the name of a repository on the Hugging Face Hub.
        device: where the model goes.
        dtype: name of the torch type it computes in, whatever it was saved in.

    Raises:
        CommandError: there is no model, it is another one, or a weight is not finite.
    """
    folder = Path(source)
    if folder.is_file():
        raise CommandError(
            f"`--model {source}` is a file; `{PROGRAM} convert {source} FOLDER` makes the folder that is needed."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(f"`--model {source}` is a folder without a config.json: no model was saved there.")
    if not folder.is_dir() and not hub_name(source):
        raise CommandError(f"`--model {source}` is no folder here, and no name on the Hub (those read OWNER/NAME).")

    import torch
    from transformers import PreTrainedConfig

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor

    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
        _check_files(source, folder, config)
        is_converted = config["model_type"] != LOADED_TYPES[0]
        # Unasked, a checkpoint saved in half precision would be loaded in it.
        model = load_weights(
            source, called=f"`--model {source}`", dtype=getattr(torch, dtype), is_converted=is_converted
        )
        # The model knows its labels best: a processor saved by another program may not tell stuff from things.
        processor = DetrPanopticImageProcessor.from_pretrained(
            source, stuff_label_ids=model.config.stuff_label_ids, category_ids=model.config.category_ids
        )
    except CommandError:
        raise
    except Exception as error:  # of transformers, safetensors, torch and timm, each with its own
        if folder.is_dir():
            raise CommandError(f"`--model {source}` cannot be loaded: {_reason(error)}") from error
        message = f"`--model {source}` is no folder here, and could not be fetched from the Hub: {explain(error)}"
        if source == COCO_CHECKPOINT:  # nobody may have asked for it
            message = (
                f"{source}, the model for photographs, could not be fetched from the Hub; "
                f"`--model FOLDER` takes another. {explain(error)}"
            )
        raise CommandError(message) from error
    return model.to(device).eval(), processor


def load_weights(
    source: str, *, called: str, dtype: torch.dtype | str, is_converted: bool = False
) -> DetrPanopticForSegmentation:
    """A model all of whose weights are in its checkpoint, have a place and are numbers.

    Args:
        source: folder or name on the Hub.
        called: that, as the user knows it, for the errors.
        dtype: of the weights; "auto": as they were saved.
        is_converted: it is another DETR; what that lacks is said when it is converted.

    Raises:
        CommandError: a weight is missing, left over, of another shape or not finite.
    """
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

    with without_progress_bars(), _quiet_loading():
        loaded: Any = DetrPanopticForSegmentation.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model: DetrPanopticForSegmentation = loaded[0]
    if not is_converted:
        _check_fit(called, model, loaded[1])
    _check_finite(called, model)
    return model


def _check_finite(called: str, model: DetrPanopticForSegmentation) -> None:
    """Raises CommandError for weights that are no numbers: comparisons with them find nothing and call it a result."""
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise CommandError(f"{called} has weights that are not finite in {model.dtype}: {_some(broken)}.")


def _check_files(source: str, folder: Path, config: Any) -> None:
    """Raises CommandError unless the configuration is of a model of ours, with what belongs beside it."""
    if not isinstance(config, dict):
        raise CommandError(f"`--model {source}` has a config.json that is no object.")
    model_type = config.get("model_type")
    if model_type not in LOADED_TYPES:  # transformers would go on with random weights
        raise CommandError(f"`--model {source}` is of type {model_type!r}, not {' or '.join(LOADED_TYPES)}.")
    if folder.is_dir() and not (folder / PROCESSOR_FILE).is_file():
        raise CommandError(f"`--model {source}` has no {PROCESSOR_FILE}: save the image processor beside the model.")


def _check_fit(called: str, model: DetrPanopticForSegmentation, report: dict[str, Any]) -> None:
    """Raises CommandError unless the weights are those that the configuration asks for.

    transformers draws at random what is missing and goes on without what is left over.
    """
    misfits = sorted(f"{name} {tuple(saved)}, not {tuple(made)}" for name, saved, made in report["mismatched_keys"])
    if misfits:
        raise CommandError(
            f"{called} has weights of other shapes than its config.json makes them "
            f"({model.config.num_labels} labels): {_some(misfits)}."
        )
    for keys, what in (("missing_keys", "lacks"), ("unexpected_keys", "has no place for")):
        if report[keys]:
            raise CommandError(f"{called} {what} weights: {_some(sorted(report[keys]))}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """Why a folder cannot be loaded, where the libraries' own words would puzzle or advise to trust it."""
    kind = type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are not made of tensors and plain values alone."
    if kind == "SafetensorError":
        return f"its weights are no safetensors file, or only a part of one ({explain(error).partition(': ')[2]})."
    return explain(error)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers from printing tables of weights that do not fit: `_check_fit` says it in a line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a file that is refused anyway
            yield
    finally:
        logger.setLevel(level)


def model_categories(config: PreTrainedConfig) -> Categories:
    """Names, kinds and category ids of a model's labels."""
    from ..data.categories import Categories

    id2label = {int(label): name for label, name in (config.id2label or {}).items()}
    return Categories.from_labels(id2label, config.stuff_label_ids, config.category_ids)


def fingerprint(model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor) -> str:
    """A text that another one has as soon as a weight, a label or a setting of the image processor differs."""
    import torch

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = model.config
    for value in (config.id2label, config.stuff_label_ids, config.category_ids, processor.to_dict()):
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()
