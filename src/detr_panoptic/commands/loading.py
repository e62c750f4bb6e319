"""Models and devices as the user names them on the command line."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .frame import HUB_NAME_PARTS, PROGRAM, CommandError, explain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import torch

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation


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
        raise CommandError(f"`--device {name}` does not work on this machine: {explain(error)}") from error
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


def load_model(source: str, device: torch.device) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """A model in evaluation mode on its device, and its image processor.

    Args:
        source: a folder with a saved model, or the name of a repository on the Hugging Face Hub.
        device: where the model goes.

    Raises:
        CommandError: there is no model, or it is another one.
    """
    folder = Path(source)
    if folder.is_file():
        raise CommandError(
            f"`--model {source}` is a file; `{PROGRAM} convert {source} FOLDER` makes the folder that is needed."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(f"`--model {source}` is a folder without a config.json: no model was saved there.")
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != HUB_NAME_PARTS):
        raise CommandError(f"`--model {source}` is no folder here, and no name on the Hub (those read OWNER/NAME).")

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

    try:
        with without_progress_bars():
            model = DetrPanopticForSegmentation.from_pretrained(source)
        # The model knows its labels best: a processor saved by another program may not tell stuff from things.
        processor = DetrPanopticImageProcessor.from_pretrained(
            source, stuff_label_ids=model.config.stuff_label_ids, category_ids=model.config.category_ids
        )
    except OSError as error:
        if folder.is_dir():
            raise
        message = f"`--model {source}` is no folder here, and could not be fetched from the Hub: {explain(error)}"
        raise CommandError(message) from error
    return model.to(device).eval(), processor
