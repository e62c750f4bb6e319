"""`detr-panoptic train`: annotated images in, a checkpoint that `from_pretrained` reads out.

The one place where data, evaluation and training meet.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.arguments import DataArguments, TrainingArguments, add_training_options, read_training_arguments
from .frame import CommandError, add_command

if TYPE_CHECKING:
    import argparse

    import torch
    from datasets import Dataset

    from ..categories import Categories
    from ..data import PanopticCollator, RandomAugmentation
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .frame import CommandParser

CALIBRATION_IMAGES = 8
SCENE_SIZE_LIMIT = 640  # pixels; larger scenes teach nothing more
VALIDATION_SEED_OFFSET = 1_000_003  # scenes that are measured are never those that are learned
DESCRIPTION = """
Train on images with panoptic annotations. DATA is a folder in COCO's panoptic layout (`images/`, `panoptic/`,
`panoptic.json`; or COCO's own, with --split), or `scenes` for generated pictures.

Every option is also a key of the YAML file that --config names; flags win. On several GPUs:
accelerate launch scripts/train.py with the same options.

The output folder gets the model and its image processor (read it with from_pretrained), metrics.jsonl and
training.yaml, the settings of the run.
"""
EXAMPLES = """
detr-panoptic train --config configs/scenes_small.yaml
detr-panoptic train --data my_data --model facebook/detr-resnet-50-panoptic --output my_model --epochs 50
detr-panoptic train --data coco --split train2017 --validation-data coco --validation-split val2017
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers, "train", run, summary="train on your own images", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.usage = "%(prog)s --data DATA [--config FILE] [option ...]"  # all of them would fill a page
    add_training_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    train_from_arguments(read_training_arguments(parsed))
    return 0


def train_from_arguments(arguments: TrainingArguments) -> dict[str, float]:
    """Builds everything that the settings name, trains, saves; returns the last metrics.

    Raises:
        CommandError: no data is named.
        ValueError: a setting or the data are wrong; before the first step.
    """
    import logging

    import yaml
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader

    from ..data import PanopticCollator
    from ..training.calibration import calibrate_mask_head
    from ..training.loop import train
    from ..training.optimization import build_optimizer, build_schedule

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(arguments.run.output)
    accelerator = Accelerator(mixed_precision=arguments.run.mixed_precision)
    set_seed(arguments.run.seed)
    dataset, categories = read_data(arguments.data, arguments.run.seed, validation=False)
    measures_others = arguments.data.validation_data is not None or arguments.data.data == "scenes"
    validation = read_data(arguments.data, arguments.run.seed, validation=True)[0] if measures_others else dataset
    model, processor = build_model(arguments, categories)
    collator = PanopticCollator(processor, build_augmentation(arguments.data), seed=arguments.run.seed)
    loader = DataLoader(
        dataset,
        batch_size=arguments.optimization.batch_size,
        shuffle=True,
        collate_fn=partial(_collate, collator),
        num_workers=arguments.data.workers,
        persistent_workers=arguments.data.workers > 0,
    )
    if arguments.model.calibrate and arguments.model.model is None:
        first = _collate(collator, [dataset[i] for i in range(min(CALIBRATION_IMAGES, len(dataset)))])
        calibrate_mask_head(model, first["pixel_values"], first["pixel_mask"])
    optimizer = build_optimizer(model, arguments.optimization)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    updates_per_epoch = -(-len(loader) // arguments.optimization.gradient_accumulation_steps)
    epochs = arguments.optimization.epochs
    total_steps = min(updates_per_epoch * epochs, arguments.optimization.max_steps or updates_per_epoch * epochs)
    schedule = build_schedule(optimizer, arguments.optimization, total_steps=total_steps)

    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "training.yaml").write_text(yaml.safe_dump(arguments.to_dict(), sort_keys=False))
    share = validation.shard(accelerator.num_processes, accelerator.process_index, contiguous=True)

    def evaluate(current: torch.nn.Module) -> dict[str, float]:
        metrics = measure(
            accelerator.unwrap_model(current),
            processor,
            share,
            categories,
            sum_over_processes=partial(accelerator.reduce, reduction="sum"),
        )
        if accelerator.is_main_process:
            accelerator.unwrap_model(current).save_pretrained(output)
            processor.save_pretrained(output)
        return metrics

    metrics = train(
        model, loader, optimizer, schedule, accelerator, arguments, evaluate=evaluate, start_epoch=collator.set_epoch
    )
    accelerator.end_training()
    return metrics


def measure(
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    records: Dataset,
    categories: Categories,
    **options: Any,
) -> dict[str, float]:
    """PQ, SQ and RQ of all classes, and PQ of things and of stuff; options of `evaluate_model`."""
    from ..evaluation import evaluate_model
    from ..evaluation.panoptic_quality import panoptic_quality

    stats = evaluate_model(model, processor, records, categories, **options)
    result = panoptic_quality(stats, category_ids=categories.category_ids, is_thing=categories.is_thing)
    return {
        **{name: result["All"][name] for name in ("pq", "sq", "rq")},
        "pq_things": result["Things"]["pq"],
        "pq_stuff": result["Stuff"]["pq"],
    }


def read_data(arguments: DataArguments, seed: int, *, validation: bool) -> tuple[Dataset, Categories]:
    """The records that are learned, or those that are measured, and their categories.

    Raises:
        CommandError: no data is named.
        ValueError: there is none, or it is not in the layout.
    """
    source, split = arguments.data, arguments.split
    if source is None:
        raise CommandError("`--data` is needed: a folder in COCO panoptic layout, or `scenes`.")
    if validation and arguments.validation_data is not None:
        source, split = arguments.validation_data, arguments.validation_split
    elif validation and source == "scenes":
        seed += VALIDATION_SEED_OFFSET
    if source == "scenes":
        from ..data.scenes import SCENE_CATEGORIES, scenes_dataset

        side = min(arguments.short_side, SCENE_SIZE_LIMIT)
        count = arguments.limit or 1000
        return scenes_dataset(
            min(count, 100) if validation else count, seed=seed, height=side, width=side
        ), SCENE_CATEGORIES

    from ..data.coco import find_coco_panoptic, read_coco_panoptic

    dataset, categories = read_coco_panoptic(*find_coco_panoptic(source, split=split), limit=arguments.limit)
    if len(dataset) == 0:
        raise ValueError(f"`data` {source!r} holds no annotated image.")
    return dataset, categories


def build_model(
    arguments: TrainingArguments, categories: Categories
) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """The model, new or from a checkpoint, and its processor."""
    from ..configuration_detr_panoptic import DetrPanopticConfig
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from ..training.backbone_weights import load_backbone_weights

    settings, data = arguments.model, arguments.data
    size = {"shortest_edge": data.short_side, "longest_edge": data.long_side}
    labels: dict[str, Any] = {
        "id2label": categories.id2label,
        "label2id": {name: label for label, name in categories.id2label.items()},
        "stuff_label_ids": categories.stuff_label_ids,
        "category_ids": list(categories.category_ids),
    }
    if settings.model is not None:
        model = DetrPanopticForSegmentation.from_pretrained(settings.model, **labels, ignore_mismatched_sizes=True)
        processor = DetrPanopticImageProcessor.from_pretrained(settings.model, size=size)
        return model, DetrPanopticImageProcessor.for_model(model.config, **_image_statistics(processor), size=size)
    fields = DetrPanopticConfig.__dataclass_fields__
    architecture = {name: value for name, value in asdict(settings).items() if name in fields}
    config = DetrPanopticConfig(**architecture, **labels)
    model = DetrPanopticForSegmentation(config)
    if settings.backbone_weights is not None:
        load_backbone_weights(model.model.backbone, settings.backbone, settings.backbone_weights)
    statistics = model.model.backbone.image_statistics
    return model, DetrPanopticImageProcessor.for_model(config, **statistics, size=size)


def build_augmentation(arguments: DataArguments) -> RandomAugmentation | None:
    """The augmentation of the settings; lengths are the paper's, in proportion to the short side."""
    from ..data import RandomAugmentation
    from ..data.augmentation import PAPER_CROP_RANGE, PAPER_CROP_SCALES, PAPER_SCALES

    if arguments.augmentation == "none":
        return None
    max_size = max(arguments.long_side, arguments.short_side + 1)  # torchvision wants it above the short side
    if arguments.augmentation == "flip":
        return RandomAugmentation((arguments.short_side,), max_size=max_size, crop_probability=0.0, crop_scales=(1,))
    ratio = arguments.short_side / max(PAPER_SCALES)
    return RandomAugmentation(
        [round(ratio * scale) for scale in PAPER_SCALES],
        max_size=max_size,
        crop_scales=[round(ratio * scale) for scale in PAPER_CROP_SCALES],
        crop_range=(round(ratio * PAPER_CROP_RANGE[0]), round(ratio * PAPER_CROP_RANGE[1])),
    )


def _image_statistics(processor: DetrPanopticImageProcessor) -> dict[str, Any]:
    return {"image_mean": processor.image_mean, "image_std": processor.image_std}


def _collate(collator: PanopticCollator, records: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(collator(records))  # a plain dict: Accelerate then moves the labels too
