"""A description of a run before it starts: parameters, updates, learning rates."""

from torch import nn

from .optimization import BACKBONE, rate_factor
from .settings import OptimizationSettings, TrainingSettings


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
    with_aids = settings.model.aids and settings.model.stage != "boxes"
    steps_per_epoch, total_steps = count_steps(optimization, batches_per_epoch)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    frozen = sum(p.numel() for p in model.parameters()) - sum(trained.values())
    lines = [
        f"recipe: {settings.recipe}, stage {settings.model.stage}" + (", with aids" if with_aids else ""),
        f"parameters: {sum(trained.values()) / 1e6:.3f} M trained, {frozen / 1e6:.3f} M frozen",
        f"steps: {total_steps} updates of {effective_batch} images, {steps_per_epoch} per epoch, "
        f"{total_steps / steps_per_epoch:.4g} epochs",
        *describe_rates(
            optimization, effective_batch, is_backbone_frozen=not any(BACKBONE in name for name in trained)
        ),
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
    factor, ratio = rate_factor(settings, effective_batch), f"{effective_batch}/{settings.reference_batch}"
    scale = {"none": "", "linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})"}[settings.rate_scaling]
    rates = {"learning rate": settings.learning_rate, "backbone": settings.backbone_learning_rate}
    lines = [
        f"{name}: {rate:.3g}{scale}" + (f" = {rate * factor:.3g}" if scale else "") for name, rate in rates.items()
    ]
    if is_backbone_frozen:
        lines[1] = "backbone: frozen"
    elif settings.backbone_rate_decay != 1:
        lines[1] += f" in the last stage, times {settings.backbone_rate_decay} for each stage before it"
    return lines
