"""The paper's training augmentation on canonical records.

Follows `make_coco_transforms` of facebookresearch/detr (29901c5): flip; then resize to a random scale, or resize,
random crop and resize. Differences:
  * every choice is drawn from the seed alone, so workers and batch order change nothing;
  * boxes and areas are measured on the map after the crop; the reference clips the old boxes, which leaves them loose;
  * the id map is resized to the nearest *center*, as the picture's bilinear filter is aligned; the reference's
    "nearest" is off by up to half a pixel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812  torchvision's own name for it

from .records import Record, measure_segments, segmentation_ids

PAPER_SCALES = tuple(range(480, 801, 32))
PAPER_MAX_SIZE = 1333
PAPER_CROP_SCALES = (400, 500, 600)
PAPER_CROP_RANGE = (384, 600)


class RandomAugmentation:
    """Flip, resize and crop a record at random; the same seed gives the same result.

    Args:
        scales: lengths of the short side to choose from, pixels.
        max_size: limit of the long side, pixels; not before a crop.
        crop_scales: lengths of the short side before a crop.
        crop_range: least and greatest height and width of a crop, both included.
        flip_probability: of mirroring left and right.
        crop_probability: of the way with a crop.

    Raises:
        ValueError: if there is no scale, one of `scales` is not below `max_size`, or `crop_range` is empty.
    """

    def __init__(
        self,
        scales: Sequence[int] = PAPER_SCALES,
        *,
        max_size: int = PAPER_MAX_SIZE,
        crop_scales: Sequence[int] = PAPER_CROP_SCALES,
        crop_range: tuple[int, int] = PAPER_CROP_RANGE,
        flip_probability: float = 0.5,
        crop_probability: float = 0.5,
    ) -> None:
        """Check and keep the settings."""
        if not scales or min(scales) < 1 or max(scales) >= max_size:
            raise ValueError(f"`scales` must be one or more lengths from 1 to below {max_size=}, got {scales}.")
        if not crop_scales or min(crop_scales) < 1:
            raise ValueError(f"`crop_scales` must be one or more lengths from 1, got {crop_scales}.")
        if not 1 <= crop_range[0] <= crop_range[1]:
            raise ValueError(f"`crop_range` must be (least, greatest) from 1, got {crop_range}.")
        self.scales = tuple(scales)
        self.max_size = max_size
        self.crop_scales = tuple(crop_scales)
        self.crop_range = crop_range
        self.flip_probability = flip_probability
        self.crop_probability = crop_probability

    def __call__(self, record: Record, seed: int) -> Record:
        """Augment one record.

        Args:
            record: a canonical record; it stays as it is.
            seed: of every choice, such as `sample_seed` makes it.

        Returns:
            A record with `image` as PIL picture, `segmentation` as (H, W) int64 id map, and the segments that are
            still seen, measured anew.

        Raises:
            ValueError: if `image` and `segmentation` differ in size.
        """
        generator = torch.Generator().manual_seed(seed)
        image: Tensor = tv_tensors.Image(F.pil_to_tensor(record["image"].convert("RGB")))
        ids: Tensor = tv_tensors.Mask(torch.from_numpy(segmentation_ids(record["segmentation"]))[None])
        if image.shape[-2:] != ids.shape[-2:]:
            raise ValueError(
                f"`segmentation` of image {record['image_id']} must be as large as `image`, "
                f"{tuple(image.shape[-2:])}, got {tuple(ids.shape[-2:])}."
            )
        if _chance(self.flip_probability, generator):
            image, ids = F.horizontal_flip(image), F.horizontal_flip(ids)
        if _chance(self.crop_probability, generator):
            image, ids = _resize(image, ids, _choose(self.crop_scales, generator))
            image, ids = self._crop(image, ids, generator)
        image, ids = _resize(image, ids, _choose(self.scales, generator), self.max_size)
        segmentation = ids[0].numpy()
        return {
            **record,
            "image": F.to_pil_image(image),
            "segmentation": segmentation,
            "segments_info": measure_segments(segmentation, record["segments_info"]),
        }

    def _crop(self, image: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        least, greatest = self.crop_range
        crop_height = _integer(min(least, height), min(greatest, height), generator)
        crop_width = _integer(min(least, width), min(greatest, width), generator)
        top = _integer(0, height - crop_height, generator)
        left = _integer(0, width - crop_width, generator)
        return F.crop(image, top, left, crop_height, crop_width), F.crop(ids, top, left, crop_height, crop_width)


def sample_seed(seed: int, epoch: int, image_id: int) -> int:
    """Seed of one sample's augmentation: known from what the sample is, not from when or where it is loaded."""
    return int(np.random.SeedSequence((seed, epoch, image_id)).generate_state(1, np.uint64)[0] >> 1)


def _resize(image: Tensor, ids: Tensor, short_side: int, max_size: int | None = None) -> tuple[Tensor, Tensor]:
    size: dict[str, Any] = {"size": [short_side], "max_size": max_size}
    # torchvision resizes integers other than uint8 through float32, which holds every id of 24 bits exactly.
    # Its kernel for masks knows no other interpolation than the misaligned one, so the map goes as a plain tensor.
    nearest = F.resize(ids.as_subclass(Tensor), interpolation=InterpolationMode.NEAREST_EXACT, **size)
    return F.resize(image, antialias=True, **size), tv_tensors.Mask(nearest)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _choose(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]


def _integer(least: int, greatest: int, generator: torch.Generator) -> int:
    """A random integer, both ends included."""
    return int(torch.randint(least, greatest + 1, (), generator=generator))
