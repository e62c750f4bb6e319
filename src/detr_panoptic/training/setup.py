"""From the settings of a training run to its parts: data, model, batches. Imports torch; `train` does it when run."""

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from ..commands.frame import CommandError
from ..configuration_detr_panoptic import DetrPanopticConfig
from ..data import NamedRecords, PanopticCollator, PanopticData
from ..data.augmentation import (
    PAPER_CROP_RANGE,
    PAPER_CROP_SCALES,
    PAPER_SCALES,
    Augmentation,
    LargeScaleJitter,
    RandomAugmentation,
)
from ..data.categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.old_loading import load_model
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..scenes.source import SCENES, read_source
from ..sharing.card import public_name
from .aids import attach_training_aids
from .arguments import DataArguments, TrainingArguments
from .backbone_weights import load_backbone_weights
from .calibration import calibrate as calibrate_model
from .class_head import fit_class_head
from .loop import EpochOrder
from .optimization import freeze
from .plan import DataSummary, summarize
from .recipes import FEW_IMAGES

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 8
KEPT_OF_A_PROCESSOR = (
    "image_mean",
    "image_std",
    "merging",
    "mask_threshold",
    "overlap_mask_area_threshold",
)
"""What a model that is trained on has in common with the checkpoint: how images come in, and how masks are merged."""
SUMMARY_IMAGES = 200  # looked at, evenly spread: of 100 000, all would take minutes
SCENE_SIZE_LIMIT = 640  # pixels; larger scenes teach nothing more
VALIDATION_SEED_OFFSET = 1_000_003  # scenes that are measured are never those that are learned
VALIDATION_SCENES = 100


@dataclass(frozen=True)
class TrainingData:
    """What is learned and what is measured."""

    train: Dataset
    validation: Dataset
    categories: Categories
    train_name: str
    validation_name: str
    summary: DataSummary
    """Of the images that are learned."""

    def describe(self) -> dict[str, str]:
        """A text for each of the two."""
        looked_at = f"; counted in {self.summary.images} of {len(self.train)} images"
        words = self.summary.describe(self.categories)
        return {
            "training": f"{self.train_name}: {words}" + (looked_at if self.summary.images < len(self.train) else ""),
            "validation": f"{len(self.validation)} images, {self.validation_name}"
            + ("; others may fare worse: --validation-data names some" if self.validation is self.train else ""),
        }


def read_data(arguments: DataArguments, seed: int) -> TrainingData:
    """The records that are learned, those that are measured, and their categories.

    Raises:
        CommandError: no data is named.
        ValueError: there is none, it cannot be read, the two have other classes, or no image has a segment.
    """
    if arguments.data is None:
        raise CommandError(f"`--data` is needed: a folder, a dataset on the Hub, or `{SCENES}`.")
    options: dict[str, Any] = {"data_format": arguments.format, "limit": arguments.limit}
    side = min(arguments.short_side, SCENE_SIZE_LIMIT)
    source = arguments.data
    train, categories = read_source(source, scene_side=side, scene_seed=seed, split=arguments.split, **options)
    summary = summarize(_label_ids(train), categories)
    if summary.segments == 0:
        raise ValueError(
            f"`data` {source!r} has no annotated segment in any of the {summary.images} images looked at."
        )
    validation, name = train, "the training images"
    if arguments.validation_data is not None or arguments.validation_split is not None:
        source, split = arguments.validation_data or source, arguments.validation_split
        name = public_name(source, split)
        options |= {"scene_side": side, "scene_seed": seed + VALIDATION_SEED_OFFSET, "split": split}
        validation, _ = _read_with_classes_of(categories, source, **options)
    elif source == SCENES:
        name = "generated scenes that are not learned"
        options["limit"] = min(arguments.limit or VALIDATION_SCENES, VALIDATION_SCENES)
        validation, _ = read_source(source, scene_side=side, scene_seed=seed + VALIDATION_SEED_OFFSET, **options)
    train_name = public_name(arguments.data, arguments.split)
    return TrainingData(train, validation, categories, train_name, name, summary)


def _read_with_classes_of(categories: Categories, source: str, **options: Any) -> PanopticData:
    try:
        return read_source(source, categories=categories, **options)
    except ValueError as error:
        raise ValueError(f"`validation_data` {source!r} does not fit the training data: {error}") from error


def _label_ids(records: Dataset) -> list[list[int]]:
    """Labels of the segments of some images."""
    step = max(1, len(records) // SUMMARY_IMAGES)
    named = NamedRecords(records)
    rows = (named[i] for i in range(0, len(records), step))
    return [[segment["label_id"] for segment in row["segments_info"]] for row in rows]


def build_model(
    arguments: TrainingArguments, data: TrainingData
) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """The model, new or from a checkpoint, with what stays as it is frozen; and its processor.

    Raises:
        CommandError: there is no such checkpoint, or its class head is new and stays frozen.
        ValueError: the architecture or the backbone's weights are wrong.
    """
    size = {"shortest_edge": arguments.data.short_side, "longest_edge": arguments.data.long_side}
    if arguments.model.model is None:
        model, unknown = _new_model(arguments, data.categories), list(data.categories.names)
        inherited: Mapping[str, Any] = model.model.backbone.image_statistics
        if len(data.train) < FEW_IMAGES:
            logger.warning(
                "%d images for a transformer from scratch: below %d, start from a model of COCO instead (--recipe "
                "finetune), or expect it to know these images and no others.",
                len(data.train),
                FEW_IMAGES,
            )
    else:
        model, processor = load_model(arguments.model.model, torch.device("cpu"))
        unknown = fit_class_head(model, data.categories)
        inherited = {name: getattr(processor, name) for name in KEPT_OF_A_PROCESSOR}
        known = len(data.categories) - len(unknown)
        logger.info("class head: %d of %d classes are known to the checkpoint by name", known, len(data.categories))
    if arguments.model.stage == "masks" and unknown:
        raise CommandError(
            "`stage` masks leaves the class head as it is, which has to know every class: "
            + (
                "a model from scratch knows none"
                if arguments.model.model is None
                else f"{arguments.model.model} lacks "
            )
            + ("" if arguments.model.model is None else ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else ""))
            + ". Train the boxes first, then name that model with --model."
        )
    if arguments.model.eos_coefficient is not None:
        model.config.eos_coefficient = arguments.model.eos_coefficient
    if arguments.model.aids and arguments.model.stage != "boxes":  # without masks they have nothing to go by
        attach_training_aids(model)
    freeze(model, arguments.model)
    return model, DetrPanopticImageProcessor.for_model(model.config, **inherited, size=size)


def _new_model(arguments: TrainingArguments, categories: Categories) -> DetrPanopticForSegmentation:
    settings = arguments.model
    fields = DetrPanopticConfig.__dataclass_fields__
    architecture = {name: value for name, value in asdict(settings).items() if name in fields and value is not None}
    config = DetrPanopticConfig(
        **architecture,
        id2label=categories.id2label,
        label2id={name: label for label, name in categories.id2label.items()},
        stuff_label_ids=categories.stuff_label_ids,
        category_ids=list(categories.category_ids),
    )
    model = DetrPanopticForSegmentation(config)
    if settings.backbone_weights is not None:
        load_backbone_weights(model.model.backbone, settings.backbone, settings.backbone_weights)
    return model


@dataclass(frozen=True)
class Batches:
    """The training data as batches, and what has to hear of a new epoch."""

    loader: DataLoader[Any]
    collator: PanopticCollator
    order: EpochOrder
    is_over: torch.Tensor
    """In shared memory: tells workers that a SIGTERM is meant for them."""

    def start_epoch(self, epoch: int) -> None:
        """Takes order and augmentation of this epoch from the next pass on."""
        self.order.epoch = epoch
        self.collator.set_epoch(epoch)

    def end(self) -> None:
        """Lets workers go when the program ends."""
        self.is_over.fill_(1)


def build_batches(arguments: TrainingArguments, data: TrainingData, processor: DetrPanopticImageProcessor) -> Batches:
    """Batches of the training data; what they hold depends on the seed, the epoch and their place alone."""
    seed = arguments.run.seed
    collator = PanopticCollator(processor, build_augmentation(arguments.data), seed=seed)
    order = EpochOrder(len(data.train), seed)
    is_over = torch.zeros((), dtype=torch.int64).share_memory_()
    loader: DataLoader[Any] = DataLoader(
        NamedRecords(data.train),  # type: ignore[arg-type]  # anything with these two methods does
        batch_size=arguments.optimization.batch_size,
        sampler=order,
        collate_fn=partial(collate, collator, with_masks=arguments.model.stage != "boxes"),
        num_workers=arguments.data.workers,
        persistent_workers=arguments.data.workers > 0,
        worker_init_fn=partial(_leave_sigterm_to_the_run, is_over),
        generator=torch.Generator().manual_seed(seed),  # else each pass draws from the generator of the dropout
    )
    return Batches(loader, collator, order, is_over)


def calibrate(model: DetrPanopticForSegmentation, batches: Batches, data: TrainingData) -> None:
    """`training.calibration.calibrate` on the first images."""
    named = NamedRecords(data.train)
    first = collate(batches.collator, [named[i] for i in range(min(CALIBRATION_IMAGES, len(named)))])
    calibrate_model(model, first["pixel_values"], first["pixel_mask"])


def collate(collator: PanopticCollator, records: list[dict[str, Any]], *, with_masks: bool = True) -> dict[str, Any]:
    """Arguments of the model from records; without masks it computes none, and no loss of them."""
    batch = dict(collator(records))  # a plain dict: Accelerate then moves the labels too
    if not with_masks:
        labels = [{name: value for name, value in target.items() if name != "masks"} for target in batch["labels"]]
        batch |= {"labels": labels, "mask_queries": 0}
    return batch


def build_augmentation(arguments: DataArguments) -> Augmentation | None:
    """The augmentation of the settings; lengths are the paper's, in proportion to the short side."""
    if arguments.augmentation == "none":
        return None
    if arguments.augmentation == "jitter":
        return LargeScaleJitter(arguments.long_side)
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


def _leave_sigterm_to_the_run(is_over: torch.Tensor, worker: int) -> None:  # noqa: ARG001  torch passes a number
    # A scheduler signals every process of a job, but torch ends a run whose worker dies before it has saved anything.
    # When the program ends, Python sends the same signal to its workers and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if is_over else None)
