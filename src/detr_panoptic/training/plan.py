"""A description of a run before it starts: parameters, updates, learning rates."""

from torch import nn

from .aids import AIDS
from .optimization import BACKBONE, rate_factor
from .settings import OptimizationSettings, TrainingSettings

PARTS = {  # of the model, by the beginnings of parameter names
    "backbone": ("model.backbone.",),
    "transformer": ("model.",),
    "class and box heads": ("class_head.", "box_head."),
    "mask head": ("mask_attention.", "mask_head."),
    "aids, not saved": (AIDS + ".",),
}


def count_steps(settings: OptimizationSettings, batches_per_epoch: int) -> tuple[int, int]:
    """Returns the updates of an epoch and of the run."""
    per_epoch = -(-batches_per_epoch // settings.gradient_accumulation_steps)
    total = per_epoch * settings.epochs
    return per_epoch, min(total, settings.max_steps or total)


def describe_plan(
    model: nn.Module, settings: TrainingSettings, *, batches_per_epoch: int, effective_batch: int
) -> list[str]:
    """Returns lines about the recipe, the parameters, the updates and the learning rates."""
    optimization = settings.optimization
    steps_per_epoch, total_steps = count_steps(optimization, batches_per_epoch)
    epochs = total_steps / steps_per_epoch
    is_frozen = not any(p.requires_grad for name, p in model.named_parameters() if BACKBONE in name)
    lines = [
        f"recipe: {settings.recipe}, stage {settings.model.stage}",
        *_parameter_lines(model),
        f"steps: {total_steps} updates of {effective_batch} images, {steps_per_epoch} per epoch, {epochs:.4g} epochs",
        *describe_rates(optimization, effective_batch, is_backbone_frozen=is_frozen),
        f"schedule: {optimization.schedule}, {optimization.warmup_steps} updates of warm-up"
        + (", more than the run has" if optimization.warmup_steps >= total_steps else "")
        + (f", drop after {optimization.drop_at:.0%} of the run" if optimization.schedule == "step" else ""),
    ]
    if optimization.ema_decay is not None:
        lines.append(f"evaluated and saved: moving average of the weights, decay {optimization.ema_decay}")
    return lines


def describe_rates(
    settings: OptimizationSettings, effective_batch: int, *, is_backbone_frozen: bool = False
) -> list[str]:
    """Returns a line for each learning rate, with its scaling."""
    factor = rate_factor(settings, effective_batch)
    scale = {"none": "", "linear": f" x {effective_batch}/{settings.reference_batch}"}.get(
        settings.rate_scaling, f" x sqrt({effective_batch}/{settings.reference_batch})"
    )
    rates = {"learning rate": settings.learning_rate, "backbone": settings.backbone_learning_rate}
    lines = [
        f"{name}: {rate:.3g}{scale}" + (f" = {rate * factor:.3g}" if scale else "") for name, rate in rates.items()
    ]
    if scale:
        lines[0] += " (scaled with the images per update, see `rate_scaling`)"
    if is_backbone_frozen:
        lines[1] = "backbone: frozen"
    elif settings.backbone_rate_decay != 1:
        lines[1] += f" in the last stage, times {settings.backbone_rate_decay} for each stage before it"
    return lines


def _parameter_lines(model: nn.Module) -> list[str]:
    trained, frozen = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, beginnings in PARTS.items() if name.startswith(beginnings))
        (trained if parameter.requires_grad else frozen)[part] += parameter.numel()
    width = max(map(len, PARTS))
    rows = {part: (trained[part], frozen[part]) for part in PARTS if trained[part] + frozen[part]}
    rows["all"] = (sum(trained.values()), sum(frozen.values()))
    counts = [f"  {name:<{width}}  {own / 1e6:8.3f} M  {other / 1e6:8.3f} M" for name, (own, other) in rows.items()]
    return [f"parameters: {'':<{width - 10}}   trained      frozen", *counts]
