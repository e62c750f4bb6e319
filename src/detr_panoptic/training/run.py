"""`train`: a training run, from settings to a model folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from .reports import best_evaluation, write_reports
from .settings import RunSettings, TrainingSettings, resolve_settings
from .state import Progress, Run
from .tracking import RunLog, start_trackers, tracker_names

logger = logging.getLogger(__name__)

REFUSED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # these shard the weights
IN_MEMORY = "data in memory"


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`; prints as the plan of the run and its best quality."""

    model_folder: Path  # the best model, for `from_pretrained`, with its card, metrics and checkpoints
    settings: TrainingSettings
    plan: Sequence[str] = field(repr=False)  # lines about data, parameters, updates and learning rates
    total_steps: int  # updates of the whole run
    steps: int = 0  # updates so far
    metrics: Mapping[str, float] = field(repr=False, default_factory=dict)  # of the best evaluation: `pq`, ...
    is_finished: bool = False  # otherwise the same call resumes the run
    stop_signal: int | None = None  # SIGTERM, or SIGINT for Ctrl-C, if one stopped the run

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
        source: training data: whatever `read_panoptic` takes, "scenes" for generated images, or a `PanopticData`. May
            also be `data` in `config`.
        output: folder of the results. May also be in `config`.
        recipe: defaults for a purpose: "finetune" (the default, unless `config` names one), "finetune-small",
            "from-scratch", "joint", "boxes", "masks", or "none".
        config: YAML file with any of the settings. It wins over the recipe, and keywords win over it.
        overwrite: discard the run in the output folder instead of resuming it.
        dry_run: read the data and build the model, but write nothing; print the result to see the plan.
        progress: whether to show a progress bar on a terminal.
        **settings: any field of `ModelSettings`, `DataSettings`, `OptimizationSettings` and `RunSettings` in
            `detr_panoptic.training.settings`: `epochs`, `batch_size`, `learning_rate`, `validation_data` (which may
            be a `PanopticData`, too), ...

    Raises:
        ValueError: a setting is wrong or unknown, the data or the checkpoint cannot be read, the output folder
            belongs to something else, or memory is not sufficient.
        OSError: the output folder cannot be written to.
        FloatingPointError: a loss is not finite; names the images.

    Example:
        >>> from detr_panoptic import train
        >>> tiny = dict(recipe="none", backbone="test_resnet", short_side=64, long_side=64, limit=4, epochs=5)
        >>> result = train("scenes", output="my_model", dry_run=True, **tiny)
        >>> result.total_steps, result.is_finished
        (10, False)
    """
    given = {name: value for name, value in {"data": source, "output": output}.items() if value is not None} | settings
    in_memory = {name: value for name, value in given.items() if isinstance(value, PanopticData)}
    resolved = resolve_settings(recipe, config, given | dict.fromkeys(in_memory, IN_MEMORY))
    if resolved.run.output is None:
        raise ValueError("`output` is needed: a folder for the model, checkpoints and metrics.")
    folder = Path(resolved.run.output)
    with started_accelerator(resolved.run) as accelerator:
        set_seed(resolved.run.seed)
        data = read_data(resolved.data, resolved.run.seed, in_memory)
        model, processor = build_model(resolved, data)
        fixed = fix_batch_size(resolved, model, accelerator, most_segments=data.summary.most_segments)
        batches = build_batches(fixed, data, processor)
        if dry_run:
            loader = accelerator.prepare(batches.loader)
            return TrainingResult(folder, fixed, *make_plan(fixed, accelerator, data, model, loader))
        with held_output(folder, accelerator, partial(open_run, folder, resolved, overwrite=overwrite)):
            if fixed.model.calibrate and fixed.model.model is None:
                calibrate_new_model(model, batches, data)
            return execute(fixed, accelerator, data, model, processor, batches, progress=progress)


@contextmanager
def started_accelerator(settings: RunSettings) -> Iterator[Accelerator]:
    """Starts Accelerate; raises ValueError if weights are to be sharded or a tracker is not installed."""
    folder = str(settings.output)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=tracker_names(settings.tracker) or None,
        project_config=ProjectConfiguration(folder, logging_dir=f"{folder}/tracking"),
    )
    if accelerator.distributed_type in REFUSED:
        raise ValueError(f"{accelerator.distributed_type.value} is not supported: use DDP (--multi_gpu).")
    if not accelerator.is_main_process:
        logging.getLogger(__package__).setLevel(logging.ERROR)  # only the main process logs
    try:
        yield accelerator
    finally:
        AcceleratorState._reset_state()  # otherwise the next run of this process could not choose another precision


def make_plan(
    settings: TrainingSettings, accelerator: Accelerator, data: TrainingData, model: torch.nn.Module, loader: Any
) -> tuple[list[str], int]:
    """Returns lines that describe a run, and its number of updates; the loader is prepared by the accelerator."""
    batch, batches_per_epoch = effective_batch(settings, accelerator), len(loader)
    plan = describe_plan(model, settings, batches_per_epoch=batches_per_epoch, effective_batch=batch)
    descriptions = [f"{name}: {text}" for name, text in data.describe().items()]
    return [*descriptions, *plan], count_steps(settings.optimization, batches_per_epoch)[1]


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
    optimization, folder = settings.optimization, Path(str(settings.run.output))
    model = model.to(accelerator.device)
    averaged = None if optimization.ema_decay is None else average_weights(model, optimization.ema_decay)
    factor = rate_factor(optimization, effective_batch(settings, accelerator))
    optimizer = build_optimizer(model, optimization, factor=factor)
    if settings.run.compile:
        model.model.compile(dynamic=True)  # in place, so that names of weights stay; sizes of images differ
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, batches.loader)
    plan, total_steps = make_plan(settings, accelerator, data, model, loader)
    schedule, position = build_schedule(optimizer, optimization, total_steps=total_steps), Progress()
    accelerator.register_for_checkpointing(schedule, position, *([] if averaged is None else [averaged]))
    set_seed(settings.run.seed, device_specific=True)  # dropout differs between processes
    for line in plan:
        logger.info(line)
    start_trackers(accelerator, settings)
    load_checkpoint(accelerator, folder, position)
    if position.step and not position.is_finished:
        logger.info("resuming after update %d", position.step)
    log = RunLog(accelerator, folder, total_steps=total_steps, done=position.step, progress=progress)
    run = Run(
        settings=settings,
        accelerator=accelerator,
        data=data,
        processor=processor,
        batches=batches,
        loader=loader,
        model=prepared,
        optimizer=optimizer,
        schedule=schedule,
        averaged=averaged,
        progress=position,
        total_steps=total_steps,
        log=log,
    )
    with closing(batches), closing(log.bar):
        try:
            stop_signal = run_epochs(run)
        except torch.OutOfMemoryError as error:
            size = optimization.batch_size
            text = f"Out of memory with `batch_size` {size}: use auto, smaller images (`short_side`) or bf16."
            raise ValueError(text) from error
    if position.is_finished and accelerator.is_main_process:
        write_reports(folder, run.evaluated, settings, data, plan)
    done = "finished after update %d: see %s" if position.is_finished else "stopped after update %d; %s can be resumed"
    logger.info(done, position.step, folder)
    accelerator.end_training()
    metrics = {name: value for name, value in best_evaluation(folder).items() if name not in ("step", "epoch")}
    return TrainingResult(
        folder, settings, plan, total_steps, position.step, metrics, position.is_finished, stop_signal
    )
