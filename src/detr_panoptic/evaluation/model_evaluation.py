"""Evaluation of a model on a dataset: predict, then compare."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from ..data import PanopticData
from ..data.hub_names import hub_name
from ..data.records import truth_ids
from ..inference.predictor import Predictor, processes
from ..scenes.source import read_source
from .average_precision import average_precision as compute_average_precision
from .average_precision import true_instances
from .matching import match_classes, relabel
from .panoptic_quality import PanopticQuality
from .report import Evaluation, Example

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from ..data.categories import Categories
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.prediction import Prediction
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .average_precision import Instance

PREDICTIONS = "predictions"  # folder inside the output folder
NUM_WORST = 4  # images that are kept to be drawn


def evaluate(  # noqa: PLR0913  every option of a long run, each with a default
    model: str | Path | Predictor | tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor],
    source: str | Path | PanopticData,
    *,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    average_precision: bool | Literal["box", "mask"] = True,
    threshold: float | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> Evaluation:
    """Measures panoptic quality and average precision of a model on a dataset.

    Classes of the model and of the data are matched by name. Predicted segments of classes that the data does not have
    become void, because the data cannot judge them. Under `accelerate launch` the processes share the images, and each
    returns the same result.

    Args:
        model: a folder, a repository on the Hub, a `Predictor`, or a model and its image processor.
        source: an annotated dataset in any format of `read_panoptic`, or "scenes".
        split: of the source.
        data_format: of the source; None recognizes it.
        limit: number of images, from the first.
        output: folder for the predictions and the result. Predictions that it holds already are used, so that a run
            that was interrupted continues where it stopped. None keeps everything in memory.
        average_precision: True computes it for boxes and masks; "box" for boxes only, which needs no further masks;
            False leaves it out.
        threshold: least score of a segment in panoptic quality; None: the image processor's.
        batch_size: images of similar shape that share a forward; their padding changes the result slightly.
        num_workers: processes that load images; None: none on CPU, up to 8 on a GPU.
        device: of a model that is loaded; "auto" takes a GPU if there is one.
        dtype: of a model that is loaded, such as "bfloat16"; None: float32.
        on_error: for an image that cannot be read, "stop" raises its error, and "skip" logs it, lists it in
            `Evaluation.failures` and leaves it out.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the model lacks a class of the data, an argument is out of range, an image cannot be read, or the
            output folder holds predictions of other settings.
        FloatingPointError: the model's outputs are not finite.

    Example:
        >>> from detr_panoptic import evaluate
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> evaluation = evaluate(BUNDLED, "scenes", limit=4, average_precision=False, progress=False)
        >>> 0.5 < evaluation.pq < 1
        True
    """
    kinds = _kinds(average_precision)
    may_skip = on_error == "skip"
    data = read_source(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=may_skip)
    predictor = _predictor(model, device=device, dtype=dtype)
    comparison = _Comparison(data.categories, predictor.categories.id2label, kinds)
    options: dict[str, Any] = {
        "threshold": threshold,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "detections": kinds[-1] if kinds else "none",
        "on_error": on_error,
    }
    failures: list[str] = []
    state = processes()
    if output is None:
        results = predictor.iterate(data, share=True, failures=failures, **options)
        share = len(data.records) // state.num_processes
        disable = None if progress and state.is_main_process else True
        comparison.add_all(tqdm(results, total=share, desc="evaluating", unit="image", disable=disable))
        comparison, failures = comparison.gathered(), sorted(gather_object(failures))
    else:
        folder = predictor.predict(
            data, Path(output) / PREDICTIONS, to="coco", overlay=False, progress=progress, **options
        )
        if state.is_main_process:
            comparison.add_all(
                tqdm(folder, total=len(folder), desc="comparing", unit="image", disable=not progress or None)
            )
        (comparison,) = broadcast_object_list([comparison])
        failures = folder.failures
    used = predictor.processor.threshold if threshold is None else threshold
    evaluation = comparison.result(
        failures=failures,
        dataset=_dataset_name(source, split),
        settings={"threshold": used, "dtype": str(predictor.model.dtype), "batch_size": batch_size},
    )
    if output is not None and state.is_main_process:
        evaluation.save(output)
    return evaluation


class _Image(NamedTuple):
    """The contribution of one image to the metrics."""

    number: int  # in the data
    quality: PanopticQuality
    size: tuple[int, int]  # (height, width)
    true: list[Instance]
    detected: list[Instance]


class _Comparison:
    """Compares predictions with their truth.

    Args:
        categories: of the data.
        id2label: names of the model's labels.
        kinds: of average precision.

    Raises:
        ValueError: the model lacks a class of the data.
    """

    def __init__(self, categories: Categories, id2label: Mapping[int, str], kinds: tuple[str, ...]) -> None:
        self.categories = categories
        self.labels = match_classes(categories, id2label)
        self.kinds = kinds
        self.images: list[_Image] = []
        self.worst: list[tuple[float, int, Example]] = []

    def add_all(self, results: Iterable[tuple[Mapping[str, Any], Prediction]]) -> None:
        """Adds images: records with their `index` in the data, and their predictions."""
        for record, prediction in results:
            self._add(record, prediction)

    def _add(self, record: Mapping[str, Any], prediction: Prediction) -> None:
        ids, segments = truth_ids(record), record["segments_info"]
        truth = {"segmentation": ids, "segments_info": segments}
        predicted = relabel(prediction, self.labels)
        quality = PanopticQuality(self.categories)
        quality.update(truth, predicted)
        true = true_instances(ids, segments, self.categories.is_thing) if self.kinds else []
        detected = [
            {**detection, "label_id": self.labels[detection["label_id"]]}
            for detection in prediction.detections or []
            if detection["label_id"] in self.labels
        ]
        self.images.append(_Image(record["index"], quality, ids.shape, true, detected))
        result = quality.compute()
        if result.overall.n:
            example = Example(prediction.name, result.pq, prediction.image, truth, predicted)
            self.worst.append((result.pq, record["index"], example))
            self.worst = heapq.nsmallest(NUM_WORST, self.worst, key=lambda item: item[:2])

    def gathered(self) -> _Comparison:
        """Combines the comparisons of all processes, in the order of the images."""
        self.images = sorted(gather_object(self.images))
        self.worst = heapq.nsmallest(NUM_WORST, gather_object(self.worst), key=lambda item: item[:2])
        return self

    def result(self, **about: Any) -> Evaluation:
        """Computes the metrics; `about` are further fields of `Evaluation`."""
        total = PanopticQuality(self.categories)
        for image in self.images:
            total += image.quality
        instances = ((image.size, image.true, image.detected) for image in self.images)
        return Evaluation(
            quality=total.compute(),
            ap=compute_average_precision(instances, self.categories, self.kinds) if self.kinds else {},
            images=len(self.images),
            categories=self.categories,
            worst=[example for _, _, example in self.worst],
            **about,
        )


def _kinds(average_precision: bool | str) -> tuple[str, ...]:
    kinds = {True: ("box", "mask"), "mask": ("mask",), "box": ("box",), False: ()}
    if average_precision not in kinds:
        raise ValueError(f"`average_precision` must be True, False, 'box' or 'mask', got {average_precision!r}.")
    return kinds[average_precision]


def _predictor(model: Any, **options: Any) -> Predictor:
    if isinstance(model, Predictor):
        return model
    if isinstance(model, tuple):
        return Predictor(*model)
    return Predictor.from_pretrained(model, **options)


def _dataset_name(source: Any, split: str | None) -> str:
    """Returns the name of a dataset for readers elsewhere: on the Hub, or of its folder without the path."""
    if isinstance(source, PanopticData):
        return ""
    name = str(source) if hub_name(str(source)) else Path(source).resolve().name
    return name if split is None else f"{name} {split}"


def evaluate_model(
    model: Any, processor: Any, records: Any, categories: Any, *, batch_size: int = 8, sum_over_processes: Any = None
) -> Any:
    """Replaced by `evaluate`; stays until its callers have moved."""
    from ..inference.loop import make_batch, run_model
    from .image_counts import count_image
    from .panoptic_quality import PanopticStats

    records, quality = list(records), PanopticQuality(categories)
    groups = (records[start : start + batch_size] for start in range(0, len(records), batch_size))
    for batch, outputs in run_model(model, (make_batch(processor, group) for group in groups)):
        sizes = [truth_ids(record).shape for record in batch.records]
        results = processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes)
        for record, result in zip(batch.records, results, strict=True):
            quality._images.append(
                count_image(
                    truth_ids(record),
                    record["segments_info"],
                    result["segmentation"].cpu().numpy(),
                    result["segments_info"],
                    categories.category_ids,
                )
            )
    import torch

    sums = torch.from_numpy(quality._sums(quality._images))
    if sum_over_processes is not None:
        sums = sum_over_processes(sums.to(model.device)).cpu()
    return PanopticStats(*sums)
