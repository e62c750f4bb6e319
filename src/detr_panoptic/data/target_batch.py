"""Targets of a batch that travel from the workers to the GPU as few tensors: one map instead of a mask per segment."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..image_reading import stack_padded
from ..panoptic_targets import training_target
from ..segment_ids import VOID_ID, nearest_positions
from .records import segmentation_ids

UINT8_VALUES = 256
Target = dict[str, Tensor]


class TargetBatch(Sequence[Target]):
    """The targets of B images, each a dict with a `segment_map` in place of `masks`.

    Only the map moves to a device. The rest is small: the model checks it on the CPU and copies what it needs.
    `with_masks` makes the model's `labels` where the map is.

    Args:
        targets: of `map_target`.

    Examples:
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
    """Returns the target of a record as `training_target` does, with a `segment_map` (h, w) instead of masks.

    It is 1 + t on target t and 0 elsewhere, uint8 if there are less than 256 targets. `size` is that of the image as
    the model sees it, without padding; the `settings` are `format` and `category_ids` of the image processor.
    """
    ids, segments = segmentation_ids(annotation["segmentation"]), annotation["segments_info"]
    numbers = {int(segment["id"]): number for number, segment in enumerate(segments, start=1)}
    # A byte per pixel is faster than four. Runs of equal neighbors are looked up, a hundred times fewer than pixels.
    flat = ids.reshape(-1)
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    found, places = np.unique(flat[starts], return_inverse=True)
    values = np.array([numbers.get(i, VOID_ID) for i in found.tolist()])
    values = values.astype(np.uint8 if len(numbers) < UINT8_VALUES else np.int32)
    segment_map = values[places].repeat(np.diff(starts, append=flat.size)).reshape(ids.shape)

    image = torch.empty(1).expand(3, *ids.shape)  # whose size is all that counts
    target_of = partial(training_target, image=image, size=size, settings=settings, with_masks=False)
    try:
        if {*found.tolist()} - {VOID_ID} != {*numbers} or len(numbers) < len(segments):
            raise ValueError("The map and the segments do not agree.")
        numbered = [{**segment, "id": number} for number, segment in enumerate(segments, start=1)]
        target = target_of({**annotation, "segmentation": segment_map, "segments_info": numbered})
    except ValueError:
        return target_of({**annotation, "segmentation": ids})  # raises an error with the ids of the annotation
    for axis in (1, 0) if ids.shape != tuple(size) else ():
        segment_map = segment_map.take(nearest_positions(ids.shape[axis], size[axis]), axis)
    if len(target["class_labels"]) < len(segments):  # some have vanished
        is_left = np.isin(np.arange(len(segments) + 1), np.append(segment_map, 0))
        segment_map = (is_left.cumsum() - 1).astype(segment_map.dtype)[segment_map]
    return target | {"segment_map": torch.from_numpy(segment_map)}
