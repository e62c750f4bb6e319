"""`detr-panoptic convert`: checkpoints of other DETR implementations become folders that this package loads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.hub_names import hub_name
from ..inference.loading import without_progress_bars
from .frame import PROGRAM, CommandError, add_command, explain

if TYPE_CHECKING:
    from ..configuration_detr_panoptic import DetrPanopticConfig
    from .frame import CommandParser

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
DESCRIPTION = """
Turn a DETR checkpoint of another implementation into a model folder of this package, with the image processor
beside it. Every weight stays the same to the bit. Sources are

  FILE.pth    what facebookresearch/detr publishes and trains, detection-only models included
  FOLDER      what transformers saves for DetrForSegmentation and DetrForObjectDetection
  OWNER/NAME  such a folder on the Hugging Face Hub, which is downloaded

A detection-only model gets a new mask head, which has to be trained.
"""
EXAMPLES = """
detr-panoptic convert detr-r50-panoptic-00ce5173.pth detr_r50
detr-panoptic convert facebook/detr-resnet-50-panoptic detr_r50 --compact
detr-panoptic convert detr-r50-dc5-panoptic.pth detr_r50_dc5 --dilation
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "convert",
        run,
        summary="make a model folder of another DETR's checkpoint",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="file, folder or name on the Hub to read")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder to write the model and its image processor to"
    )
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether it is a DC5 model, which weights cannot tell (default: as the source's config or name says)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="leave out the classes that the dataset never has: of COCO's 250 remain 133; scores rise or stay",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if the model was written."""
    output = arguments.output
    if output.is_file():
        raise CommandError(f"{output} is a file: name a folder to write to.")
    source = _local(arguments.source)
    if output.resolve() == source.resolve():
        raise CommandError("The model would be written over its source: name another folder.")

    from ..checkpoints import build_model
    from ..convert import convert_checkpoint
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor

    converted = convert_checkpoint(source, dilation=arguments.dilation, compact=arguments.compact)
    settings = _processor_settings(source)
    with without_progress_bars():
        model = build_model(converted)
        model.save_pretrained(output)
    processor = DetrPanopticImageProcessor.for_model(model.config, **settings)
    processor.save_pretrained(output)
    _print_notes(converted.notes, is_detection_only=converted.is_detection_only)
    _print_summary(model.config, output)
    return 0


def _local(source: str) -> Path:
    """The file or folder that the user means, fetched from the Hub if need be."""
    path = Path(source)
    if path.exists():
        return path
    if not hub_name(source) or path.suffix in CHECKPOINT_SUFFIXES:
        raise CommandError(f"No such file or folder: {source}")

    from ..convert import fetch_checkpoint

    try:
        return fetch_checkpoint(source)
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{source} is neither here nor could it be fetched from the Hub: {explain(error)}"
        ) from error


def _processor_settings(source: Path) -> dict[str, Any]:
    """Arguments of our image processor from the one that lies in the source's folder, if any."""
    from ..convert import processor_kwargs

    path = (source if source.is_dir() else source.parent) / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        return processor_kwargs(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error


def _print_notes(notes: list[str], *, is_detection_only: bool) -> None:
    """Show what was assumed and what is left to do."""
    from rich.console import Console

    console = Console()
    if is_detection_only:
        notes = [*notes, "The source has no mask head: a new one was made; train it before its masks mean anything."]
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _print_summary(config: DetrPanopticConfig, output: Path) -> None:
    from rich.console import Console

    text = (
        f"Wrote {config.backbone} with {config.num_queries} queries and {config.num_labels} labels to {output}\n"
        f"Try it: {PROGRAM} predict photo.jpg --model {output}"
    )
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
