"""The batch size that fits into memory, for `batch_size="auto"`."""

import copy
import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import Tensor
from torch.optim import Optimizer

from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .optimization import build_optimizer
from .settings import TrainingSettings
from .validation import unchanged_random_state

logger = logging.getLogger(__name__)


def fix_batch_size(
    settings: TrainingSettings, model: DetrPanopticForSegmentation, accelerator: Accelerator, *, most_segments: int
) -> TrainingSettings:
    """Replaces `batch_size="auto"` by the largest size that fits, keeping the images per update by accumulation.

    Every process tries updates of a copy of the model with the largest images and the most segments that occur, and
    halves the batch until one fits into its memory. All processes take the smallest result.

    Raises:
        ValueError: If not even one image fits, or the images per update cannot be shared evenly by the processes.
    """
    if settings.optimization.batch_size != "auto":
        return settings
    wanted = settings.optimization.images_per_update
    if wanted % accelerator.num_processes:
        raise ValueError(
            f"`images_per_update` must be a multiple of the {accelerator.num_processes} processes, got {wanted}."
        )
    share = wanted // accelerator.num_processes
    fitting = _largest_batch(settings, model, accelerator, share=share, segments=most_segments)
    fitting = -int(accelerator.gather(torch.tensor([-fitting], device=accelerator.device)).max())  # the smallest
    if fitting == 0:
        raise ValueError(
            "`batch_size` auto: not even one image fits into memory; reduce `short_side` and `long_side`."
        )
    steps = -(-share // fitting)
    while share % steps:  # equal batches, so that every update has the same images
        steps += 1
    logger.info("batch size: %d images, %d steps per update", share // steps, steps)
    return settings.replace(batch_size=share // steps, gradient_accumulation_steps=steps)


def _largest_batch(
    settings: TrainingSettings,
    model: DetrPanopticForSegmentation,
    accelerator: Accelerator,
    *,
    share: int,
    segments: int,
) -> int:
    """Returns the largest batch size up to `share` with which an update fits into memory, 0 if none does."""
    probe: Any = copy.deepcopy(model).to(accelerator.device).train()
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
    """Does a forward, a backward and an update, as a training step of the run does."""
    with accelerator.autocast():
        loss = probe(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _largest_inputs(settings: TrainingSettings, batch_size: int, segments: int, model: Any) -> dict[str, Any]:
    """Returns inputs of the size of a batch with a wide and a tall image."""
    short, long, device = settings.data.short_side, settings.data.long_side, model.device
    height, width = (short if batch_size == 1 else long), long
    count = max(1, min(segments, model.config.num_queries))
    target: dict[str, Tensor] = {
        "class_labels": torch.zeros(count, dtype=torch.int64, device=device),
        "boxes": torch.full((count, 4), 0.5, device=device),
    }
    inputs: dict[str, Any] = {"mask_queries": 0} if settings.model.stage == "boxes" else {}
    if settings.model.stage != "boxes":
        target["masks"] = torch.ones(count, height, width, dtype=torch.bool, device=device)
    images = torch.zeros(batch_size, 3, height, width, device=device)
    mask = torch.ones(batch_size, height, width, device=device)
    return inputs | {"pixel_values": images, "pixel_mask": mask, "labels": [target] * batch_size}
