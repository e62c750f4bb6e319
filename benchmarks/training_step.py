"""Time of a training step: transformers' DETR and ours, with the same weights and targets; Mask2Former and EoMT.

    python benchmarks/training_step.py --sizes 480x640 --batch 2 --objects 8

Dropout is off and there are no auxiliary losses (with them transformers computes other predictions), so that the
losses must be equal. Transformers trains the stem and the first stage of the backbone as well, where the paper
freezes them.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from cases import (
    NUM_LABELS,
    describe_run,
    freeze_dropout,
    markdown_table,
    median_and_range,
    our_model,
    parser,
    peak_gigabytes,
    random_images,
    rivals,
    set_precision,
    time_in_turns,
    transformers_model,
)

TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
TOLERANCE = 1e-4


def main() -> None:
    """Prints a table per size."""
    arguments = _arguments()
    set_precision(arguments)
    theirs = transformers_model(auxiliary_loss=False)
    contestants = {"transformers": theirs} | our_ways(our_model(theirs))
    for model in contestants.values():
        freeze_dropout(model.to(arguments.device).train())
    print(describe_run(arguments.device))
    for size in arguments.sizes:
        batch = training_batch(arguments.batch, size, arguments.objects, arguments.device)
        check_losses(contestants, batch)
        runs = {name: training_step(model, batch) for name, model in contestants.items()}
        for name, (model, own_size, _) in rivals(theirs, size).items():
            freeze_dropout(model.to(arguments.device).train())
            runs[name] = training_step(model, rival_batch(batch, own_size))
        times = time_in_turns(runs, arguments.repeats, arguments.device)
        theirs_time = statistics.median(times["transformers"])
        rows = [
            [
                name,
                median_and_range(values),
                f"{theirs_time / statistics.median(values):.1f}",
                peak_gigabytes(runs[name], arguments.device),
            ]
            for name, values in times.items()
        ]
        print(f"### {arguments.batch} x {size[0]}x{size[1]}, {arguments.objects} objects each\n")
        print(
            markdown_table(
                ["", "seconds: median (range)", "times as fast as transformers", "GB of the GPU beside the weights"],
                rows,
            )
        )


def our_ways(ours: Any) -> dict[str, nn.Module]:
    """Our model as it is, with the mask loss at the masks' own size, and with checkpoints."""
    small, checkpointed = copy.deepcopy(ours), copy.deepcopy(ours)
    small.config.mask_loss_resolution = "mask"
    checkpointed.activation_checkpointing_enable()
    return {"ours": ours, "ours, mask loss at stride 4": small, "ours, checkpointed": checkpointed}


def training_batch(batch: int, size: tuple[int, int], objects: int, device: str) -> dict[str, object]:
    """Images and as many targets on each."""
    generator = torch.Generator().manual_seed(2)
    images = {name: value.to(device) for name, value in random_images(batch, size).items()}
    return images | {"labels": [_target(size, objects, generator, device) for _ in range(batch)]}


def rival_batch(batch: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """The same images and targets, as Mask2Former and EoMT take them, in this size."""
    return {
        "pixel_values": F.interpolate(batch["pixel_values"], tuple(size)),
        "mask_labels": [F.interpolate(target["masks"][None], tuple(size))[0] for target in batch["labels"]],
        "class_labels": [target["class_labels"] for target in batch["labels"]],
    }


def training_step(model: nn.Module, batch: dict[str, object]) -> Callable[[], None]:
    """Forward, backward and update."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_losses(models: dict[str, nn.Module], batch: dict[str, object]) -> None:
    """Raises ValueError if the losses of the exact contestants differ."""
    with torch.no_grad():
        terms = {name: model(**batch).loss_dict for name, model in models.items() if "stride" not in name}
    for name, values in terms.items():
        for term in TERMS:
            expected = terms["transformers"][term].item()
            if abs(values[term].item() - expected) > TOLERANCE * max(1, abs(expected)):
                raise ValueError(f"{name}: {term} is {values[term].item()}, transformers' is {expected}.")


def _target(size: tuple[int, int], objects: int, generator: torch.Generator, device: str) -> dict[str, Tensor]:
    height, width = size
    masks = torch.zeros(objects, height, width)
    for mask in masks:
        top, left = (int(torch.randint(length // 2, (), generator=generator)) for length in size)
        mask[top : top + height // 2, left : left + width // 2] = 1
    target = {
        "class_labels": torch.randint(NUM_LABELS, (objects,), generator=generator),
        "boxes": torch.rand(objects, 4, generator=generator) * 0.4 + 0.1,
        "masks": masks,
    }
    return {name: value.to(device) for name, value in target.items()}


def _arguments() -> argparse.Namespace:
    arguments = parser(str(__doc__).partition("\n")[0], size="480x640")
    arguments.add_argument("--batch", type=int, default=2)
    arguments.add_argument("--objects", type=int, default=8, help="targets of each image")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
