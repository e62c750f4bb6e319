"""Training augmentation of canonical records, the paper's and large-scale jitter, and their batches.

`RandomAugmentation` follows `make_coco_transforms` of facebookresearch/detr (29901c5) with these differences:
  * every choice follows from the seed alone, so workers and batch order change nothing;
  * boxes and areas are measured on the map after the crop; the reference clips the old boxes, which leaves them loose;
  * the id map is resized to the nearest pixel *center*, aligned with the bilinear filter of the image; the
    reference's "nearest" is off by up to half a pixel.

`LargeScaleJitter` follows Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation" (arXiv 2012.07177), without copy-paste. Difference: the window is cropped before resizing instead of
after, which saves work; the filter sees nothing beyond the border of the window.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812  torchvision's own name for it
from transformers import BatchFeature

from ..image_reading import image_to_tensor
from ..segment_ids import nearest_positions
from .records import Record, measure_segments, segmentation_ids
from .target_batch import TargetBatch, map_target

PAPER_SCALES = tuple(range(480, 801, 32))
PAPER_MAX_SIZE = 1333
PAPER_CROP_SCALES = (400, 500, 600)
PAPER_CROP_RANGE = (384, 600)
JITTER_SIZE = 1024
JITTER_RANGE = (0.1, 2.0)


class Augmentation(ABC):
    """Base class: flips and changes a record at random; the same seed gives the same result."""

    flip_probability: float

    def __call__(self, record: Record, seed: int) -> Record:
        """Augments a canonical record; every choice depends on the seed (`sample_seed`).

        Returns:
            A new record with `image` (PIL), `segmentation`, an (H, W) id map of integers, and the segments that are
            still visible, measured again.

        Raises:
            ValueError: `image` and `segmentation` differ in size.
        """
        image, ids = image_to_tensor(record["image"]), torch.from_numpy(segmentation_ids(record["segmentation"]))
        if image.shape[-2:] != ids.shape:
            raise ValueError(
                f"`segmentation` of image {record['image_id']} must have the size of `image`, "
                f"{tuple(image.shape[-2:])}, got {tuple(ids.shape)}."
            )
        generator = torch.Generator().manual_seed(seed)
        if _fraction(generator) < self.flip_probability:
            image, ids = image.flip(-1), ids.flip(-1)
        image, ids = self._transform(image, ids, generator)
        segments = measure_segments(ids.numpy(), record["segments_info"])
        return {**record, "image": F.to_pil_image(image), "segmentation": ids.numpy(), "segments_info": segments}

    @abstractmethod
    def _transform(self, image: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changes an image (3, H, W) uint8 and its id map (H, W) in the same way."""


@dataclass(frozen=True)
class RandomAugmentation(Augmentation):
    """Flips, resizes and crops at random, as in the paper.

    Raises:
        ValueError: there is no scale, one of `scales` is not below `max_size`, or `crop_range` is empty.

    Examples:
        >>> from detr_panoptic.scenes import make_scene
        >>> augmentation = RandomAugmentation(scales=[48, 64], max_size=100, crop_scales=[80], crop_range=(40, 60))
        >>> augmentation(make_scene(0), seed=3)["segmentation"].shape
        (78, 64)
    """

    scales: Sequence[int] = PAPER_SCALES  # lengths of the short side to choose from, in pixels
    _: KW_ONLY
    max_size: int = PAPER_MAX_SIZE  # limit of the long side in pixels; not before a crop
    crop_scales: Sequence[int] = PAPER_CROP_SCALES  # lengths of the short side before a crop
    crop_range: tuple[int, int] = PAPER_CROP_RANGE  # smallest and largest height and width of a crop, inclusive
    flip_probability: float = 0.5
    crop_probability: float = 0.5

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not self.scales or min(self.scales) < 1 or max(self.scales) >= self.max_size:
            expected = f"one or more lengths from 1 to below max_size={self.max_size}"
            raise ValueError(f"`scales` must be {expected}, got {self.scales}.")
        if not self.crop_scales or min(self.crop_scales) < 1:
            raise ValueError(f"`crop_scales` must be one or more lengths from 1, got {self.crop_scales}.")
        if not 1 <= self.crop_range[0] <= self.crop_range[1]:
            raise ValueError(f"`crop_range` must be (least, greatest) from 1, got {self.crop_range}.")

    def _transform(self, image: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if _fraction(generator) < self.crop_probability:
            image, ids = _resize(image, ids, _scaled(ids.shape, _choose(self.crop_scales, generator)))
            least, greatest = self.crop_range
            height, width = (_integer(min(least, side), min(greatest, side), generator) for side in ids.shape)
            image, ids = _random_window(image, ids, (height, width), generator)
        return _resize(image, ids, _scaled(ids.shape, _choose(self.scales, generator), self.max_size))


@dataclass(frozen=True)
class LargeScaleJitter(Augmentation):
    """Flips, resizes by a random factor, and crops to a square, which a small result does not fill.

    The image processor pads: with `pad_size` set to the same square, all batches have the same size.

    Raises:
        ValueError: `size` is not positive or `scale_range` is empty.

    Examples:
        >>> from detr_panoptic.scenes import make_scene
        >>> LargeScaleJitter(128)(make_scene(0), seed=3)["image"].size
        (38, 38)
    """

    size: int = JITTER_SIZE  # side of the square in pixels; at a scale of 1 the image just fits into it
    _: KW_ONLY
    scale_range: tuple[float, float] = JITTER_RANGE  # smallest and largest scale
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1, got {self.size}.")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"`scale_range` must be (least, greatest) above 0, got {self.scale_range}.")

    def _transform(self, image: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        least, greatest = self.scale_range
        scale = least + (greatest - least) * _fraction(generator)
        factor = scale * self.size / max(ids.shape)  # of the image's own lengths
        height, width = (min(side, max(round(self.size / factor), 1)) for side in ids.shape)
        image, ids = _random_window(image, ids, (height, width), generator)
        return _resize(image, ids, [min(max(round(factor * side), 1), self.size) for side in ids.shape])


def sample_seed(seed: int, epoch: int, image_id: int) -> int:
    """Returns the seed of a sample: it depends on the sample, not on the worker or the order of loading."""
    return int(np.random.SeedSequence((seed, epoch, image_id)).generate_state(1, np.uint64)[0] >> 1)


def _random_window(
    image: Tensor, ids: Tensor, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Crops both to a random window (height, width)."""
    top, left = (_integer(0, side - length, generator) for side, length in zip(ids.shape, size, strict=True))
    return F.crop(image, top, left, *size), F.crop(ids, top, left, *size)


def _scaled(size: Sequence[int], short_side: int, max_size: int | None = None) -> list[int]:
    """Returns height and width for a short side, or less if the long side would exceed `max_size`.

    As torchvision's `resize`, but a thin image keeps at least one pixel.
    """
    short, long = short_side, int(short_side * max(size) / min(size))
    if max_size is not None and long > max_size:
        short, long = max(int(max_size * short / long), 1), max_size
    return [short, long] if size[0] <= size[1] else [long, short]


def _resize(image: Tensor, ids: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Resizes both to (height, width)."""
    # Channels last, it takes half the time, and PyTorch 2.14 does not mix rows and channels at a width of 1.
    image = F.resize(image.permute(1, 2, 0).contiguous().permute(2, 0, 1), size, antialias=True)
    # By index: torchvision's kernel for masks is the misaligned nearest, and goes through float32.
    for axis, length in enumerate(image.shape[-2:]):
        if ids.shape[axis] != length:
            ids = ids.index_select(axis, torch.from_numpy(nearest_positions(ids.shape[axis], length)))
    return image, ids


def _fraction(generator: torch.Generator) -> float:
    """Returns a random number in [0, 1), in float32 whatever the default dtype is."""
    return float(torch.rand((), dtype=torch.float32, generator=generator))


def _choose(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]


def _integer(least: int, greatest: int, generator: torch.Generator) -> int:
    """Returns a random integer, both ends included."""
    return int(torch.randint(least, greatest + 1, (), generator=generator))


def build_augmentation(
    kind: Literal["none", "flip", "paper", "jitter"], *, short_side: int, long_side: int
) -> Augmentation | None:
    """Builds the augmentation of a training run with images of these sides in pixels.

    "paper" flips, scales and crops, with the paper's lengths in proportion to the short side; "jitter" is large-scale
    jitter to a square of the long side; "none" returns None.
    """
    if kind == "none":
        return None
    if kind == "jitter":
        return LargeScaleJitter(long_side)
    max_size = max(long_side, short_side + 1)  # torchvision requires more than the short side
    if kind == "flip":
        return RandomAugmentation((short_side,), max_size=max_size, crop_probability=0.0, crop_scales=(1,))
    ratio = short_side / max(PAPER_SCALES)
    return RandomAugmentation(
        [round(ratio * scale) for scale in PAPER_SCALES],
        max_size=max_size,
        crop_scales=[round(ratio * scale) for scale in PAPER_CROP_SCALES],
        crop_range=(round(ratio * PAPER_CROP_RANGE[0]), round(ratio * PAPER_CROP_RANGE[1])),
    )


def padding_options(processor: Any, images: Sequence[Any]) -> dict[str, Any]:
    """Returns what spares our image processor a `pixel_mask`, as large as the images, where it pads nothing."""
    is_padded = processor.pad_size is not None or len({image.size for image in images}) > 1
    return {} if is_padded else {"do_pad": False}


class PanopticCollator:
    """Augments canonical records and passes them to the image processor.

    The augmentation sets the size, so the processor does not resize then. It depends on the seed, the epoch and the
    `image_id` of each record.

    Args:
        processor: makes the batches.
        augmentation: None: none.
        seed: of the augmentation.
        as_maps: whether the labels are a `TargetBatch`, which is smaller and quicker to move than a mask per segment,
            and images of one size come without a `pixel_mask`, which attention then does without as well.

    Examples:
        >>> from detr_panoptic import DetrPanopticImageProcessor
        >>> from detr_panoptic.scenes import make_scene
        >>> collate = PanopticCollator(DetrPanopticImageProcessor(size={"height": 64, "width": 96}))
        >>> batch = collate([make_scene(0), make_scene(1)])
        >>> tuple(batch["pixel_values"].shape), len(batch["labels"])
        ((2, 3, 64, 96), 2)
    """

    def __init__(
        self, processor: Any, augmentation: Augmentation | None = None, *, seed: int = 0, as_maps: bool = False
    ) -> None:
        self.processor = processor
        self.as_maps = as_maps
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory: persistent workers hold a copy of the collator and must see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next batches."""
        self._epoch.fill_(epoch)

    def __call__(self, records: Sequence[Record]) -> BatchFeature:
        """Returns `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W) and `labels`, one dict per record."""
        options: dict[str, Any] = {}
        if self.augmentation is not None:
            seeds = [sample_seed(self.seed, int(self._epoch), record["image_id"]) for record in records]
            records = [self.augmentation(record, seed) for record, seed in zip(records, seeds, strict=True)]
            options["do_resize"] = False
        keys = ("image_id", "segmentation", "segments_info")
        annotations = [{key: record[key] for key in keys} for record in records]
        images = [record["image"] for record in records]
        if not self.as_maps:
            return self.processor(images, annotations=annotations, return_tensors="pt", **options)
        batch = self.processor(images, return_tensors="pt", **options, **padding_options(self.processor, images))
        canvas, padding = tuple(batch["pixel_values"].shape[-2:]), batch.get("pixel_mask")
        sizes = [canvas] * len(images)
        if padding is not None:
            sizes = [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in padding]
            if set(sizes) == {canvas}:
                del batch["pixel_mask"]
        settings = {"format": None, "category_ids": self.processor.category_ids}
        targets = [map_target(annotation, size, settings) for annotation, size in zip(annotations, sizes, strict=True)]
        batch["labels"] = TargetBatch(targets)
        return batch
