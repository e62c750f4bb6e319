"""One run of `detr-panoptic train`: its parts, put together."""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    disable_fsdp_ram_efficient_loading,
    set_seed,
)
from datasets import Dataset
from PIL import Image
from rich.console import Console

from ..commands.frame import CommandError
from ..data import NamedRecords, segmentation_ids
from ..data.files import whole_files
from ..data.hub_names import hub_name
from ..evaluation import evaluate_model
from ..evaluation.panoptic_quality import PanopticStats, panoptic_quality
from ..inference.old_loading import without_progress_bars
from ..inference.old_prediction import segment
from ..visualization import draw_side_by_side
from .arguments import TrainingArguments
from .checkpoints import Progress, load_checkpoint, open_run, save_checkpoint
from .faults import held_output
from .loop import Surroundings, TrainingState, train
from .optimization import average_weights, build_optimizer, build_schedule, rate_factor
from .plan import describe_memory, describe_plan, is_out_of_memory, memory_advice
from .setup import build_batches, build_model, calibrate, collate, read_data
from .summary import SUMMARY, write_model_card, write_summary
from .tracking import RunLog, start_trackers, tracker_names

logger = logging.getLogger(__name__)

PICTURE = "validation.png"
PICTURED_IMAGES = 4
TRACKING = "tracking"
REFUSED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # FSDP of the first version


def prepare_sharding(accelerator: Accelerator) -> None:
    """Sets what a run under FSDP2 needs; nothing where weights are not sharded.

    Raises:
        CommandError: they are sharded in another way.
    """
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        # Accelerate 1.15 takes every buffer for a sharded tensor when the main process alone loads the weights, ...
        plugin.cpu_ram_efficient_loading = False
        disable_fsdp_ram_efficient_loading()
        # ... and its policy for half precision casts the boxes of the targets too: `train_step` casts instead.
        plugin.mixed_precision_policy = None
    elif accelerator.distributed_type in REFUSED:
        raise CommandError(
            f"{accelerator.distributed_type.value} is not supported: take DDP (accelerate launch --multi_gpu), or "
            "FSDP2 (--use_fsdp --fsdp_version 2)."
        )


def share_of(records: Dataset, accelerator: Accelerator) -> Dataset:
    """What this process measures: of fewer records than processes perhaps none, where `Dataset.shard` would fail."""
    return records.select(range(accelerator.process_index, len(records), accelerator.num_processes))


class TrainingRun:
    """Everything that the settings name.

    Args:
        arguments: of the run.

    Raises:
        CommandError: no data or no such model is named, or weights are to be sharded in another way than FSDP2.
        ValueError: a setting or the data are wrong.
    """

    def __init__(self, arguments: TrainingArguments) -> None:
        """Reads the data and builds the model; writes nothing."""
        self.arguments = arguments
        self.output = Path(arguments.run.output)
        self.accelerator = Accelerator(
            mixed_precision=arguments.run.mixed_precision,
            log_with=tracker_names(arguments.run.tracker) or None,
            project_config=ProjectConfiguration(str(self.output), logging_dir=str(self.output / TRACKING)),
        )
        prepare_sharding(self.accelerator)
        if not self.accelerator.is_main_process:
            logging.getLogger(__package__).setLevel(logging.ERROR)  # one process speaks for all
        set_seed(arguments.run.seed)
        self.data = read_data(arguments.data, arguments.run.seed)
        self.model, self.processor = build_model(arguments, self.data)
        self.batches = build_batches(arguments, self.data, self.processor)
        optimization = arguments.optimization
        images_per_window = optimization.batch_size * optimization.gradient_accumulation_steps
        self.effective_batch = images_per_window * self.accelerator.num_processes

    def start(self, *, overwrite: bool = False) -> bool:
        """Trains, from the last checkpoint if there is one; returns whether the run is finished.

        Raises:
            CommandError: there was not enough memory, or `held_output` met a fault.
            ValueError: the output folder belongs to something else.
        """
        prepare = partial(open_run, self.output, self.arguments, overwrite=overwrite)
        with held_output(self.output, self.accelerator, prepare):
            return self._train()

    def print_plan(self) -> None:
        """Shows what `start` would do, and the memory that it takes."""
        steps_per_epoch = len(self.accelerator.prepare(self.batches.loader))
        lines = [
            *[f"{name}: {words}" for name, words in self.data.describe().items()],
            *self._plan(steps_per_epoch),
            describe_memory(self._memory_advice()),
            f"output: {self.output}",
        ]
        if self.accelerator.is_main_process:
            Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def _plan(self, batches_per_epoch: int) -> list[str]:
        steps_per_epoch, total_steps = self._steps(batches_per_epoch)
        recipe = f"recipe: {self.arguments.recipe or 'none'}, stage {self.arguments.model.stage}"
        return [
            recipe,
            *describe_plan(
                self.model,
                self.arguments,
                total_steps=total_steps,
                steps_per_epoch=steps_per_epoch,
                effective_batch=self.effective_batch,
            ),
        ]

    def _steps(self, batches_per_epoch: int) -> tuple[int, int]:
        """Updates of an epoch and of the run."""
        optimization = self.arguments.optimization
        per_epoch = -(-batches_per_epoch // optimization.gradient_accumulation_steps)
        total = per_epoch * optimization.epochs
        return per_epoch, min(total, optimization.max_steps or total)

    def _memory_advice(self) -> dict[str, float]:
        targets = self.data.summary.segments_per_image
        config: Any = self.model.config
        return memory_advice(config, self.arguments, targets=targets)

    def _train(self) -> bool:
        arguments, accelerator = self.arguments, self.accelerator
        if arguments.model.calibrate and arguments.model.model is None:
            calibrate(self.model, self.batches, self.data)
        state, loader, total_steps = self._prepare()
        plan = self._plan(len(loader))
        if accelerator.is_main_process:
            for line in plan:
                logger.info(line)
        start_trackers(accelerator, arguments)
        load_checkpoint(accelerator, self.output, state.progress)
        with RunLog(accelerator, self.output, state.progress, total_steps=total_steps) as log:
            if state.progress.step and not state.progress.is_finished:
                log.say(f"goes on after update {state.progress.step}")
            surroundings = Surroundings(
                start_epoch=self.batches.start_epoch,
                evaluate=partial(self._evaluate, state, log),
                save=partial(
                    save_checkpoint, accelerator, self.output, state.progress, keep=arguments.run.keep_checkpoints
                ),
                log=log,
            )
            try:
                train(state, loader, accelerator, arguments, total_steps=total_steps, surroundings=surroundings)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise CommandError(f"Out of memory. Estimated {describe_memory(self._memory_advice())}") from error
            finally:
                self.batches.end()
        if accelerator.is_main_process:
            self._end(state.progress, plan)
        accelerator.end_training()
        return state.progress.is_finished

    def _prepare(self) -> tuple[TrainingState, Any, int]:
        """What an update changes, the batches and the number of updates; all known to the accelerator."""
        optimization, accelerator = self.arguments.optimization, self.accelerator
        model = self.model.to(accelerator.device)
        averaged = None if optimization.ema_decay is None else average_weights(model, optimization.ema_decay)
        whole = copy.deepcopy(model) if accelerator.is_fsdp2 else model
        factor = rate_factor(optimization, self.effective_batch)
        optimizer = build_optimizer(model, optimization, factor=factor)
        if self.arguments.run.compile:
            model.model.compile(dynamic=True)  # in place, so that names of weights stay; images differ in size
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, self.batches.loader)
        _, total_steps = self._steps(len(loader))
        schedule = build_schedule(optimizer, optimization, total_steps=total_steps)
        progress = Progress()
        accelerator.register_for_checkpointing(schedule, progress, *([] if averaged is None else [averaged]))
        set_seed(self.arguments.run.seed, device_specific=True)  # each process its own dropout
        return TrainingState(prepared, whole, optimizer, schedule, averaged, progress), loader, total_steps

    def _evaluate(self, state: TrainingState, log: RunLog) -> float:
        """Measures the state on this process's share, records it, and saves the model if it is the best so far."""
        accelerator = self.accelerator
        model = state.gather() if state.averaged is None else state.averaged.module
        metrics, quality = self._measure(model, NamedRecords(share_of(self.data.validation, self.accelerator)))
        metrics |= self._measure_training(model)
        log.evaluation(state.progress, metrics)
        if accelerator.is_main_process:
            pictures = self._draw(model)
            log.pictures(state.progress, pictures)
            if quality >= state.progress.best:  # of equals the one that has seen more
                self._publish(model, pictures)
        accelerator.wait_for_everyone()
        return quality

    def _measure(self, model: Any, share: Any) -> tuple[dict[str, float], float]:
        """The numbers of an evaluation, and the one that is to grow: PQ, or without masks the loss of boxes."""
        if self.arguments.model.stage == "boxes":
            loss = self._detection_loss(model, share)
            return {"validation_loss": loss}, -loss
        stats, result = self._quality(model, share)
        categories = self.data.categories
        metrics = {name: result["All"][name] for name in ("pq", "sq", "rq")}
        for kind in ("Things", "Stuff"):
            metrics |= {f"{name}_{kind.lower()}": result[kind][name] for name in ("pq", "sq", "rq")}
        occurs = (stats.tp + stats.fp + stats.fn > 0).tolist()
        for name, category_id, occurring in zip(categories.names, categories.category_ids, occurs, strict=True):
            if occurring:
                metrics[f"pq/{name}"] = result["per_class"][category_id]["pq"]
        return metrics, metrics["pq"]

    def _measure_training(self, model: Any) -> dict[str, float]:
        """PQ on the first training images, where the settings ask for it."""
        count = min(self.arguments.run.evaluate_training, len(self.data.train))
        if count == 0 or self.arguments.model.stage == "boxes":
            return {}
        _, result = self._quality(model, share_of(self.data.train.select(range(count)), self.accelerator))
        return {
            "training_pq": result["All"]["pq"],
            "training_pq_things": result["Things"]["pq"],
            "training_pq_stuff": result["Stuff"]["pq"],
        }

    def _quality(self, model: Any, share: Any) -> tuple[PanopticStats, dict[str, dict[Any, Any]]]:
        """Sums over all processes' shares, and PQ from them."""
        categories = self.data.categories
        stats = evaluate_model(
            model,
            self.processor,
            share,
            categories,
            batch_size=self.arguments.optimization.batch_size,
            sum_over_processes=partial(self.accelerator.reduce, reduction="sum"),
        )
        return stats, panoptic_quality(stats, category_ids=categories.category_ids, is_thing=categories.is_thing)

    @torch.no_grad()
    def _detection_loss(self, model: Any, share: Any) -> float:
        """Mean loss of the images, without augmentation."""
        collator = type(self.batches.collator)(self.processor)
        model.eval()
        total = torch.zeros(2, device=self.accelerator.device)
        for record in share:
            batch = collate(collator, [record], with_masks=False)
            labels = [{name: value.to(total.device) for name, value in target.items()} for target in batch["labels"]]
            inputs = {name: batch[name].to(total.device) for name in ("pixel_values", "pixel_mask")}
            total += torch.stack((model(**inputs, labels=labels, mask_queries=0).loss, total.new_ones(())))
        loss, images = self.accelerator.reduce(total, reduction="sum").tolist()
        return loss / max(images, 1)

    def _draw(self, model: Any) -> list[Image.Image]:
        """The same images each time, with annotation and prediction."""
        model.eval()
        pictures = []
        names = self.data.categories.id2label
        for record in self.data.validation.select(range(min(PICTURED_IMAGES, len(self.data.validation)))):
            image = record["image"]
            truth = {**record, "segmentation": segmentation_ids(record["segmentation"])}
            (prediction,) = segment([image], model, self.processor, task="panoptic", threshold=None)
            found = {**prediction, "segmentation": prediction["segmentation"].cpu()}
            pictures.append(draw_side_by_side(image, truth, found, names))
        return pictures

    def _publish(self, model: Any, pictures: list[Image.Image]) -> None:
        """Makes this the model of the output folder."""
        width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
        sheet = Image.new("RGB", (width, height), "white")
        top = 0
        for picture in pictures:
            sheet.paste(picture, (0, top))
            top += picture.height
        with whole_files(self.output, "The model") as folder, without_progress_bars():
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            sheet.save(folder / PICTURE)

    def _end(self, progress: Progress, plan: list[str]) -> None:
        """Says where the run is, and sums it up if it is finished."""
        if not progress.is_finished:
            logger.info("stopped after update %d; the same command goes on from there", progress.step)
            return
        self._summarize(plan)
        logger.info(
            "finished after update %d: the best model, its card and %s are in %s", progress.step, SUMMARY, self.output
        )

    def _summarize(self, plan: list[str]) -> None:
        data = self.data.describe()
        write_summary(self.output, plan, data)
        start = self.arguments.model.model
        write_model_card(
            self.output,
            self.model,
            measured_on=self.data.validation_name,
            data=data,
            recipe=plan,
            picture=PICTURE,
            datasets=tuple(filter(None, (hub_name(self.arguments.data.data or ""),))),
            base_model=None if start is None else hub_name(start),
        )
