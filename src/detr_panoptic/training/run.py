"""`train`: a training run, from settings to a model folder."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed

from ..data import PanopticData
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .batch_size import fix_batch_size
from .batches import Batches, build_batches
from .checkpoints import held_output, load_checkpoint, open_run
from .data import TrainingData, read_data
from .loop import run_epochs
from .model import build_model, calibrate_new_model
from .optimization import average_weights, build_optimizer, build_schedule, rate_factor
from .plan import count_steps, describe_plan
from .settings import RunSettings, TrainingSettings, resolve_settings
from .state import Progress, Run, TrainingState
from .summary import SUMMARY, best_evaluation, write_reports
from .tracking import RunLog, start_trackers, tracker_names

logger = logging.getLogger(__name__)

TRACKING = "tracking"
REFUSED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # these shard the weights
IN_MEMORY = "data in memory"


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`.

    Args:
        model_folder: The best model and its image processor, for `from_pretrained`; also holds the metrics, the
            checkpoints and, if the run is finished, the model card.
        settings: All settings of the run.
        plan: Lines about the data, the parameters, the updates and the learning rates.
        metrics: Metrics of the best evaluation in [0, 1]: `pq`, `sq`, `rq`, `pq_things`, `pq/NAME`, ...
        steps: Updates so far.
        total_steps: Updates of the whole run.
        is_finished: Whether the run has ended; otherwise the same call resumes it.
        stop_signal: Number of the signal that stopped the run: SIGTERM, or SIGINT for Ctrl-C.
    """

    model_folder: Path
    settings: TrainingSettings
    plan: Sequence[str] = field(repr=False, default=())
    metrics: Mapping[str, float] = field(repr=False, default_factory=dict)
    steps: int = 0
    total_steps: int = 0
    is_finished: bool = False
    stop_signal: int | None = None

    def __str__(self) -> str:
        """Returns the plan before the first update, and afterwards the progress and the best quality."""
        lines = [*([] if self.steps else self.plan), f"output: {self.model_folder}"]
        if self.steps:
            state = "finished" if self.is_finished else "stopped; the same call resumes it"
            lines.append(f"updates: {self.steps} of {self.total_steps}, {state}")
        if self.metrics:
            groups = {"PQ": "pq", "things": "pq_things", "stuff": "pq_stuff"}
            lines.append("  ".join(f"{name} {100 * self.metrics[key]:.1f}" for name, key in groups.items()))
        return "\n".join(lines)


def train(
    source: str | Path | PanopticData | None = None,
    *,
    output: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **settings: Any,
) -> TrainingResult:
    """Trains a model on images with panoptic annotations.

    The output folder receives the best model by PQ, its image processor, metrics and checkpoints. The same call
    resumes a run that was stopped, and ends with the same weights. SIGTERM and Ctrl-C save a checkpoint and stop.
    Start several processes with `accelerate launch`.

    Args:
        source: Training data: whatever `read_panoptic` takes, "scenes" for generated images, or a `PanopticData`. May
            also be given as `data` in `config`.
        output: Folder of the results. May also be given in `config`.
        recipe: Defaults for a purpose: "finetune" (the default, unless `config` names one), "finetune-small",
            "from-scratch", "joint", "boxes", "masks", or "none".
        config: YAML file with any of the settings. Layers: recipe < file < keywords.
        overwrite: Discard the run in the output folder instead of resuming it.
        dry_run: Read the data and build the model, but do not train and write nothing; print the result to see the
            plan.
        progress: Whether to show a progress bar on a terminal.
        **settings: Any field of `ModelSettings`, `DataSettings`, `OptimizationSettings` and `RunSettings` in
            `detr_panoptic.training.settings`: `epochs`, `batch_size`, `learning_rate`, `validation_data`, ...
            `validation_data` may be a `PanopticData`, too.

    Raises:
        ValueError: If a setting is wrong or unknown, the data or the checkpoint cannot be read, the output folder
            belongs to something else, or memory is not sufficient.
        OSError: If the output folder cannot be written to.
        FloatingPointError: If a loss is not finite; names the images.

    Example:
        >>> from detr_panoptic import train
        >>> result = train("my_data", output="my_model", epochs=20)  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
        >>> model = DetrPanopticForSegmentation.from_pretrained(result.model_folder)  # doctest: +SKIP
    """
    named = {"data": source, "output": output, **settings}
    in_memory = {name: named.get(name) for name in ("data", "validation_data")}
    in_memory = {name: value for name, value in in_memory.items() if isinstance(value, PanopticData)}
    given = {name: value for name, value in named.items() if value is not None or name in settings}
    resolved = resolve_settings(recipe, config, given | dict.fromkeys(in_memory, IN_MEMORY))
    if resolved.run.output is None:
        raise ValueError("`output` is needed: a folder for the model, checkpoints and metrics.")
    accelerator = start_accelerator(resolved.run)
    try:
        set_seed(resolved.run.seed)
        sources = {"source": in_memory.get("data"), "validation_source": in_memory.get("validation_data")}
        data = read_data(resolved.data, resolved.run.seed, **sources)
        model, processor = build_model(resolved, data)
        fixed = fix_batch_size(resolved, model, accelerator, most_segments=data.summary.most_segments)
        batches = build_batches(fixed, data, processor)
        if dry_run:
            plan, total_steps = make_plan(fixed, accelerator, data, model, len(accelerator.prepare(batches.loader)))
            return TrainingResult(Path(resolved.run.output), fixed, plan, total_steps=total_steps)
        folder = Path(resolved.run.output)
        with held_output(folder, accelerator, partial(open_run, folder, resolved, overwrite=overwrite)):
            if fixed.model.calibrate and fixed.model.model is None:
                calibrate_new_model(model, batches, data)
            return execute(fixed, accelerator, data, model, processor, batches, progress=progress)
    finally:
        AcceleratorState._reset_state()  # otherwise the next run of this process could not choose another precision


def start_accelerator(settings: RunSettings) -> Accelerator:
    """Starts Accelerate with the precision and the trackers of the settings.

    Raises:
        ValueError: If the weights are to be sharded, or a tracker is not available.
    """
    folder = Path(str(settings.output))
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=tracker_names(settings.tracker) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / TRACKING)),
    )
    if accelerator.distributed_type in REFUSED:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: use DDP (`accelerate launch --multi_gpu`)."
        )
    if not accelerator.is_main_process:
        logging.getLogger(__package__).setLevel(logging.ERROR)  # only the main process logs
    return accelerator


def make_plan(
    settings: TrainingSettings,
    accelerator: Accelerator,
    data: TrainingData,
    model: DetrPanopticForSegmentation,
    batches_per_epoch: int,
) -> tuple[list[str], int]:
    """Returns the plan of a run, without the data, and its number of updates."""
    _, total_steps = count_steps(settings.optimization, batches_per_epoch)
    plan = describe_plan(
        model,
        settings,
        batches_per_epoch=batches_per_epoch,
        effective_batch=effective_batch(settings, accelerator),
    )
    return [*(f"{name}: {text}" for name, text in data.describe().items()), *plan], total_steps


def effective_batch(settings: TrainingSettings, accelerator: Accelerator) -> int:
    """Returns the images per update of all processes."""
    optimization = settings.optimization
    return int(optimization.batch_size) * optimization.gradient_accumulation_steps * accelerator.num_processes


def execute(
    settings: TrainingSettings,
    accelerator: Accelerator,
    data: TrainingData,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    batches: Batches,
    *,
    progress: bool,
) -> TrainingResult:
    """Trains from the last checkpoint, or from the beginning, and writes the reports of a finished run."""
    folder = Path(str(settings.run.output))
    state, loader = prepare(settings, accelerator, model, batches)
    plan, total_steps = make_plan(settings, accelerator, data, model, len(loader))
    if accelerator.is_main_process:
        for line in plan:
            logger.info(line)
    start_trackers(accelerator, settings)
    load_checkpoint(accelerator, folder, state.progress)
    position = state.progress
    if position.step and not position.is_finished:
        logger.info("resuming after update %d", position.step)
    with RunLog(accelerator, folder, total_steps=total_steps, done=position.step, progress=progress) as log:
        run = Run(settings, folder, accelerator, data, processor, batches, loader, state, total_steps, log)
        try:
            stop_signal = run_epochs(run)
        except torch.OutOfMemoryError as error:
            size = settings.optimization.batch_size
            raise ValueError(
                f"Out of memory with `batch_size` {size}: use batch_size auto, smaller images (`short_side`), or "
                "`mixed_precision` bf16."
            ) from error
        finally:
            batches.end()
    if accelerator.is_main_process and position.is_finished:
        write_reports(folder, state.evaluated, settings, data, plan)
        logger.info("finished after update %d: %s has the model and %s", position.step, folder, SUMMARY)
    elif accelerator.is_main_process:
        logger.info("stopped after update %d; the same call resumes the run", position.step)
    accelerator.end_training()
    metrics = {name: value for name, value in best_evaluation(folder).items() if name not in ("step", "epoch")}
    return TrainingResult(
        folder, settings, plan, metrics, position.step, total_steps, position.is_finished, stop_signal
    )


def prepare(
    settings: TrainingSettings, accelerator: Accelerator, model: DetrPanopticForSegmentation, batches: Batches
) -> tuple[TrainingState, Any]:
    """Returns what updates change, and the loader; both prepared by the accelerator and part of its checkpoints."""
    optimization = settings.optimization
    model = model.to(accelerator.device)
    averaged = None if optimization.ema_decay is None else average_weights(model, optimization.ema_decay)
    factor = rate_factor(optimization, effective_batch(settings, accelerator))
    optimizer = build_optimizer(model, optimization, factor=factor)
    if settings.run.compile:
        model.model.compile(dynamic=True)  # in place, so that names of weights stay; sizes of images differ
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, batches.loader)
    _, total_steps = count_steps(optimization, len(loader))
    schedule = build_schedule(optimizer, optimization, total_steps=total_steps)
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress, *([] if averaged is None else [averaged]))
    set_seed(settings.run.seed, device_specific=True)  # dropout differs between processes
    return TrainingState(prepared, model, optimizer, schedule, averaged, progress), loader
