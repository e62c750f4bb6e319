"""Evaluation of a model on a dataset: predict, then compare."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data import PanopticData
from ..data.categories import match_labels
from ..data.hub_names import public_name
from ..data.plain_text import listing
from ..data.records import truth_ids
from ..inference.options import check_options
from ..inference.predictor import Predictor, processes
from ..scenes.source import read_source
from .average_precision import Instance, true_instances
from .average_precision import average_precision as compute_average_precision
from .errors import ErrorCounts
from .matching import pair_segments
from .panoptic_quality import PanopticQuality, relabel
from .results import Evaluation, Example

if TYPE_CHECKING:
    import torch

    from ..data.categories import Categories
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.prediction import Prediction
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

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
    runtime: str = "torch",
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
        average_precision: True computes it for boxes and masks; "box" for boxes only, without further masks;
            False leaves it out.
        threshold: least score of a segment in panoptic quality; None: the image processor's.
        batch_size: images of similar shape that share a forward; their padding changes the result slightly.
        num_workers: processes that load images; None: none on CPU, up to 8 on a GPU.
        runtime: of a model that is loaded: "torch", "openvino" or "onnxruntime", or "auto" as in `Predictor`.
        device: of a model that is loaded; "auto" takes a GPU if there is one.
        dtype: of a model that is loaded, such as "bfloat16"; None: float32.
        on_error: for an image that cannot be read, "stop" raises its error, and "skip" logs it, lists it in
            `Evaluation.failures` and leaves it out.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the model lacks a class of the data, an argument is out of range, an image cannot be read, or the
            output folder holds predictions of other settings.
        FloatingPointError: the model's outputs are not finite.

    Examples:
        >>> from detr_panoptic import evaluate
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> evaluation = evaluate(BUNDLED, "scenes", limit=4, average_precision=False, progress=False)
        >>> 0.5 < evaluation.pq < 1
        True
    """
    kinds = _kinds(average_precision)
    options: Any = {"threshold": threshold, "batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
    check_options(output=output, **options)
    may_skip = on_error == "skip"
    data = read_source(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=may_skip)
    predictor = Predictor.of(model, runtime=runtime, device=device, dtype=dtype)
    comparison = _Comparison(data.categories, match_classes(data.categories, predictor.categories.id2label), kinds)
    options["detections"] = kinds[-1] if kinds else "none"
    state = processes()
    failures: list[str] = []
    if output is None:
        comparison.add(predictor.iterate(data, share=True, failures=failures, **options), progress=progress)
        failures = sorted(gather_object(failures))
    else:
        predictions = Path(output) / PREDICTIONS
        folder = predictor.predict(data, predictions, to="coco", overlay=False, progress=progress, **options)
        comparison.add(folder if state.is_main_process else [], progress=progress)
        failures = folder.failures
    settings = {
        "threshold": predictor.processor.threshold if threshold is None else threshold,
        "merging": predictor.processor.merging,
        "runtime": predictor.runtime,
        "dtype": predictor.dtype,
        "batch_size": batch_size,
    }
    dataset = "" if isinstance(source, PanopticData) else public_name(str(source), split)
    evaluation = comparison.gather(failures=failures, dataset=dataset, settings=settings)
    if output is not None and state.is_main_process:
        evaluation.save(output)
    return evaluation


def match_classes(categories: Categories, id2label: Mapping[int, str]) -> dict[int, int]:
    """Returns the dataset's label id of each label id of the model; ValueError if the model lacks a class."""
    labels = match_labels(categories, id2label)
    lacking = [repr(name) for label, name in enumerate(categories.names) if label not in labels.values()]
    if lacking:
        raise ValueError(
            f"The model has no class for {len(lacking)} of the {len(categories)} classes of the data: "
            f"{listing(lacking)}. Classes are matched by name."
        )
    return labels


# Of one image: its place in the data, its quality, and (height, width), true and detected instances.
_Image = tuple[int, PanopticQuality, tuple[tuple[int, int], list[Instance], list[Instance]]]


@dataclass
class _Comparison:
    """Compares predictions with their truth; `labels` are the data's of the model's, `kinds` those of AP."""

    categories: Categories
    labels: Mapping[int, int]
    kinds: tuple[str, ...]
    images: list[_Image] = field(default_factory=list)
    worst: list[tuple[float, int, Example]] = field(default_factory=list)
    errors: ErrorCounts = field(default_factory=ErrorCounts)

    def add(self, results: Iterable[tuple[Mapping[str, Any], Prediction]], *, progress: bool) -> None:
        """Adds images: records with their `index` in the data, and their predictions."""
        disable = None if progress and processes().is_main_process else True
        for record, prediction in tqdm(results, desc="evaluating", unit="image", disable=disable):
            truth = {"segmentation": truth_ids(record), "segments_info": record["segments_info"]}
            predicted = relabel(prediction.segmentation, prediction.segments_info, self.labels)
            quality = PanopticQuality(self.categories)
            pairs = pair_segments(truth, predicted, self.categories.category_ids)
            quality.add(pairs)
            self.errors.add(record["index"], pairs, record, (truth, predicted))
            true = true_instances(**truth, is_thing=self.categories.is_thing) if self.kinds else []
            detections = prediction.detections or []
            found = [d | {"label_id": self.labels[d["label_id"]]} for d in detections if d["label_id"] in self.labels]
            self.images.append((record["index"], quality, (truth["segmentation"].shape, true, found)))
            result = quality.compute()
            if result.overall.n:
                example = Example(prediction.name, result.pq, prediction.image, truth, predicted)
                self._keep_worst([*self.worst, (result.pq, record["index"], example)])

    def _keep_worst(self, examples: list[tuple[float, int, Example]]) -> None:
        self.worst = heapq.nsmallest(NUM_WORST, examples, key=lambda item: item[:2])

    def gather(self, **about: Any) -> Evaluation:
        """Returns the metrics of the images of all processes, in their order; `about` are fields of `Evaluation`."""
        self.images = sorted(gather_object(self.images), key=lambda image: image[0])
        self._keep_worst(gather_object(self.worst))
        total = PanopticQuality(self.categories)
        for _, quality, _ in self.images:
            total += quality
        instances = (image[2] for image in self.images)
        ap = compute_average_precision(instances, self.categories, self.kinds) if self.kinds else {}
        worst = [example for _, _, example in self.worst]
        errors = ErrorCounts()
        for counts in gather_object([self.errors]):
            errors += counts
        about["errors"] = errors.compute(self.categories.names)
        return Evaluation(quality=total.compute(), ap=ap, images=len(self.images), worst=worst, **about)


def _kinds(average_precision: bool | str) -> tuple[str, ...]:
    kinds = {True: ("box", "mask"), "mask": ("mask",), "box": ("box",), False: ()}
    if average_precision not in kinds:
        raise ValueError(f"`average_precision` must be True, False, 'box' or 'mask', got {average_precision!r}.")
    return kinds[average_precision]
