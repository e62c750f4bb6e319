"""Tuning of score thresholds and merging: the model runs once, and its masks are merged in many ways.

What a merging depends on is small: the class logits and masks of the queries that some threshold keeps. They are
stored in a temporary folder, about 5 MB for an image of 800x1066 pixels, so that memory does not grow with the data.
The search goes in steps, each of which varies the best settings so far: one threshold in both ways of merging, then
the overlap threshold if the score-weighted way is better, then the threshold of each class. Two thresholds that keep
the same queries of an image give the same map, which is merged and compared once.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..data.files import reported_failure, write_file
from ..data.plain_text import counted, one_line
from ..data.records import truth_ids
from ..image_processing_detr_panoptic import MERGING_MODES, DetrPanopticImageProcessor
from ..inference.options import OnError, check_options
from ..inference.predictor import Predictor, processes
from ..panoptic_merging import best_classes, is_above
from ..scenes.source import read_source
from .model_evaluation import match_classes
from .panoptic_quality import PanopticQuality, relabel
from .results import PanopticQualityResult
from .tables import format_table, percent

if TYPE_CHECKING:
    from ..data.categories import Categories

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
OVERLAPS = (0.0, 0.3, 0.5, 0.65, 0.8, 0.9)
ROUNDS = 2  # of the thresholds of classes, each of which depends on the others a little
MIN_SEGMENTS = 10  # of a class in the data; with fewer, the best threshold is chance
PROCESSOR_FILE = "preprocessor_config.json"
TUNED = ("merging", "threshold", "overlap_mask_area_threshold")  # settings of the image processor

Settings = dict[str, Any]


@dataclass(frozen=True)
class Tuning:
    """The settings with the best panoptic quality on some images; prints what they change.

    Args:
        processor: an image processor with the best settings.
        before: quality with the settings of the model's own processor.
        after: quality with the best ones, on the images that chose them. Measure it again on others.
        settings_before: the model's own `merging`, `threshold` and `overlap_mask_area_threshold`.
        settings: the best ones; `threshold` is one number, or a list with one for each label.
        tried: settings and PQ of the common thresholds, in the order they were tried.
        images: number of images.
        categories: of the model.
        failures: messages about images that could not be read.

    Examples:
        >>> from detr_panoptic import tune_thresholds
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> options = {"limit": 2, "thresholds": (0.5, 0.9), "merging": ["paper"], "progress": False}
        >>> tuning = tune_thresholds(BUNDLED, "scenes", **options)
        >>> tuning.images, len(tuning.tried), tuning.after.pq >= tuning.before.pq
        (2, 3, True)
    """

    processor: DetrPanopticImageProcessor = field(repr=False)
    before: PanopticQualityResult = field(repr=False)
    after: PanopticQualityResult = field(repr=False)
    settings_before: Settings
    settings: Settings
    tried: list[tuple[Settings, float]] = field(repr=False)
    images: int
    categories: Categories = field(repr=False)
    failures: list[str] = field(repr=False)

    @property
    def own_thresholds(self) -> dict[str, float]:
        """The threshold of each class that differs from the most frequent one; empty without `per_class`."""
        values = self.settings["threshold"]
        if not isinstance(values, list):
            return {}
        common = Counter(values).most_common(1)[0][0]
        return {name: value for name, value in zip(self.categories.names, values, strict=True) if value != common}

    def __str__(self) -> str:
        """Returns the quality and the settings before and after as a table, then the classes with own thresholds."""
        rows = []
        for when, found, settings in (
            ("before", self.before, self.settings_before),
            ("after", self.after, self.settings),
        ):
            threshold, merging = settings["threshold"], settings["merging"]
            if isinstance(threshold, list):
                threshold = f"{Counter(threshold).most_common(1)[0][0]}, {len(self.own_thresholds)} of their own"
            if merging != MERGING_MODES[0]:
                merging += f", overlap {settings['overlap_mask_area_threshold']}"
            quality = map(percent, (found.pq, found.things.pq, found.stuff.pq))
            rows.append([when, *quality, merging, str(threshold)])
        lines = [format_table(["", "PQ", "things", "stuff", "merging", "threshold"], rows)]
        lines += [f"  {one_line(name)}: {value}" for name, value in self.own_thresholds.items()]
        return "\n".join(
            [*lines, f"{counted(self.images, 'image')}, which chose the settings: measure the result on other images."]
        )

    def save(self, folder: str | Path) -> Path:
        """Writes the settings into the image processor of a saved model.

        Args:
            folder: the model's. If it has no image processor, the whole tuned one is written.

        Returns:
            The file.

        Raises:
            ValueError: the folder holds the image processor of another program.
        """
        file = Path(folder) / PROCESSOR_FILE
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        own, found = type(self.processor).__name__, content.get("image_processor_type")
        if content and found != own:
            raise ValueError(f"{file} holds a {found}, which has no such settings: save to another folder.")
        content = content | self.settings if content else json.loads(self.processor.to_json_string())
        write_file(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return file


def tune_thresholds(  # noqa: PLR0913  every option of a long run, each with a default
    model: Any,
    source: Any,
    *,
    per_class: bool = False,
    merging: Sequence[str] = MERGING_MODES,
    thresholds: Sequence[float] = THRESHOLDS,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    runtime: str = "torch",
    device: Any = "auto",
    dtype: str | torch.dtype | None = None,
    on_error: OnError = "stop",
    progress: bool = True,
) -> Tuning:
    """Finds the score threshold and the way of merging that give the best panoptic quality on some images.

    The images must not be those that the model is tested on, nor those that it was trained on: it is more sure of
    these. The present settings stay unless others are better. `Tuning.save` writes the result to a saved model.

    With `per_class`, each class that has at least 10 segments in the data gets its own threshold. `merging` and
    `thresholds` list what is tried. The other arguments are those of `evaluate`.

    Raises:
        ValueError: an argument is out of range, the model lacks a class of the data, an image cannot be read, or there
            are several processes.
        OSError: the temporary folder is full.

    Examples:
        >>> from detr_panoptic import tune_thresholds
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> tuning = tune_thresholds(BUNDLED, "scenes", limit=4, thresholds=(0.5, 0.7, 0.9), progress=False)
        >>> tuning.after.pq >= tuning.before.pq
        True
    """
    if (count := processes().num_processes) > 1:
        raise ValueError(f"`tune_thresholds` needs all images in one process, got {count} processes.")
    _check_choices(merging, thresholds)
    check_options(batch_size=batch_size, num_workers=num_workers, on_error=on_error)
    may_skip = on_error == "skip"
    data = read_source(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=may_skip)
    predictor = Predictor.of(model, runtime=runtime, device=device, dtype=dtype)
    processor = predictor.processor
    labels = match_classes(data.categories, predictor.categories.id2label)
    own = {name: getattr(processor, name) for name in TUNED}
    failures: list[str] = []
    outputs = predictor.iterate_outputs(
        data, batch_size=batch_size, num_workers=num_workers, on_error=on_error, failures=failures
    )
    with TemporaryDirectory(prefix="detr_panoptic_tuning_") as folder:
        own_least = own["threshold"] if isinstance(own["threshold"], list) else [own["threshold"]]
        least, device = min(*own_least, *thresholds), predictor.model.device
        search = _Search(processor, data.categories, labels, Path(folder), least, device, progress)
        with tqdm(total=len(data.records), unit="image", disable=None if progress else True) as bar:
            search.store(outputs, bar)
        tried = [own]
        tried += [{**own, "merging": mode, "threshold": value} for mode in merging for value in thresholds]
        found = [quality.compute() for quality in search.measure(tried)]
        best = _best(found)
        settings, after = tried[best], found[best]
        settings, after = search.improve_overlap(settings, after)
        if per_class:
            settings, after = search.improve_classes(settings, after, thresholds, len(predictor.categories))
        images = len(search.files)
    pairs = [(entry, result.pq) for entry, result in zip(tried, found, strict=True)]
    tuned = _with_settings(processor, settings)
    return Tuning(tuned, found[0], after, own, settings, pairs, images, predictor.categories, failures)


@dataclass
class _Search:
    """Measures settings on the stored outputs of some images; `labels` are the data's of each of the model's."""

    processor: DetrPanopticImageProcessor
    categories: Categories
    labels: Mapping[int, int]
    folder: Path
    least: float  # no threshold is lower
    device: torch.device
    progress: bool
    files: list[Path] = field(default_factory=list)
    segments: Counter[int] = field(default_factory=Counter)  # of the truth, by label of the data

    def store(self, batches: Any, bar: tqdm) -> None:
        """Writes what merging needs of each image: logits, masks and sizes of the queries that may be kept."""
        for batch, outputs in batches:
            for index, record in enumerate(batch.records):
                kept = best_classes(outputs.logits[index])[0] > self.least
                content = {
                    "logits": outputs.logits[index][kept].cpu(),
                    "pred_masks": outputs.pred_masks[index][kept].cpu(),
                    "image_sizes": outputs.image_sizes[index].cpu(),
                    "canvas_sizes": outputs.canvas_sizes[index].cpu(),
                    "target_size": batch.sizes[index],
                    "truth": torch.from_numpy(truth_ids(record)),
                    "segments_info": record["segments_info"],
                }
                self.segments.update(s["label_id"] for s in record["segments_info"] if not s.get("iscrowd"))
                self.files.append(self.folder / f"{record['index']:09d}.pt")
                with reported_failure("What merging needs", self.folder, self.folder):
                    torch.save(content, self.files[-1])
                bar.update()
        if not self.files:
            raise ValueError("`source` has no image that can be read.")
        self.files.sort()

    def measure(self, candidates: Sequence[Settings]) -> list[PanopticQuality]:
        """Returns the quality of all images with each of some settings."""
        processors = [_with_settings(self.processor, settings) for settings in candidates]
        totals = [PanopticQuality(self.categories) for _ in candidates]
        for file in tqdm(self.files, desc="merging", unit="image", disable=None if self.progress else True):
            content = torch.load(file, weights_only=True)
            outputs = SimpleNamespace(
                **{name: content[name][None].to(self.device) for name in ("logits", "pred_masks")},
                **{name: content[name][None] for name in ("image_sizes", "canvas_sizes")},
            )
            truth = {"segmentation": content["truth"].numpy(), "segments_info": content["segments_info"]}
            scores, labels = best_classes(outputs.logits[0])
            measured: dict[Any, PanopticQuality] = {}
            for total, processor in zip(totals, processors, strict=True):
                kept = tuple(is_above(scores, labels, processor.threshold).tolist())
                mode = (
                    processor.merging,
                    processor.merging != MERGING_MODES[0] and processor.overlap_mask_area_threshold,
                )
                if (kept, mode) not in measured:
                    measured[kept, mode] = self._quality(processor, outputs, truth, content["target_size"])
                total += measured[kept, mode]
        return totals

    def improve_overlap(self, settings: Settings, after: PanopticQualityResult) -> tuple[Settings, Any]:
        """Returns better settings with another overlap threshold, which only the score-weighted merging has."""
        if settings["merging"] == MERGING_MODES[0]:
            return settings, after
        tried = [settings, *({**settings, "overlap_mask_area_threshold": value} for value in OVERLAPS)]
        found = [quality.compute() for quality in self.measure(tried)]
        return tried[_best(found)], found[_best(found)]

    def improve_classes(
        self, settings: Settings, after: PanopticQualityResult, thresholds: Sequence[float], num_labels: int
    ) -> tuple[Settings, PanopticQualityResult]:
        """Returns better settings with a threshold for each class; each is varied alone, then all change together."""
        common = (
            settings["threshold"] if isinstance(settings["threshold"], list) else [settings["threshold"]] * num_labels
        )
        frequent = [label for label, own in self.labels.items() if self.segments[own] >= MIN_SEGMENTS]
        for _ in range(ROUNDS):
            tried = [(label, value) for label in frequent for value in (common[label], *thresholds)]
            candidates = [
                {**settings, "threshold": [*common[:label], value, *common[label + 1 :]]} for label, value in tried
            ]
            found = [quality.compute() for quality in self.measure(candidates)]
            step = len(thresholds) + 1
            changed = list(common)
            for place, label in enumerate(frequent):
                first = place * step
                changed[label] = tried[first + _best(found[first : first + step])][1]
            together = {**settings, "threshold": changed}
            quality = self.measure([together])[0].compute()
            if quality.pq <= after.pq:
                break
            settings, after, common = together, quality, changed
        return settings, after

    def _quality(
        self, processor: DetrPanopticImageProcessor, outputs: Any, truth: Mapping[str, Any], size: tuple[int, int]
    ) -> PanopticQuality:
        (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[size])
        ids = result["segmentation"].cpu().numpy()
        quality = PanopticQuality(self.categories)
        quality.update(truth, relabel(ids, result["segments_info"], self.labels))
        return quality


def _with_settings(processor: DetrPanopticImageProcessor, settings: Settings) -> DetrPanopticImageProcessor:
    """Returns a copy of a processor with other settings."""
    changed = copy.copy(processor)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def _best(found: Sequence[PanopticQualityResult]) -> int:
    """Returns the place of the best quality: the first of all if no other is better, else the middle of equal ones."""
    highest = max(result.pq for result in found)
    places = [place for place, result in enumerate(found) if result.pq == highest]
    return 0 if places[0] == 0 else places[len(places) // 2]


def _check_choices(merging: Sequence[str], thresholds: Sequence[float]) -> None:
    if isinstance(merging, str) or not merging or not set(merging) <= set(MERGING_MODES):
        raise ValueError(f"`merging` must be a list of {' and '.join(MERGING_MODES)}, got {merging!r}.")
    if not thresholds or not all(0 <= value <= 1 for value in thresholds):
        raise ValueError(f"`thresholds` must be numbers from 0 to 1, got {thresholds!r}.")
