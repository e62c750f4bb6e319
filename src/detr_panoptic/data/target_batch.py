"""Targets of a batch that travel from the workers to the GPU as few tensors: one map instead of a mask per segment."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..image_reading import stack_padded
from ..panoptic_targets import training_target
from ..segment_ids import nearest_positions, segment_extents
from .records import segmentation_ids

UINT8_VALUES = 256
Target = dict[str, Tensor]


class TargetBatch(Sequence[Target]):
    """The targets of B images, each a dict with a `segment_map` in place of `masks`.

    Only the map moves to a device. The rest is small: the model checks it on the CPU and copies what it needs.
    `with_masks` makes the model's `labels` where the map is.

    Args:
        targets: of `map_target`.

    Example:
        >>> targets = [{"class_labels": torch.tensor([2]), "segment_map": torch.ones(2, n)} for n in (3, 5)]
        >>> batch = TargetBatch(targets)
        >>> len(batch), batch.maps.shape, batch[0]["segment_map"].shape
        (2, torch.Size([2, 2, 5]), torch.Size([2, 3]))
    """

    def __init__(self, targets: Sequence[Mapping[str, Tensor]]) -> None:
        names = [name for name in targets[0] if name != "segment_map"]
        self._columns = {name: torch.cat([target[name] for target in targets]) for name in names}
        self._lengths = {name: [len(target[name]) for target in targets] for name in names}
        self._sizes = [tuple(target["segment_map"].shape) for target in targets]
        self.maps = stack_padded([target["segment_map"] for target in targets])
        """(B, H, W)"""

    def __len__(self) -> int:
        """Returns B."""
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        """Returns the target of an image, of views."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        values = {name: column.split(self._lengths[name])[index] for name, column in self._columns.items()}
        height, width = self._sizes[index]
        return values | {"segment_map": self.maps[index, :height, :width]}

    def to(self, device: Any, non_blocking: bool = False) -> "TargetBatch":
        """Returns the batch with its map on a device."""
        return self._with(self.maps.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TargetBatch":
        """Returns the batch with its map in pinned memory, for `DataLoader`."""
        return self._with(self.maps.pin_memory())

    def with_masks(self) -> list[Target]:
        """Returns the targets with `masks` (T, H_i, W_i) bool, on the map's device."""
        labels = []
        for target in self:
            segment_map = target.pop("segment_map")
            last = len(target["class_labels"]) + 1
            numbers = torch.arange(1, last, dtype=segment_map.dtype, device=segment_map.device)
            labels.append(target | {"masks": segment_map == numbers[:, None, None]})
        return labels

    def without_masks(self) -> list[Target]:
        """Returns the targets without their maps."""
        return [{name: value for name, value in target.items() if name != "segment_map"} for target in self]

    def _with(self, maps: Tensor) -> "TargetBatch":
        other = object.__new__(TargetBatch)
        other.__dict__.update(self.__dict__, maps=maps)
        return other


def map_target(annotation: Mapping[str, Any], size: Sequence[int], settings: Mapping[str, Any]) -> Target:
    """Returns the target of a canonical record as `training_target` does, with a map instead of masks.

    Args:
        annotation: `image_id`, `segmentation` and `segments_info`.
        size: (h, w) of the image as the model sees it, without padding.
        settings: of the image processor: `format` and `category_ids`.

    Returns:
        Among others `segment_map` (h, w), uint8 if there are less than 256 targets: 1 + t on target t, 0 elsewhere.
    """
    ids = segmentation_ids(annotation["segmentation"])
    image = torch.empty(1).expand(3, *ids.shape)  # whose size is all that counts
    target = training_target({**annotation, "segmentation": ids}, image, size, settings=settings, with_masks=False)
    if ids.shape != tuple(size):
        rows, columns = (nearest_positions(*lengths) for lengths in zip(ids.shape, size, strict=True))
        ids = ids[rows][:, columns]
    found = segment_extents(ids).ids
    listed = [int(segment["id"]) for segment in annotation["segments_info"]]
    places = np.searchsorted(found, [i for i in listed if i in found])
    numbers = np.zeros(len(found), dtype=np.uint8 if len(places) < UINT8_VALUES else np.int32)
    numbers[places] = np.arange(1, len(places) + 1)
    # Runs of equal neighbors are looked up, a hundred times fewer than pixels.
    flat = ids.reshape(-1)
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    runs = numbers[np.searchsorted(found, flat[starts])]
    segment_map = runs.repeat(np.diff(np.append(starts, flat.size))).reshape(ids.shape)
    return target | {"segment_map": torch.from_numpy(segment_map)}
