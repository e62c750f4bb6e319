"""`detr-panoptic demo`: the model that ships, on pictures it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import BUNDLED
from .frame import PROGRAM, CommandError, add_command
from .sources import SCENE_SIDE

if TYPE_CHECKING:
    import argparse

    from datasets import Dataset
    from PIL import Image

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .frame import CommandParser

SHIPPED_MODEL = BUNDLED
"""A small model trained on generated scenes; configs/scenes_320.yaml says how to make it again."""
UNSEEN_SEED = 77_000_000  # training draws its scenes from seeds below
SHOWN = 4  # scenes in the picture
SCALE = 2  # enlargement, for readable labels
ROW_GAP = 6  # pixels between them
DESCRIPTION = """
Segment generated scenes with the small model that ships with the package, measure PQ (panoptic quality), and write a
picture: scene, truth and prediction side by side. Needs no network, no data and about ten seconds.
"""
EXAMPLES = """
detr-panoptic demo
detr-panoptic demo --scenes 500 --output demo_500.png
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="see it work, without data or network",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("--scenes", type=int, default=16, metavar="N", help="scenes to segment and measure")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other scenes for another number")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), metavar="FILE", help="the picture")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    if arguments.scenes < 1 or arguments.seed < 0:
        raise CommandError(
            f"`--scenes` must be at least 1 and `--seed` 0, got {arguments.scenes} and {arguments.seed}."
        )
    if not arguments.output.suffix:
        raise CommandError(f"`--output {arguments.output}` must name a picture, such as demo.png.")

    import time

    from rich.console import Console

    from ..data import PanopticData
    from ..evaluation import evaluate
    from ..scenes.dataset import SCENE_CATEGORIES, scenes_dataset

    console = Console(highlight=False)
    console.print("A small model trained on generated scenes ships with the package; it has not seen these.")
    model, processor = load_shipped_model()
    scenes = scenes_dataset(arguments.scenes, seed=UNSEEN_SEED + arguments.seed, height=SCENE_SIDE, width=SCENE_SIDE)
    started = time.perf_counter()
    evaluation = evaluate((model, processor), PanopticData(scenes, SCENE_CATEGORIES), average_precision=False)
    seconds = time.perf_counter() - started
    console.print(evaluation.table(), markup=False)
    console.print(f"{len(scenes)} scenes of {SCENE_SIDE}x{SCENE_SIDE} pixels in {seconds:.1f} s")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw_results(model, processor, scenes.select(range(min(SHOWN, len(scenes))))).save(arguments.output)
    console.print(f"Look at {arguments.output}. For photographs: {PROGRAM} predict --help")
    return 0


def load_shipped_model() -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """The model that ships, in float32 and evaluation mode, and its image processor."""
    import torch

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.old_loading import without_progress_bars
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

    with without_progress_bars():
        model = DetrPanopticForSegmentation.from_pretrained(SHIPPED_MODEL, dtype=torch.float32)
    return model.eval(), DetrPanopticImageProcessor.from_pretrained(SHIPPED_MODEL)


def draw_results(
    model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, scenes: Dataset
) -> Image.Image:
    """One picture: for each scene a row of scene, truth and prediction."""
    import torch
    from PIL import Image

    from ..data import segmentation_ids
    from ..scenes import SCENE_CATEGORIES
    from ..visualization import draw_side_by_side

    rows = []
    for scene in scenes:
        with torch.inference_mode():
            output = model(**processor(scene["image"], return_tensors="pt"))
        image = scene["image"].resize([SCALE * side for side in scene["image"].size], Image.Resampling.BICUBIC)
        prediction = processor.post_process_panoptic_segmentation(output, target_sizes=[image.size[::-1]])[0]
        ids = segmentation_ids(scene["segmentation"]).repeat(SCALE, 0).repeat(SCALE, 1)
        truth = {"segmentation": ids, "segments_info": scene["segments_info"]}
        rows.append(draw_side_by_side(image, truth, prediction, SCENE_CATEGORIES.id2label))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + ROW_GAP for row in rows) - ROW_GAP), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * (row.height + ROW_GAP)))
    return sheet
