"""`train`: a training run, from settings to a model folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    set_seed,
)

from ..data import PanopticData
from ..inference.loading import can_be_read
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .data import Batches, read_data
from .loop import run_epochs
from .model import build_model, calibrate
from .optimization import fix_batch_size
from .places import attach_places, predicted_places, spread_places
from .reports import best_evaluation, describe_plan, write_reports, write_split
from .settings import (
    ARCHITECTURE,
    DEFAULT_RECIPE,
    FEW_IMAGES,
    RunSettings,
    TrainingSettings,
    read_settings,
    resolve_settings,
)
from .state import Run, check_output, open_run, recipe_of

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`; prints as the plan of the run or its best quality.

    Examples:
        >>> from pathlib import Path
        >>> settings = resolve_settings("none", overrides={"data": "scenes"})
        >>> print(TrainingResult(Path("my_model"), settings, [], total_steps=9, steps=9, is_finished=True))
        output: my_model
        updates: 9 of 9, finished
    """

    model_folder: Path  # the best model, for `from_pretrained`, with its card, metrics and checkpoints
    settings: TrainingSettings
    plan: Sequence[str] = field(repr=False)  # lines about data, parameters, updates and learning rates
    total_steps: int  # updates of the whole run
    steps: int = 0  # updates so far
    metrics: Mapping[str, float] = field(repr=False, default_factory=dict)  # of the best evaluation: `pq`, ...
    is_finished: bool = False  # otherwise the same call resumes the run
    stop_signal: int | None = None  # SIGTERM, or SIGINT for Ctrl-C, if one stopped the run
    on_training_images: bool = False  # whether `metrics` are those of the training images

    def __str__(self) -> str:
        """Returns the plan before the first update, and afterwards the progress and the best quality."""
        lines = [*([] if self.steps else self.plan), f"output: {self.model_folder}"]
        if self.steps:
            state = "finished" if self.is_finished else "stopped; the same call resumes it"
            lines.append(f"updates: {self.steps} of {self.total_steps}, {state}")
        if self.metrics:
            groups = {"PQ": "pq", "things": "pq_things", "stuff": "pq_stuff"}
            on = "training " if self.on_training_images else ""
            lines.append("  ".join(f"{on}{name} {100 * self.metrics[key]:.1f}" for name, key in groups.items()))
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
        recipe: defaults for a purpose: "finetune", "finetune-small", "few-photographs", "from-scratch", "joint",
            "boxes", "masks", or "none". Unless `config` names one, it is chosen, and the log says why: "finetune",
            or for fewer than 1000 images "finetune-small", or "few-photographs" if COCO weights cannot be fetched;
            "from-scratch" if a part of the architecture is named.
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

    Examples:
        >>> from detr_panoptic import train
        >>> tiny = dict(recipe="none", backbone="test_resnet", short_side=64, long_side=64, limit=4, epochs=5)
        >>> result = train("scenes", output="my_model", dry_run=True, **tiny)
        >>> result.total_steps, result.is_finished
        (10, False)
    """
    named = {name: value for name, value in {"data": source, "output": output}.items() if value is not None} | settings
    in_memory = {name: value for name, value in named.items() if isinstance(value, PanopticData)}
    given = (read_settings(config) if config is not None else {}) | named | dict.fromkeys(in_memory, "data in memory")
    if given.get("output") is None:
        raise ValueError("`output` is needed: a folder for the model, checkpoints and metrics.")
    folder = Path(str(given["output"]))
    recipe = recipe or given.get("recipe") or (None if overwrite else recipe_of(folder))
    resolved = resolve_settings(recipe, overrides=given)
    if not (overwrite or dry_run):
        check_output(folder, resolved)
    with started_accelerator(resolved.run) as accelerator:
        set_seed(resolved.run.seed)
        data = read_data(resolved.data, resolved.run.seed, in_memory)
        if recipe is None:
            choice = [choose_recipe(len(data.train), given)]
            broadcast_object_list(choice)  # what can be fetched may differ between processes
            recipe, provisional = choice[0][0], resolved
            logger.info("recipe: %s, chosen for %s", *choice[0])
            resolved = resolve_settings(recipe, overrides=given)
            if resolved.data != provisional.data:  # scenes have the size of the recipe
                data = read_data(resolved.data, resolved.run.seed, in_memory)
        model, processor = build_model(resolved, data)
        fixed = fix_batch_size(resolved, model, accelerator, most_segments=max(map(len, data.sample)))
        if dry_run:
            return TrainingResult(folder, fixed, *describe_plan(fixed, data, model, accelerator.num_processes))
        with open_run(folder, resolved, accelerator, overwrite=overwrite):
            batches = Batches(fixed, data, processor)
            prepare_model(model, batches, fixed, device=accelerator.device)
            shown = {n: v if isinstance(v, bool | int | float) else str(v) for n, v in fixed.to_dict().items()}
            accelerator.init_trackers("detr-panoptic", shown, init_kwargs={"wandb": {"dir": str(folder)}})
            write_split(folder, data, is_writer=accelerator.is_main_process)
            return execute(Run(fixed, accelerator, data, model, processor, batches, progress=progress))


def choose_recipe(images: int, given: Mapping[str, Any]) -> tuple[str, str]:
    """Chooses a recipe by the number of training images and the settings that are given; returns it and the reason."""
    starts_new = given.get("model") is None
    if starts_new and given.keys() & set(ARCHITECTURE):
        return "from-scratch", "a part of the architecture is named, so the transformer is new"
    if images >= FEW_IMAGES:
        return DEFAULT_RECIPE, f"{FEW_IMAGES} images or more"
    source, reason = str(resolve_settings("finetune-small").model.model), f"fewer than {FEW_IMAGES} images"
    if starts_new and not can_be_read(source):
        return "few-photographs", f"{reason}, and {source} is neither here nor can it be fetched"
    return "finetune-small", reason


def prepare_model(
    model: DetrPanopticForSegmentation, batches: Batches, settings: TrainingSettings, *, device: torch.device
) -> None:
    """Does what the settings want done before the first update; the same on every process."""
    if settings.model.calibrate:
        first = batches.first(CALIBRATION_IMAGES)
        calibrate(model, first["pixel_values"], first.get("pixel_mask"))
    if weight := settings.optimization.place_cost:
        endless, queries, is_new = batches.endless(), model.config.num_queries, settings.model.model is None
        places = spread_places(endless, queries) if is_new else predicted_places(model.to(device), endless)
        attach_places(model.to("cpu"), places, weight)


@contextmanager
def started_accelerator(settings: RunSettings) -> Iterator[Accelerator]:
    """Starts Accelerate; raises ValueError if weights are to be sharded or a tracker is not installed."""
    trackers = [name.strip() for name in (settings.tracker or "").split(",") if name.strip()]
    for name in trackers:
        if find_spec(name) is None:
            raise ValueError(f"`tracker` must be installed for Accelerate, such as tensorboard, got {name!r}.")
    places = ProjectConfiguration(str(settings.output), logging_dir=f"{settings.output}/tracking")
    precision = settings.mixed_precision
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=trackers or None,
        project_config=places,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),  # batches lie in pinned memory
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{accelerator.distributed_type.value} is not supported: use DDP (--multi_gpu).")
    if not accelerator.is_main_process:
        logging.getLogger(__package__).setLevel(logging.ERROR)  # only the main process logs
    try:
        yield accelerator
    finally:
        AcceleratorState._reset_state()  # otherwise the next run of this process could not choose another precision


def execute(run: Run) -> TrainingResult:
    """Trains to the end or until a signal, and writes the reports of a finished run."""
    settings, progress, folder = run.settings, run.progress, run.folder
    for line in run.plan:
        logger.info(line)
    if progress.step and not progress.is_finished:
        logger.info("resuming after update %d", progress.step)
    with closing(run.batches), closing(run.log.bar):
        try:
            stop_signal = run_epochs(run)
        except torch.OutOfMemoryError as error:
            size = settings.optimization.batch_size
            text = f"Out of memory with `batch_size` {size}: use auto, smaller images (`short_side`) or bf16."
            raise ValueError(text) from error
    if progress.is_finished and run.accelerator.is_main_process:
        write_reports(folder, run.evaluated, settings, run.data, run.plan, run.best)
    done = "finished after update %d: see %s" if progress.is_finished else "stopped after update %d; %s can be resumed"
    logger.info(done, progress.step, folder)
    run.accelerator.end_training()
    metrics = {name: value for name, value in best_evaluation(folder).items() if name not in ("step", "epoch")}
    return TrainingResult(
        folder,
        settings,
        run.plan,
        run.total_steps,
        progress.step,
        metrics,
        progress.is_finished,
        stop_signal,
        run.data.is_measured_on_training,
    )
