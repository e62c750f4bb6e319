"""Evaluation during training, and the best model of a run."""

from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from PIL import Image

from ..data import NamedRecords, PanopticData
from ..data.files import whole_files
from ..data.records import segmentation_ids
from ..evaluation import evaluate
from ..inference import Predictor
from ..inference.loading import quiet_transformers
from ..visualization import draw_side_by_side, stack
from .batches import collate
from .optimization import unchanged_random_state
from .reports import PICTURE
from .state import Run

PICTURED_IMAGES = 4


def validate(run: Run) -> float:
    """Measures the current model, logs the metrics and saves the model if it is the best so far.

    Returns:
        PQ in [0, 1]; in stage "boxes", which trains no masks, the negative loss.
    """
    model, accelerator, progress = run.evaluated, run.accelerator, run.progress
    with unchanged_random_state(accelerator.device):
        metrics = measure(run, model)
    quality = metrics["pq"] if "pq" in metrics else -metrics["validation_loss"]
    run.log.evaluation(progress.step, progress.epoch, metrics)
    if accelerator.is_main_process:
        pictures = draw_validation(run, model)
        run.log.pictures(progress.step, pictures)
        if quality >= progress.best:  # of equal models, the one that has seen more images
            publish(run, model, pictures)
    accelerator.wait_for_everyone()
    return quality


def measure(run: Run, model: Any) -> dict[str, float]:
    """Returns the metrics of the validation images and, if the settings ask for it, PQ of some training images."""
    if run.settings.model.stage == "boxes":
        return {"validation_loss": detection_loss(run, model)}
    metrics = panoptic_metrics(run, model, run.data.validation)
    if count := min(run.settings.run.evaluate_training, len(run.data.train)):
        training = panoptic_metrics(run, model, run.data.train.select(range(count)))
        metrics |= {f"training_{name}": training[name] for name in ("pq", "pq_things", "pq_stuff")}
    return metrics


def panoptic_metrics(run: Run, model: Any, records: Dataset) -> dict[str, float]:
    """Returns PQ, SQ and RQ in [0, 1] of all classes, things and stuff, and `pq/NAME` of each class that occurs."""
    data = PanopticData(records, run.data.categories)
    quality = evaluate(Predictor(model, run.processor), data, average_precision=False, progress=False).quality
    groups = {"": quality.overall, "_things": quality.things, "_stuff": quality.stuff}
    metrics = {f"{name}{end}": getattr(group, name) for end, group in groups.items() for name in ("pq", "sq", "rq")}
    return metrics | {f"pq/{name}": row.pq for name, row in quality.per_class.items() if row.occurs}


@torch.no_grad()
def detection_loss(run: Run, model: Any) -> float:
    """Returns the mean loss of the validation images without masks and without augmentation."""
    collator = type(run.batches.collator)(run.processor)
    device, records = run.accelerator.device, NamedRecords(run.data.validation)
    model.eval()
    total = torch.zeros(2, device=device)
    for index in range(run.accelerator.process_index, len(records), run.accelerator.num_processes):
        batch = send_to_device(collate(collator, [records[index]], with_masks=False), device)
        total += torch.stack((model(**batch).loss, total.new_ones(())))
    loss, images = run.accelerator.reduce(total, reduction="sum").tolist()
    return loss / max(images, 1)


def draw_validation(run: Run, model: Any) -> list[Image.Image]:
    """Draws annotation and prediction of the first validation images."""
    predictor, names, pictures = Predictor(model, run.processor), run.data.categories.id2label, []
    records = NamedRecords(run.data.validation)
    for index in range(min(PICTURED_IMAGES, len(records))):
        record = records[index]
        truth = {**record, "segmentation": segmentation_ids(record["segmentation"])}
        found = predictor(record["image"])
        prediction = {"segmentation": found.segmentation, "segments_info": found.segments_info}
        pictures.append(draw_side_by_side(record["image"], truth, prediction, names))
    return pictures


def publish(run: Run, model: Any, pictures: list[Image.Image]) -> None:
    """Saves the model, its image processor and the pictures in the output folder."""
    with whole_files(run.folder, "The model") as folder, quiet_transformers():
        model.save_pretrained(folder)
        run.processor.save_pretrained(folder)
        stack(pictures).save(folder / PICTURE)
