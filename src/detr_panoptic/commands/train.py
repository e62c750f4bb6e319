"""`detr-panoptic train`: annotated images in, a checkpoint that `from_pretrained` reads out.

The one place where data, evaluation and training meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..training.options import add_training_options, read_training_arguments
from .frame import add_command

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

STOPPED = 143  # exit code after SIGTERM, as of a shell
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
    """Add the command and its options."""
    parser = add_command(
        subparsers, "train", run, summary="train on your own images", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.usage = "%(prog)s --data DATA [--recipe NAME] [--config FILE] [option ...]"  # all would fill a page
    parser.add_argument("--dry-run", action="store_true", help="show what would be done and the memory it takes")
    parser.add_argument("--overwrite", action="store_true", help="throw away the run that is in the output folder")
    add_training_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    from ..training.run import TrainingRun

    arguments = read_training_arguments(parsed)
    training = TrainingRun(arguments)
    if parsed.dry_run:
        training.print_plan()
        return 0
    is_finished = training.start(overwrite=parsed.overwrite)
    return 0 if is_finished else STOPPED
