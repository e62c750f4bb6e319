"""The batch size that fits into memory, for `batch_size="auto"`."""

import copy
import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch.optim import Optimizer

from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .optimization import build_optimizer
from .settings import TrainingSettings
from .validation import unchanged_random_state

logger = logging.getLogger(__name__)


def fix_batch_size(
    settings: TrainingSettings, model: DetrPanopticForSegmentation, accelerator: Accelerator, *, most_segments: int
) -> TrainingSettings:
    """Replaces `batch_size="auto"` by the largest size that fits; accumulation keeps the images per update.

    Every process tries updates of a copy of the model with the largest images and the most segments that occur, and
    halves the batch until one fits into its memory. All processes take the smallest result.

    Raises:
        ValueError: not even one image fits, or the images per update are not a multiple of the processes.
    """
    if settings.optimization.batch_size != "auto":
        return settings
    wanted, processes = settings.optimization.images_per_update, accelerator.num_processes
    if wanted % processes:
        raise ValueError(f"`images_per_update` must be a multiple of the {processes} processes, got {wanted}.")
    share = wanted // processes
    found = torch.tensor([_largest_batch(settings, model, accelerator, share, most_segments)])
    fitting = int(accelerator.gather(found.to(accelerator.device)).min())
    if fitting == 0:
        raise ValueError("`batch_size` auto: not even one image fits into memory; reduce `short_side`, `long_side`.")
    size = next(size for size in range(fitting, 0, -1) if share % size == 0)
    logger.info("batch size: %d images, %d steps per update", size, share // size)
    return settings.replace(batch_size=size, gradient_accumulation_steps=share // size)


def _largest_batch(settings: TrainingSettings, model: Any, accelerator: Accelerator, share: int, segments: int) -> int:
    """Returns the largest batch size up to `share` with which an update fits into memory, 0 if none does."""
    probe = copy.deepcopy(model).to(accelerator.device).train()
    optimizer = build_optimizer(probe, settings.optimization)

    def fits(batch_size: int) -> int:
        update_once(probe, optimizer, _largest_inputs(settings, batch_size, segments, probe), accelerator)
        return batch_size

    halves = iter([share // 2**power for power in range(1, share.bit_length() + 1)])
    search = find_executable_batch_size(fits, starting_batch_size=share, reduce_batch_size_fn=lambda: next(halves))
    with unchanged_random_state(accelerator.device):
        try:
            return int(search())
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
            return 0


def update_once(probe: Any, optimizer: Optimizer, inputs: dict[str, Any], accelerator: Accelerator) -> None:
    """Does a forward, a backward and an update."""
    with accelerator.autocast():
        loss = probe(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _largest_inputs(settings: TrainingSettings, batch_size: int, segments: int, model: Any) -> dict[str, Any]:
    """Returns inputs of the size of a batch with a wide and a tall image."""
    width, device = settings.data.long_side, model.device
    height = settings.data.short_side if batch_size == 1 else width
    count = max(1, min(segments, model.config.num_queries))
    target = {"class_labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.full((count, 4), 0.5)}
    if settings.model.stage != "boxes":
        target["masks"] = torch.ones(count, height, width, dtype=torch.bool)
    return {
        "pixel_values": torch.zeros(batch_size, 3, height, width, device=device),
        "pixel_mask": torch.ones(batch_size, height, width, device=device),
        "labels": [{name: value.to(device) for name, value in target.items()}] * batch_size,
        **({"mask_queries": 0} if settings.model.stage == "boxes" else {}),
    }
