"""Recipes: settings for a purpose, from which a run changes what it wants.

The paper's numbers are those of arXiv 2005.12872, sections 4 and A.4, at 64 images per update. Where a run has another
effective batch, a recipe's rates are multiplied with the square root of the ratio: AdamW divides each gradient by its
own scale, so that a step's noise, not its mean, is what a batch changes (Malladi et al., arXiv 2205.10287). The
linear rule is for plain gradient descent.
"""

import difflib
from dataclasses import dataclass, replace

from .arguments import ModelArguments, OptimizationArguments, TrainingArguments

FEW_IMAGES = 10_000
"""A transformer from scratch overfits fewer: the paper trained on 118 000."""
COCO_CHECKPOINT = "facebook/detr-resnet-50-panoptic"


@dataclass(frozen=True)
class Recipe:
    """A purpose and its settings."""

    description: str
    arguments: TrainingArguments


PAPER = OptimizationArguments(rate_scaling="sqrt", reference_batch=64)  # the other defaults are the paper's
FINETUNING = replace(PAPER, epochs=50, schedule="cosine", warmup_steps=200)
PRETRAINED_BACKBONE = ModelArguments(backbone_weights="timm")

RECIPES = {
    "boxes": Recipe(
        "the paper's first stage: the detector alone, things and stuff as boxes",
        TrainingArguments(model=replace(PRETRAINED_BACKBONE, stage="boxes"), optimization=PAPER),
    ),
    "masks": Recipe(
        "the paper's second stage: the mask head alone on the frozen detector of the first (`--model`)",
        TrainingArguments(
            model=ModelArguments(stage="masks"), optimization=replace(PAPER, epochs=25, drop_at=15 / 25)
        ),
    ),
    "joint": Recipe(
        "boxes and masks together for the paper's 300 epochs",
        TrainingArguments(model=PRETRAINED_BACKBONE, optimization=PAPER),
    ),
    "finetune": Recipe(
        "your own classes from COCO weights: rows of the class head go by name, queries stay",
        TrainingArguments(model=ModelArguments(model=COCO_CHECKPOINT), optimization=FINETUNING),
    ),
    "finetune-small": Recipe(
        "as finetune, for fewer than 1 000 images: frozen backbone, averaged weights, stops when PQ stays",
        TrainingArguments(
            model=ModelArguments(model=COCO_CHECKPOINT, freeze_backbone=True),
            optimization=replace(FINETUNING, epochs=100, warmup_steps=50, ema_decay=0.999, patience=20),
        ),
    ),
    "from-scratch": Recipe(
        "a new transformer on a pretrained backbone, 10 000 images or more; calibrated mask head, aids, cosine",
        TrainingArguments(
            model=replace(PRETRAINED_BACKBONE, calibrate=True, aids=True),
            optimization=replace(PAPER, schedule="cosine", warmup_steps=1000),
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(str(name), RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(RECIPES)}."
        raise ValueError(f"`{name}` is no recipe; {hint}")
    return RECIPES[name]
