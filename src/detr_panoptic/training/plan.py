"""What a run is going to do, in words and numbers: for `--dry-run`, the log, and the advice when memory is short."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_detr_panoptic import DetrPanopticConfig
from ..data.categories import Categories
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .aids import AIDS
from .arguments import OptimizationArguments, TrainingArguments
from .optimization import BACKBONE, freeze, rate_factor

GIB = 2**30
PROBE_SIDES = ((96, 128), (192, 256))  # pixels; of the images whose activations are counted
BYTES_PER_FLOAT = 4
PARTS = {  # of the model, in the order of the way through it, by the beginning of a parameter's name
    "backbone": ("model.backbone.",),
    "transformer": ("model.",),
    "class and box heads": ("class_head.", "box_head."),
    "mask head": ("mask_attention.", "mask_head."),
    "aids, not saved": (AIDS + ".",),
}


@dataclass(frozen=True)
class DataSummary:
    """What a set of images holds."""

    images: int
    empty: int
    """Images without a segment."""
    segments: int
    counts: tuple[int, ...]
    """Segments of each label."""

    @property
    def segments_per_image(self) -> float:
        """The mean."""
        return self.segments / max(self.images, 1)

    def describe(self, categories: Categories) -> str:
        """A line: `80 images, 812 segments (10.2 per image) of 71 classes (45 things, 26 stuff)`."""
        seen = [thing for thing, count in zip(categories.is_thing, self.counts, strict=True) if count]
        line = (
            f"{self.images} images, {self.segments} segments ({self.segments_per_image:.1f} per image) of "
            f"{len(seen)} classes ({sum(seen)} things, {len(seen) - sum(seen)} stuff)"
        )
        never = len(categories) - len(seen)
        line += f"; {never} classes never occur" if never else ""
        return line + (f"; {self.empty} images without a segment" if self.empty else "")


def summarize(label_ids: Iterable[list[int]], categories: Categories) -> DataSummary:
    """Counts what images hold, given the label ids of each one's segments."""
    lengths, counts = [], [0] * len(categories)
    for labels in label_ids:
        lengths.append(len(labels))
        for label in labels:
            counts[label] += 1
    return DataSummary(len(lengths), lengths.count(0), sum(lengths), tuple(counts))


def describe_plan(
    model: nn.Module, arguments: TrainingArguments, *, total_steps: int, steps_per_epoch: int, effective_batch: int
) -> list[str]:
    """Lines about parameters, steps and rates."""
    optimization = arguments.optimization
    epochs = total_steps / steps_per_epoch
    lines = [
        *_parameter_lines(model),
        f"steps: {total_steps} updates of {effective_batch} images, {steps_per_epoch} per epoch, {epochs:.4g} epochs",
        *describe_rates(optimization, effective_batch, is_backbone_frozen=_is_backbone_frozen(model)),
        f"schedule: {optimization.schedule}, {optimization.warmup_steps} updates of warm-up"
        + (", more than the run has" if optimization.warmup_steps >= total_steps else "")
        + (f", drop after {optimization.drop_at:.0%} of the run" if optimization.schedule == "step" else ""),
    ]
    if optimization.ema_decay is not None:
        lines.append(f"measured and saved: the moving average of the weights, decay {optimization.ema_decay}")
    return lines


def describe_rates(
    arguments: OptimizationArguments, effective_batch: int, *, is_backbone_frozen: bool = False
) -> list[str]:
    """A line for each rate, and how it came about."""
    factor = rate_factor(arguments, effective_batch)
    sign = {"none": "", "linear": f" x {effective_batch}/{arguments.reference_batch}"}.get(
        arguments.rate_scaling, f" x sqrt({effective_batch}/{arguments.reference_batch})"
    )
    rates = {"learning rate": arguments.learning_rate, "backbone": arguments.backbone_learning_rate}
    lines = []
    for name, rate in rates.items():
        result = f" = {rate * factor:.3g}" if sign else ""
        lines.append(f"{name}: {rate:.3g}{sign}{result}")
    if sign:
        lines[0] += " (the rates are scaled with the images per update; --rate-scaling none takes them as they are)"
    if is_backbone_frozen:
        lines[1] = "backbone: stays as it is"
    elif arguments.backbone_rate_decay != 1:
        lines[1] += f" in the last stage, times {arguments.backbone_rate_decay} for each one before"
    return lines


def _is_backbone_frozen(model: nn.Module) -> bool:
    return not any(p.requires_grad for name, p in model.named_parameters() if BACKBONE in name)


def _parameter_lines(model: nn.Module) -> list[str]:
    trained, frozen = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, beginnings in PARTS.items() if name.startswith(beginnings))
        (trained if parameter.requires_grad else frozen)[part] += parameter.numel()
    width = max(map(len, PARTS))
    rows = [
        f"  {part:<{width}}  {trained[part] / 1e6:8.3f} M  {frozen[part] / 1e6:8.3f} M"
        for part in PARTS
        if trained[part] + frozen[part]
    ]
    total = f"  {'all':<{width}}  {sum(trained.values()) / 1e6:8.3f} M  {sum(frozen.values()) / 1e6:8.3f} M"
    return [f"parameters: {'':<{width - 10}}   trained      frozen", *rows, total]


def estimate_memory(config: DetrPanopticConfig, arguments: TrainingArguments, *, targets: float) -> float:
    """Bytes that an update takes: weights, gradients, the optimizer's two moments, and what the forward keeps.

    What the forward keeps is counted on the processor for two small images and taken to grow evenly with the pixels:
    right for convolutions and for attention that keeps no weights, an estimate for the rest. Libraries' workspaces and
    the allocator's fragments come on top, some tenths of it.

    Args:
        config: of the model.
        arguments: sizes, precision and what is frozen.
        targets: segments of an image.
    """
    probe = DetrPanopticForSegmentation(config).train()
    freeze(probe, arguments.model)
    parameters = list(probe.parameters())
    all_bytes = sum(p.numel() for p in parameters) * BYTES_PER_FLOAT
    trained_bytes = sum(p.numel() for p in parameters if p.requires_grad) * BYTES_PER_FLOAT
    copies = 1 if arguments.optimization.ema_decay is None else 2
    half = arguments.run.mixed_precision != "no"
    pixels = arguments.optimization.batch_size * arguments.data.short_side * arguments.data.long_side
    first, second = (_kept_bytes(probe, sides, max(1, round(targets)), half=half) for sides in PROBE_SIDES)
    first_pixels, second_pixels = (height * width for height, width in PROBE_SIDES)
    per_pixel = (second - first) / (second_pixels - first_pixels)
    kept = first + per_pixel * (pixels - first_pixels)  # what does not grow: weights in another precision
    return copies * all_bytes + 3 * trained_bytes + kept


def _kept_bytes(probe: DetrPanopticForSegmentation, sides: tuple[int, int], targets: int, *, half: bool) -> int:
    """Bytes that the backward pass of one image of these sides needs, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in [*probe.parameters(), *probe.buffers()]}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # an address that is freed and taken again would count once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    targets = min(targets, probe.config.num_queries)
    labels = {"class_labels": torch.zeros(targets, dtype=torch.int64), "boxes": torch.full((targets, 4), 0.5)}
    options: dict[str, Any] = {"mask_queries": 0}
    if any(p.requires_grad for p in probe.mask_head.parameters()):
        labels["masks"], options = torch.ones(targets, *sides, dtype=torch.bool), {}
    with (
        torch.random.fork_rng(),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        probe(torch.zeros(1, 3, *sides), labels=[labels], **options)
    return sum(sizes.values())


def memory_advice(config: DetrPanopticConfig, arguments: TrainingArguments, *, targets: float) -> dict[str, float]:
    """Estimated bytes of an update by the flags that would change it; as it is under ""."""
    data, optimization = arguments.data, arguments.optimization
    variants = {"": arguments}
    if optimization.batch_size > 1:
        fewer = optimization.batch_size // 2
        more = -(-optimization.batch_size * optimization.gradient_accumulation_steps // fewer)
        variants[f"--batch-size {fewer} --gradient-accumulation-steps {more}"] = replace(
            arguments, optimization=replace(optimization, batch_size=fewer, gradient_accumulation_steps=more)
        )
    if arguments.run.mixed_precision == "no":
        variants["--mixed-precision bf16"] = replace(arguments, run=replace(arguments.run, mixed_precision="bf16"))
    short, long = (max(32, round(0.7 * side)) for side in (data.short_side, data.long_side))
    variants[f"--short-side {short} --long-side {long}"] = replace(
        arguments, data=replace(data, short_side=short, long_side=long)
    )
    if not arguments.model.freeze_backbone and arguments.model.stage != "masks":
        variants["--freeze-backbone"] = replace(arguments, model=replace(arguments.model, freeze_backbone=True))
    return {flags: estimate_memory(config, variant, targets=targets) for flags, variant in variants.items()}


def describe_memory(advice: Mapping[str, float]) -> str:
    """One line of `memory_advice`."""
    changes = "; ".join(f"{flags}: {size / GIB:.2f} GiB" for flags, size in advice.items() if flags)
    return f"memory: about {advice[''] / GIB:.2f} GiB per process; with {changes}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the processor, had no memory left; torch has no class of its own for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
