"""Teachers: models that label images, ours or any of transformers that segments panoptically.

The masks of all of them are merged by this package, at the image's size. transformers' own post-processing resizes
masks to 384x384 pixels first (Mask2Former, MaskFormer), stretches padding, and numbers segments from 0 or 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from ..box_ops import fetch
from ..data.categories import COCO_PANOPTIC, Categories, match_labels
from ..data.hub_names import hub_name
from ..data.label_maps import CITYSCAPES
from ..data.plain_text import first_line
from ..inference.detections import QUERIES_AT_ONCE, query_masks
from ..inference.folder import fingerprint
from ..inference.loading import MODEL_TYPES, find_device, quiet_transformers
from ..inference.loop import Batch, plan_batches
from ..inference.pictures import Pictures
from ..inference.predictor import Predictor, read_batches
from ..panoptic_merging import ImageSizes, Segmentation, best_classes, is_above, run_together, score_weighted_steps

SAME = 0.1  # of two normalized colors; black and white differ by more than 3
DTYPES = ("float32", "bfloat16", "float16")
DETR_OUTPUTS = ("logits", "pred_masks")
Threshold = float | list[float]
Result = tuple[Mapping[str, Any], Segmentation, Tensor]
"""A record, its merged segments, and where a mask above the threshold has a probability of one half: (H, W) bool."""


class Teacher:
    """A model that labels images.

    Args:
        name: a folder, a name on the Hub, or the class of the model.
        id2label: names of its labels.
        kinds: whether a label is a thing; labels whose kind is unknown are missing.
        category_ids: of each label.
        model: on its device.
        processor: its image processor.
    """

    own_threshold: Threshold = 0.5  # of transformers' post-processing

    def __init__(
        self,
        name: str,
        id2label: Mapping[int, str],
        kinds: Mapping[int, bool],
        category_ids: tuple[int, ...],
        model: Any,
        processor: Any,
    ) -> None:
        self.name, self.id2label, self.kinds, self.category_ids = name, dict(id2label), dict(kinds), category_ids
        self.model, self.processor = model, processor
        self.license = license_of(name)

    @property
    def categories(self) -> Categories:
        """The classes; ValueError if the kind of one is unknown."""
        if unclear := [name for label, name in self.id2label.items() if label not in self.kinds]:
            raise ValueError(f"The teacher {self.name!r} does not say whether {unclear[0]!r} is a thing or stuff.")
        labels = sorted(self.id2label)
        kinds = tuple(self.kinds[label] for label in labels)
        return Categories(tuple(self.id2label[label] for label in labels), kinds, self.category_ids)

    @property
    def fingerprint(self) -> str:
        """A hash of all weights and settings."""
        return fingerprint(self.model, self.processor)

    def iterate(self, pictures: Pictures, threshold: Threshold, **options: Any) -> Iterator[Result]:
        """Yields the results of images; `options` are those of `Predictor.iterate_outputs`."""
        raise NotImplementedError


class OurTeacher(Teacher):
    """A model of this package."""

    def __init__(self, name: str, predictor: Predictor) -> None:
        categories = predictor.categories
        kinds = dict(enumerate(categories.is_thing))
        super().__init__(
            name, categories.id2label, kinds, categories.category_ids, predictor.model, predictor.processor
        )
        self.predictor, self.own_threshold = predictor, predictor.processor.threshold

    def iterate(self, pictures: Pictures, threshold: Threshold, **options: Any) -> Iterator[Result]:
        """Yields results, merged as the image processor says."""
        for batch, outputs in self.predictor.iterate_outputs(pictures, **options):
            merge = self.processor.post_process_panoptic_segmentation
            merged = merge(outputs, threshold, target_sizes=batch.sizes)
            pairs = zip(outputs.image_sizes.tolist(), outputs.canvas_sizes.tolist(), batch.sizes, strict=True)
            for index, sizes in enumerate(ImageSizes(tuple(a), tuple(b), c) for a, b, c in pairs):
                sure = sure_pixels(outputs.logits[index], outputs.pred_masks[index], sizes, threshold)
                yield batch.records[index], merged[index], sure


class TransformersTeacher(Teacher):
    """A model of transformers whose outputs are the classes and masks of queries: Mask2Former, OneFormer, EoMT, ...

    Args:
        name: of the model.
        model: on its device.
        processor: its image processor, or a processor that also takes `task_inputs`.
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        id2label = {int(label): str(text) for label, text in model.config.id2label.items()}
        labels = sorted(id2label)
        kinds: dict[int, bool] = {}
        category_ids = tuple(label + 1 for label in labels)
        for known in (COCO_PANOPTIC, CITYSCAPES):
            same = match_labels(known, id2label)
            if len(same) == len(labels) and not kinds:
                kinds = {label: known.is_thing[same[label]] for label in labels}
                category_ids = tuple(known.category_ids[same[label]] for label in labels)
        super().__init__(name, id2label, kinds, category_ids, model.eval(), processor)
        self.inputs = _Inputs(processor, frozenset(inspect.signature(model.forward).parameters))

    @torch.no_grad()
    def iterate(self, pictures: Pictures, threshold: Threshold, **options: Any) -> Iterator[Result]:
        """Yields results, merged by score and mask probability."""
        plan = plan_batches(pictures, options.pop("batch_size"), options.pop("is_done"))
        for batch in read_batches(pictures, plan, self.inputs, self.model.device, **options):
            yield from self._results(batch, threshold)

    def _results(self, batch: Batch, threshold: Threshold) -> Iterator[Result]:
        inputs: dict[str, Any] = dict(batch.inputs)
        shown = inputs.pop("shown")
        canvas = tuple(inputs["pixel_values"].shape[-2:])
        device, dtype = self.model.device, self.model.dtype
        placed = {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()}
        outputs = self.model(**placed)
        names = ("class_queries_logits", "masks_queries_logits") if "class_queries_logits" in outputs else DETR_OUTPUTS
        for index, record in enumerate(batch.records):
            logits, masks = (outputs[name][index] for name in names)
            if not (logits.isfinite().all() and masks.isfinite().all()):
                raise FloatingPointError(f"The outputs of `teacher` {self.name!r} are not finite.")
            sizes = ImageSizes(shown[index], canvas, batch.sizes[index])
            options: dict[str, Any] = {"threshold": threshold, "label_ids_to_fuse": ()}
            steps = score_weighted_steps(fetch(*best_classes(logits)), masks, sizes, **options)
            (merged,) = run_together([steps])
            yield record, merged, sure_pixels(logits, masks, sizes, threshold)


class _Inputs:
    """Makes a batch's inputs: the tensors that a model takes, and the part of the canvas that shows each image."""

    def __init__(self, processor: Any, parameters: frozenset[str]) -> None:
        self.processor, self.parameters = processor, parameters

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        inputs = self._process(images, **options)
        found = {name: inputs[name] for name in inputs if isinstance(inputs[name], Tensor) and name in self.parameters}
        mask = found.get("pixel_mask")
        if mask is not None:
            return found | {"shown": [(int(one.any(1).sum()), int(one.any(0).sum())) for one in mask]}
        return found | {"shown": [self._inside(image.size, **options) for image in images]}

    def _process(self, images: list[Image.Image], **options: Any) -> Any:
        tasks = {"task_inputs": ["panoptic"] * len(images)} if "task_inputs" in self.parameters else {}
        return self.processor(images, **options, **tasks)

    def _inside(self, size: tuple[int, int], **options: Any) -> tuple[int, int]:
        """Returns (height, width) of the image on a canvas whose processor does not tell: a white image shows it."""
        pixels = self._process([Image.new("RGB", size, "white")], **options)["pixel_values"][0]
        white = (pixels - pixels[:, :1, :1]).abs().amax(0) < SAME
        return int(white.any(1).sum()), int(white.any(0).sum())


def open_teacher(teacher: Any, *, device: Any = "auto", dtype: Any = None) -> Teacher:
    """Returns a teacher.

    Args:
        teacher: a folder or a name on the Hub, of our models or of transformers'; a `Predictor`; a model and its
            processor; or a `Teacher`.
        device: of a model that is loaded; "auto" takes a GPU if there is one.
        dtype: of a model that is loaded, such as "bfloat16"; None: float32.

    Raises:
        ValueError: there is no such model, it does no panoptic segmentation, or `dtype` is no type of floats.
    """
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise ValueError(f"`dtype` must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]} for a teacher, got {dtype!r}.")
    if isinstance(teacher, Teacher):
        return teacher
    kind: Any = teacher[0].config.model_type if isinstance(teacher, tuple) else None
    if isinstance(teacher, Predictor) or kind == MODEL_TYPES[0]:
        predictor = Predictor.of(teacher)
        return OurTeacher(predictor.model.config._name_or_path or type(predictor.model).__name__, predictor)
    if isinstance(teacher, tuple):
        model, processor = teacher
        _check_panoptic(type(model).__name__, kind, processor)
        return TransformersTeacher(model.config._name_or_path or type(model).__name__, model, processor)
    name = str(teacher)
    if not Path(name).is_dir() and not hub_name(name):
        raise ValueError(f"`teacher` must be an existing folder or a name on the Hub (OWNER/NAME), got {name!r}.")
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except Exception as error:  # transformers, huggingface_hub and the network raise errors of their own
        raise ValueError(f"`teacher` {name!r} cannot be loaded: {first_line(error)}") from error
    if kind in MODEL_TYPES:
        return OurTeacher(name, Predictor.of(name, device=device, dtype=dtype))
    return _load(name, kind, device, dtype)


def _load(name: str, kind: str, device: Any, dtype: Any) -> Teacher:
    target = find_device(device)
    _check_panoptic(name, kind)
    loader = AutoProcessor if kind == "oneformer" else AutoImageProcessor
    try:
        processor = loader.from_pretrained(name)
        _check_panoptic(name, kind, processor)
        with quiet_transformers():
            wanted = torch.float32 if dtype is None else getattr(torch, str(dtype), dtype)
            model = AutoModelForUniversalSegmentation.from_pretrained(name, dtype=wanted)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"`teacher` {name!r} cannot be loaded: {first_line(error)}") from error
    return TransformersTeacher(name, model.to(target), processor)


def _check_panoptic(name: str, kind: str, processor: Any = None) -> None:
    known = [*MODEL_TYPES, *(found for found in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES if found != "videomt")]
    known = list(dict.fromkeys(known))
    if kind not in known:
        raise ValueError(
            f"`teacher` must do panoptic segmentation, as models of type {', '.join(known)} do; {name!r} is of type "
            f"{kind!r}."
        )
    if processor is not None and not hasattr(processor, "post_process_panoptic_segmentation"):
        raise ValueError(
            f"`teacher` {name!r} must have a processor with `post_process_panoptic_segmentation`, got "
            f"{type(processor).__name__}."
        )


def sure_pixels(logits: Tensor, masks: Tensor, sizes: ImageSizes, threshold: Threshold) -> Tensor:
    """Returns where a query above the threshold has a mask probability of at least one half: (H, W) bool.

    Args:
        logits: (Q, K + 1) class logits.
        masks: (Q, h, w) mask logits of the padded canvas.
        sizes: the image's.
        threshold: least score of a query, one or one for each label.
    """
    kept = masks[is_above(*best_classes(logits), threshold)]
    sure = torch.zeros(sizes.target, dtype=torch.bool, device=masks.device)
    for start in range(0, len(kept), QUERIES_AT_ONCE):
        sure |= query_masks(kept[start : start + QUERIES_AT_ONCE], sizes).any(-1)
    return sure


def license_of(name: str) -> str | None:
    """Returns the license in the model card of a folder or of a repository on the Hub, or None."""
    file = Path(name) / "README.md"
    if not file.is_file() and not hub_name(name):  # a folder without a card, or the class of a model in memory
        return None
    try:
        card = ModelCard.load(file if file.is_file() else name, ignore_metadata_errors=True)
    except Exception:  # no card, no network, or no such repository
        return None
    found = card.data.get("license_name") or card.data.get("license")
    return None if found is None else str(found)
