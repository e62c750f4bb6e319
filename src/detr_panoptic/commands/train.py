"""`detr-panoptic train`: annotated images in, a checkpoint that `from_pretrained` reads out.

The one place where data, evaluation and training meet.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..training.settings import SUBJECTS, recipe_names, setting_names
from .frame import add_command

if TYPE_CHECKING:
    from .frame import CommandParser

EXIT_CODE_OF_SIGNALS = 128  # of a shell, plus the number of the signal
DESCRIPTION = """
Train on images with panoptic annotations. DATA is a folder, a file or a dataset on the Hub in one of several formats
(docs/data.md), or `scenes` for generated pictures.

Every option is also a key of the YAML file that --config names; flags win over the file, the file over the recipe. On
several GPUs: accelerate launch scripts/train.py with the same options.

The output folder gets the best model by PQ and its image processor (read it with from_pretrained), metrics.jsonl,
checkpoints to go on from, training.yaml with the settings, and in the end training_summary.md and a model card. A run
that was stopped goes on when it is started again the same way; exit code 143 says that SIGTERM stopped it.
"""
EXAMPLES = """
detr-panoptic train --data my_data --recipe finetune --output my_model --epochs 50
detr-panoptic train --data coco --split train2017 --validation-split val2017 --recipe joint --dry-run
detr-panoptic train --config configs/scenes.yaml
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Adds the command and its options."""
    parser = add_command(
        subparsers, "train", run, summary="train on your own images", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.usage = "%(prog)s --data DATA [--recipe NAME] [--config FILE] [option ...]"  # all would fill a page
    parser.add_argument("--dry-run", action="store_true", help="show the plan of the run")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in the output folder")
    parser.add_argument("--recipe", metavar="NAME", help="defaults for a purpose: " + ", ".join(recipe_names()))
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below")
    for kind in SUBJECTS.values():
        group = parser.add_argument_group(str(kind.__doc__).rstrip("."))
        for f in fields(kind):
            flag: dict[str, Any] = {"metavar": f.name.upper()}
            if f.type in (bool, "bool"):
                flag = {"action": argparse.BooleanOptionalAction}
            elif f.name == "batch_size":
                flag["type"] = lambda text: text if text == "auto" else int(text)
            elif f.type in (int, int | None):
                flag["type"] = int
            text = f.metadata["help"] + ("" if f.default is None or f.default is False else f" (default: {f.default})")
            group.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **flag)


def run(parsed: argparse.Namespace) -> int:
    """Runs the command."""
    import logging

    from ..training import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    given = {name: getattr(parsed, name) for name in setting_names() if hasattr(parsed, name)}
    options = {name: getattr(parsed, name) for name in ("recipe", "config", "dry_run", "overwrite")}
    result = train(given.pop("data", None), output=given.pop("output", None), **options, **given)
    if parsed.dry_run:
        print(result)
        return 0
    return 0 if result.is_finished else EXIT_CODE_OF_SIGNALS + int(result.stop_signal or 0)
