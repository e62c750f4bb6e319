"""Image processor of DETR for panoptic segmentation: images and annotations to inputs, outputs to segments.

Names and defaults follow transformers' `DetrImageProcessor`; docs/deviations.md lists the differences.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.models.detr.image_processing_detr import convert_segmentation_to_rle
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .box_ops import cxcywh_to_xyxy, fetch
from .image_reading import each_image, image_to_tensor, read_picture, stack_padded
from .mask_head import MASK_STRIDE, SKIPPED_MASK_LOGIT
from .panoptic_merging import (
    ImageSizes,
    Segmentation,
    best_classes,
    is_above,
    paper_steps,
    run_together,
    score_weighted_steps,
    semantic_map,
    semantic_scores,
)
from .panoptic_targets import training_target
from .pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline  # so that its file is saved too

logger = logging.get_logger(__name__)

Sizes = Sequence[Sequence[int]] | Tensor
MERGING_MODES = ("paper", "score_weighted")
THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
SAVED_BESIDES = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}  # not settings


class DetrPanopticImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that are saved besides those of every image processor; see `DetrPanopticImageProcessor`."""

    stuff_label_ids: list[int] | None
    category_ids: list[int] | None
    merging: str | None
    threshold: float | int | list[float] | None
    mask_threshold: float | int | None
    overlap_mask_area_threshold: float | int | None
    format: str | None
    max_size: int | None


class DetrPanopticImageProcessor(TorchvisionBackend):
    """Prepares images and annotations, and turns outputs into segments.

    Takes the arguments of every image processor (`size`, `do_resize`, `image_mean`, `pad_size`, ...), and these:

    Args:
        stuff_label_ids: labels of background regions, of which an image has at most one segment each.
        category_ids: the dataset's category id of each label, to read annotations; None where they are the same.
        merging: "paper" merges as the reference's evaluation does, "score_weighted" as transformers does.
        threshold: confidence below which a query is dropped, or one for each label; 0.85 in the paper's evaluation.
        mask_threshold: probability above which a pixel belongs to a query's own mask, in the score-weighted mode and
            for instances.
        overlap_mask_area_threshold: share of its own mask that a segment must keep, in the same two cases.
        format: the only format of annotations to accept, "coco_panoptic" or "coco_detection"; None: both.
        max_size: the longest edge, if `size` is a single number, which is the shortest edge.

    Examples:
        >>> processor = DetrPanopticImageProcessor(stuff_label_ids=[2])
        >>> list(processor(torch.zeros(3, 480, 640), return_tensors="pt")["pixel_values"].shape)
        [1, 3, 800, 1066]
    """

    foreign_readers: ClassVar[list[Callable[..., dict[str, Any]]]] = []  # empty in Hub code; the package fills it
    valid_kwargs = DetrPanopticImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012  as in every image processor
    default_to_square = False
    do_resize = True
    size = {"shortest_edge": 800, "longest_edge": 1333}  # noqa: RUF012  read as a default and copied
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    stuff_label_ids: list[int] = []  # noqa: RUF012  read as a default and copied
    category_ids: list[int] | None = None
    merging = "paper"
    threshold: float | list[float] = 0.85
    mask_threshold = 0.5
    overlap_mask_area_threshold = 0.8
    format: str | None = None
    __call__: Callable[..., BatchFeature]  # `preprocess`; for type checkers, the base class's has no `annotations`

    def __init__(self, **kwargs: Any) -> None:
        _refuse_unknown(set(kwargs) - SAVED_BESIDES)
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{n: getattr(self, n) for n in ("do_center_crop", "data_format")})
        for name in ("stuff_label_ids", "category_ids"):
            ids = getattr(self, name)
            if any(type(i) is not int or i < 0 for i in ids or ()) or len(set(ids or ())) < len(ids or ()):
                raise ValueError(f"`{name}` must be distinct whole numbers from 0, got {ids}.")
        if self.category_ids is not None and max(self.stuff_label_ids, default=0) >= len(self.category_ids):
            last = len(self.category_ids) - 1
            raise ValueError(f"`stuff_label_ids` must be labels from 0 to {last}, got {self.stuff_label_ids}.")
        if self.merging not in MERGING_MODES:
            raise ValueError(f"`merging` must be one of {MERGING_MODES}, got {self.merging!r}.")
        self._thresholds(None, None, None, None)

    @classmethod
    def for_model(cls, config: PreTrainedConfig, **kwargs: Any) -> "DetrPanopticImageProcessor":
        """Returns a processor with a model's stuff, category ids and threshold; `kwargs` override them."""
        if getattr(config, "num_channels", 3) != 3:
            raise ValueError(f"`num_channels` must be 3: images are read as RGB, got {config.num_channels}.")
        return cls(**{n: getattr(config, n) for n in ("stuff_label_ids", "category_ids", "threshold")} | kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a processor as the base class does, but refuses misspelled settings among `kwargs`."""
        _refuse_unknown(kwargs, only_misspelled=True)  # `pipeline` hands the model's arguments to every class
        return super().from_dict(image_processor_dict, **kwargs)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the settings for `from_pretrained`; `foreign_readers` translate those of other models."""
        settings, unused = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("image_processor_type") != cls.__name__:
            for read in cls.foreign_readers:
                settings = read(settings, pretrained_model_name_or_path, **kwargs)
        return settings, unused

    def process_image(  # type: ignore[override]
        self, image: Any, *, input_data_format: str | None = None, device: Any = None, **_: Any
    ) -> Tensor:
        """Returns pixels (3, H, W) on `device`. Arguments and errors are those of `image_to_tensor`."""
        return image_to_tensor(image, input_data_format).to(device)

    def fetch_images(self, images: Any) -> Any:
        """Opens each path, URL or base64 string; pictures and arrays are returned as they are."""
        if isinstance(images, Sequence) and not isinstance(images, str):
            return [self.fetch_images(image) for image in images]
        return read_picture(images) if isinstance(images, (str, os.PathLike)) else images

    def resize(
        self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> Tensor:
        """Resizes as the base class does, but a thin image (1 x 5000) keeps at least one pixel."""
        if size.shortest_edge and size.longest_edge:
            height, width = get_size_with_aspect_ratio(image.shape[-2:], size.shortest_edge, size.longest_edge)
            size = SizeDict(height=max(height, 1), width=max(width, 1))
        # Channels last, bytes take half the time, and PyTorch 2.14 does not mix rows and channels at a width of 1.
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return super().resize(image, size, resample, antialias, **kwargs)

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resizes, normalizes and pads images, and makes targets from their annotations.

        Args:
            images: a picture, path, URL, array or tensor, or a list of such.
            annotations: for each image `image_id`, `segmentation` (id map: (H, W) integers, or a picture whose colors
                are R + 256 G + 256² B; 0 is void) and `segments_info` (one entry per segment: `id`, `label_id` or
                `category_id`, and `iscrowd`, 0 if absent). Or `image_id` and COCO's `annotations` of instances.
            return_segmentation_masks: whether targets have `masks`; None: if the annotations are panoptic.
            masks_path: the folder of maps; annotations then may have a `file_name` instead of a `segmentation`.
            kwargs: settings for this call only, such as `size` or `do_resize`.

        Returns:
            `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), 1 on the image. With annotations also `labels`, per
            image: `class_labels` (T,), `boxes` (T, 4) cxcywh relative to the image, `masks` (T, h, w) bool of the
            image's processed size, `iscrowd` (T,), `area` (T,) in processed pixels, `image_id` (1,), `size` (2,) and
            `orig_size` (2,), height first. Segments that vanish when resized are left out.
        """
        _refuse_unknown(kwargs)
        if late := sorted({"stuff_label_ids", "merging", *THRESHOLDS} & kwargs.keys()):
            raise ValueError(f"`{late[0]}` belongs to the processor or to `post_process_panoptic_segmentation`.")
        images = list(each_image(self.fetch_images(images)))
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        annotations = [annotations] if isinstance(annotations, Mapping) else annotations
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(f"`annotations` must be one per image, got {len(annotations)} for {len(images)} images.")
        return super().preprocess(images, annotations, return_segmentation_masks, masks_path, **kwargs)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        annotations, with_masks, masks_path = args
        tensor_type = kwargs["return_tensors"]
        images = [self.process_image(image, **kwargs) for image in images]
        processed = [self._process_pixels(image, **kwargs) for image in images]
        sizes = [tuple(image.shape[-2:]) for image in processed]
        dtype = torch.float32 if kwargs["do_normalize"] else None
        if kwargs["do_pad"]:
            batch = self.pad(processed, kwargs["pad_size"], dtype=dtype)
        elif len(set(sizes)) == 1:
            batch = BatchFeature({"pixel_values": stack_padded(processed, dtype=dtype)})
        else:
            raise ValueError(f"`do_pad` must be True for images of different sizes, got False and {sizes}.")
        if kwargs["do_normalize"]:
            self._normalize_in_place(batch["pixel_values"], sizes, **kwargs)
        batch.convert_to_tensors(tensor_type)
        if annotations is not None:
            options = {"settings": kwargs, "with_masks": with_masks, "masks_path": masks_path}
            targets = [training_target(*each, **options) for each in zip(annotations, images, sizes, strict=True)]
            batch["labels"] = [BatchFeature(target, tensor_type=tensor_type) for target in targets]
        return batch

    def pad(  # type: ignore[override]  # the base class's returns a list, DETR's a batch
        self, images: Sequence[Tensor], pad_size: Any = None, *, return_tensors: Any = None, dtype: Any = None
    ) -> BatchFeature:
        """Stacks images (3, h, w) as a batch, padded at the right and the bottom, with its `pixel_mask`."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        canvas = None if pad_size is None else (pad_size["height"], pad_size["width"])
        if canvas is not None and any(height > canvas[0] or width > canvas[1] for height, width in sizes):
            raise ValueError(f"`pad_size` must be as large as the images, which have {sizes}, got {pad_size}.")
        masks = [torch.ones((), dtype=torch.int64, device=images[0].device).expand(size) for size in sizes]
        values, mask = stack_padded(images, canvas, dtype=dtype), stack_padded(masks, canvas)
        return BatchFeature({"pixel_values": values, "pixel_mask": mask}, return_tensors)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        size, max_size = kwargs["size"], kwargs.get("max_size")
        if isinstance(size, int):
            kwargs["size"] = {"shortest_edge": size, "longest_edge": max_size or type(self).size["longest_edge"]}
        elif max_size is not None:
            raise ValueError(f"`max_size` must come with a `size` of one number, got `size` {size}.")
        return super()._standardize_kwargs(**kwargs | {"max_size": None})

    def _validate_preprocess_kwargs(self, *args: Any, do_center_crop: bool | None = None, **kwargs: Any) -> None:
        data_format = kwargs.get("data_format")
        if do_center_crop:
            raise ValueError("`do_center_crop` must be False: segments are those of the whole image, got True.")
        if data_format not in (None, "channels_first"):
            raise ValueError(f'`data_format` must be "channels_first", got {data_format!r}.')
        super()._validate_preprocess_kwargs(*args, **kwargs)

    def _process_pixels(self, image: Tensor, **settings: Any) -> Tensor:
        """Resizes one image (3, H, W) as the settings say, and rescales it unless it is normalized later."""
        if settings["do_rescale"] and image.is_floating_point() and 0 < image.max() <= 1:
            logger.warning_once("Floats from 0 to 1 are rescaled once more: pass `do_rescale=False` to keep them.")
        if settings["do_resize"]:
            image = self.resize(image, settings["size"], settings["resample"])
        rescales = settings["do_rescale"] and not settings["do_normalize"]
        return self.rescale(image, settings["rescale_factor"]) if rescales else image

    def _normalize_in_place(self, values: Tensor, sizes: Sequence[Sequence[int]], **settings: Any) -> None:
        """Normalizes a new batch (B, 3, H, W) in place, but not the padding of images of these sizes."""
        # As the base class, to the bit, but in float32 whatever torch's default dtype is: another thread changes it
        # while it loads a model, and the base class caches what it then computes.
        scale = 1 / settings["rescale_factor"] if settings["do_rescale"] else 1
        mean, std = (values.new_tensor(settings[n]).view(-1, 1, 1) * scale for n in ("image_mean", "image_std"))
        for place, (height, width) in zip(values, sizes, strict=True):
            place[:, :height, :width].sub_(mean).div_(std)

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,  # of our model, or of any with such `logits` and `pred_masks`
        threshold: float | Sequence[float] | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sizes | None = None,
    ) -> list[Segmentation]:
        """Returns segments of things and stuff, per image.

        Args:
            outputs: the model's.
            threshold: least confidence of a query, or one for each label. None, here and below: the processor's own.
            mask_threshold: used in the score-weighted mode only, like the next argument.
            overlap_mask_area_threshold: the share of its own mask that a segment must keep.
            label_ids_to_fuse: labels with at most one segment; None: `stuff_label_ids`.
            target_sizes: (height, width) of each map; None: the size at which the model saw the image.

        Returns:
            Per image `segmentation` (H, W) int32, 0 void and ids from 1, and `segments_info` of `SegmentInfo`.
        """
        fused = self.stuff_label_ids if label_ids_to_fuse is None else label_ids_to_fuse
        thresholds = self._thresholds(outputs, threshold, mask_threshold, overlap_mask_area_threshold)
        images = _images(outputs, target_sizes)
        if self.merging == "paper":
            options: Any = {"threshold": thresholds["threshold"], "stuff_label_ids": fused}
            return run_together(paper_steps(*image, **options) for image in images)
        return run_together(score_weighted_steps(*image, label_ids_to_fuse=fused, **thresholds) for image in images)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float | Sequence[float] | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool | None = False,
    ) -> list[dict[str, Any]]:
        """Returns segments of things only; see `post_process_panoptic_segmentation`.

        With `return_coco_annotation`, the map is a list of run-length codes, one for each value in it.
        """
        thresholds = self._thresholds(outputs, threshold, mask_threshold, overlap_mask_area_threshold)
        options: Any = {"label_ids_to_fuse": (), "left_out": self.stuff_label_ids, **thresholds}
        results: Any = run_together(
            score_weighted_steps(*image, **options) for image in _images(outputs, target_sizes)
        )
        if not return_coco_annotation:
            return results
        return [{**result, "segmentation": convert_segmentation_to_rle(result["segmentation"])} for result in results]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sizes | None = None, return_segmentation_scores: bool = False
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Returns the label of each pixel, per image; raises ValueError for outputs without `mask_queries="all"`.

        Returns:
            Maps (H, W) of int64. With `return_segmentation_scores`, outputs with the map as `segmentation`, and
            `segmentation_scores` (K, H, W).
        """
        if skipped := (outputs.pred_masks.flatten(2).amax(-1) <= SKIPPED_MASK_LOGIT / 2).sum().item():
            hint = 'call the model with mask_queries="all"'
            raise ValueError(f"`outputs` must have masks of all queries, but {skipped} queries lack theirs: {hint}.")
        images = [(logits, *i[1:]) for logits, i in zip(outputs.logits, _images(outputs, target_sizes), strict=True)]
        if not return_segmentation_scores:
            return [semantic_map(*image) for image in images]
        scores = (semantic_scores(*image) for image in images)
        found = ({"segmentation": s.argmax(0), "segmentation_scores": s} for s in scores)
        return [SemanticSegmentationPostProcessorOutput(result) for result in found]

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float | Sequence[float] | None = None, target_sizes: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """Returns `scores` (N,), `labels` (N,) and `boxes` (N, 4) xyxy of things and stuff, per image.

        Boxes are in pixels of `target_sizes`; without these, in [0, 1].
        """
        threshold = self._thresholds(outputs, threshold)["threshold"]
        scores, labels = outputs.logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q) each
        boxes = cxcywh_to_xyxy(outputs.pred_boxes.float())
        if target_sizes is not None:
            height, width = torch.tensor(_pairs("target_sizes", target_sizes, len(boxes)), device=boxes.device).T
            boxes = boxes * torch.stack((width, height, width, height), dim=-1)[:, None]
        return [
            {"scores": s[kept], "labels": x[kept], "boxes": b[kept]}
            for s, x, b, kept in zip(scores, labels, boxes, is_above(scores, labels, threshold), strict=True)
        ]

    def _thresholds(self, outputs: Any, *given: float | Sequence[float] | None) -> dict[str, Any]:
        """Returns the thresholds by name, in the order of `THRESHOLDS`; the processor's own where None is given."""
        pairs = zip(THRESHOLDS, given, strict=False)
        values: dict[str, Any] = {name: getattr(self, name) if value is None else value for name, value in pairs}
        for name, value in values.items():
            several = name == "threshold" and isinstance(value, (list, tuple))
            good = all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in (value if several else [value]))
            if not good or (several and outputs is not None and len(value) != outputs.logits.shape[-1] - 1):
                raise ValueError(f"`{name}` must be a number from 0 to 1{', one per label' * several}, got {value!r}.")
        return values


def _images(outputs: Any, target_sizes: Sizes | None) -> Iterator[tuple[Sequence[Tensor], Tensor, ImageSizes]]:
    """Yields scores and labels (Q,) on the CPU, mask logits (Q, h, w) and sizes of each image of a batch."""
    count, (height, width) = len(outputs.logits), outputs.pred_masks.shape[-2:]
    known = {n: getattr(outputs, n, None) for n in ("canvas_sizes", "image_sizes")} | {"target_sizes": target_sizes}
    tensors = {name: given for name, given in known.items() if isinstance(given, Tensor)}
    scores, labels, *fetched = fetch(*best_classes(outputs.logits), *tensors.values())
    known |= dict(zip(tensors, fetched, strict=True))
    sizes, columns = [(MASK_STRIDE * height, MASK_STRIDE * width)] * count, []
    for name, given in known.items():
        sizes = sizes if given is None else _pairs(name, given, count)  # else those of the step before
        columns.append(sizes)
    canvas, processed, target = columns
    return zip(
        zip(scores, labels, strict=True), outputs.pred_masks, map(ImageSizes, processed, canvas, target), strict=True
    )


def _pairs(name: str, sizes: Sizes, count: int) -> list[tuple[int, int]]:
    """Returns sizes as whole numbers, one pair per image."""
    rows = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
    if len(rows) != count or any(len(row) != 2 or min(row) < 1 for row in rows):
        raise ValueError(f"`{name}` must be (height, width) of each of the {count} images, got {rows}.")
    return [(int(height), int(width)) for height, width in rows]


def _refuse_unknown(names: Iterable[str], *, only_misspelled: bool = False) -> None:
    """Raises a ValueError about the first name that is not a setting, and names the nearest one."""
    known = DetrPanopticImageProcessorKwargs.__annotations__
    for name in sorted(set(names) - known.keys()):
        near = get_close_matches(name, known, n=1, cutoff=0.8)
        if near or not only_misspelled:
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise ValueError(f"`{name}` is not a setting of DetrPanopticImageProcessor{hint}")


DetrPanopticImageSegmentationPipeline.image_processor_class = DetrPanopticImageProcessor
__all__ = ["DetrPanopticImageProcessor"]
