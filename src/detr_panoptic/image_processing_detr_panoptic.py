"""Image processor of DETR for panoptic segmentation: images and annotations to inputs, outputs to segments.

Names and habits are those of transformers' `DetrImageProcessor`, with these differences:
  * annotations are id maps in memory, never files beside the dataset;
  * boxes of targets are relative to the image, not to the padded canvas, and span whole pixels: a segment that fills
    the image has the box (0.5, 0.5, 1, 1), where the reference's ends half a pixel early;
  * masks of targets keep the image's own size, and masks of predictions are cropped to it before they are resized;
  * stuff is fused by default, thresholds live in the processor, ids are unique and run from 1, 0 is void;
  * every PIL mode, 16-bit images and EXIF rotation are read as they are meant.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.models.detr.image_processing_detr import convert_segmentation_to_rle
from transformers.processing_utils import ImagesKwargs

from .box_ops import cxcywh_to_xyxy
from .image_reading import array_to_tensor, channels_last, flatten_images, picture_to_tensor, read_picture
from .panoptic_merging import (
    ImageSizes,
    Segmentation,
    merge_instances,
    merge_paper,
    merge_score_weighted,
    semantic_map,
    semantic_scores,
)
from .panoptic_targets import panoptic_target
from .pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline  # noqa: F401  so that its file is saved too

Sizes = Sequence[Sequence[int]] | Tensor
MERGING_MODES = ("paper", "score_weighted")
MASK_STRIDE = 4  # pixels of the canvas per element of `pred_masks`, along each side


class DetrPanopticImageProcessorKwargs(ImagesKwargs, total=False):
    """What a processor saves besides the arguments of every image processor; see `DetrPanopticImageProcessor`."""

    stuff_label_ids: list[int] | None
    category_ids: list[int] | None
    merging: str | None
    threshold: float | int | None
    mask_threshold: float | int | None
    overlap_mask_area_threshold: float | int | None


class DetrPanopticImageProcessor(TorchvisionBackend):
    """Prepares images and annotations, and turns outputs into segments.

    Besides the arguments of every image processor (`size`, `do_resize`, `image_mean`, `pad_size`, ...):

    Args:
        stuff_label_ids: labels that are stuff: one segment per image at most.
        category_ids: the dataset's category id of each label, to read annotations; None where they are the same.
        merging: "paper" merges as the reference's evaluation does, "score_weighted" as transformers does.
        threshold: confidence below which a query is dropped; 0.85 in the paper's evaluation.
        mask_threshold: probability above which a pixel belongs to a query's own mask, in the score-weighted mode and
            for instances.
        overlap_mask_area_threshold: in those two, the share of its own mask that a segment must keep.

    Raises:
        ValueError: if an argument is out of its range.
    """

    valid_kwargs = DetrPanopticImageProcessorKwargs
    foreign_readers: ClassVar[list[Callable[..., dict[str, Any]]]] = []  # empty in Hub code; the package fills it
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
    threshold = 0.85
    mask_threshold = 0.5
    overlap_mask_area_threshold = 0.8

    def __init__(self, **kwargs: Any) -> None:
        """Checks and keeps the settings; the class's arguments."""
        super().__init__(**kwargs)
        self.stuff_label_ids = _checked_ids("stuff_label_ids", self.stuff_label_ids)
        if self.category_ids is not None:
            self.category_ids = _checked_ids("category_ids", self.category_ids)
            if self.stuff_label_ids and max(self.stuff_label_ids) >= len(self.category_ids):
                raise ValueError(
                    f"`stuff_label_ids` must be labels from 0 to {len(self.category_ids) - 1}, as many as "
                    f"`category_ids` has, got {self.stuff_label_ids}."
                )
        if self.merging not in MERGING_MODES:
            raise ValueError(f"`merging` must be one of {MERGING_MODES}, got {self.merging!r}.")
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            _check_fraction(name, getattr(self, name))

    @classmethod
    def for_model(cls, config: PreTrainedConfig, **kwargs: Any) -> "DetrPanopticImageProcessor":
        """The processor of a model: its stuff, category ids and threshold; `kwargs` go before them."""
        names = ("stuff_label_ids", "category_ids", "threshold")
        return cls(**{name: getattr(config, name) for name in names} | kwargs)

    @classmethod
    def get_image_processor_dict(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `from_pretrained` reads, with the settings of transformers' DETR checkpoints translated to ours."""
        hub_options = dict(kwargs)
        values, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if values.get("image_processor_type") != cls.__name__:
            for read in cls.foreign_readers:
                values = read(values, pretrained_model_name_or_path, **hub_options)
        return values, kwargs

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = True,  # noqa: ARG002  the model knows nothing but RGB
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,  # noqa: ARG002  the other settings act on the batch
    ) -> Tensor:
        """One image as (3, H, W): uint8 from 0 to 255, or the floats that came.

        Args:
            image: a picture of any mode; or an array or tensor (H, W), (C, H, W) or (H, W, C), C 1, 3 or 4.
            do_convert_rgb: without effect, images always become RGB.
            input_data_format: "channels_first" or "channels_last". None finds out; where both are possible, an array
                has its channels last and a tensor first.
            device: where to work.
            kwargs: settings of later steps.

        Raises:
            ValueError: if the shape or the values are no image's.
        """
        if isinstance(image, Image.Image):
            pixels = picture_to_tensor(image)
        else:
            pixels = array_to_tensor(image, input_data_format)
        return pixels if device is None else pixels.to(device)

    def fetch_images(self, images: Any) -> Any:
        """Opens each path, URL or base64 string; pictures and arrays stay as they are."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return read_picture(images) if isinstance(images, (str, os.PathLike)) else images

    def resize(
        self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> Tensor:
        """As the base class, but a thin image (1 x 5000) keeps at least one pixel."""
        if size.shortest_edge and size.longest_edge:
            height, width = get_size_with_aspect_ratio(image.shape[-2:], size.shortest_edge, size.longest_edge)
            size = SizeDict(height=max(height, 1), width=max(width, 1))
        if 1 in (size.width, size.shortest_edge):
            image = channels_last(image)
        return super().resize(image, size, resample, antialias, **kwargs)

    def rescale_and_normalize(
        self,
        images: Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
    ) -> Tensor:
        """As the base class, to the bit, but in float32 whatever torch's default dtype.

        That changes for a while when another thread loads a model in half precision, and the base class would keep
        what it then computed.
        """
        if not do_normalize:
            return self.rescale(images, rescale_factor) if do_rescale else images
        mean: Any = image_mean
        std: Any = image_std
        if do_rescale:
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=images.device) * (1 / rescale_factor)
                for values in (mean, std)
            )
        return self.normalize(images.to(torch.float32), mean, std, inplace=images.dtype != torch.float32)

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resizes, normalizes and pads images and makes targets of their annotations.

        Args:
            images: a picture, path, URL, array or tensor, or a list of such.
            annotations: for each image `image_id`, `segmentation` (id map: (H, W) integers, or a picture whose colors
                are R + 256 G + 256² B; 0 is void) and `segments_info` (one entry per segment: `id`, `label_id` or
                `category_id`, and `iscrowd`, 0 if absent).
            kwargs: settings for this call only, such as `size` or `do_resize`.

        Returns:
            `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), 1 on image. With annotations also `labels`, per
            image: `class_labels` (T,), `boxes` (T, 4) cxcywh relative to the image, `masks` (T, h, w) bool of the
            image's processed size, `iscrowd` (T,), `area` (T,) in processed pixels, `image_id` (1,), `size` (2,) and
            `orig_size` (2,), height first. Segments that vanish when resized are left out.

        Raises:
            ValueError: if an image is unreadable, or a map and its `segments_info` disagree.
        """
        images = list(flatten_images(self.fetch_images(images)))
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        if isinstance(annotations, Mapping):
            annotations = [annotations]
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(f"`annotations` must be one per image, got {len(annotations)} for {len(images)} images.")
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        (annotations,) = args
        tensor_type = kwargs["return_tensors"]
        images = [self.process_image(image, **kwargs) for image in images]
        processed = [self._process_pixels(image, **kwargs) for image in images]
        batch = BatchFeature(self._stack(processed, **kwargs), tensor_type=tensor_type)
        if annotations is not None:
            targets = [
                panoptic_target(annotation, _size_of(image), _size_of(small), kwargs["category_ids"])
                for annotation, image, small in zip(annotations, images, processed, strict=True)
            ]
            batch["labels"] = [BatchFeature(target, tensor_type=tensor_type) for target in targets]
        return batch

    def _process_pixels(
        self, image: Tensor, *, do_resize: bool, size: SizeDict, resample: Any, **settings: Any
    ) -> Tensor:
        """One image (3, H, W), resized and normalized as the settings say."""
        if do_resize:
            image = self.resize(image, size, resample)
        steps = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(image, **{step: settings[step] for step in steps})

    def _stack(self, images: list[Tensor], *, do_pad: bool, pad_size: SizeDict | None, **_: Any) -> dict[str, Tensor]:
        """Images (3, h, w) as a batch, padded at the right and the bottom if the settings say so."""
        if do_pad:
            return _padded_batch(images, pad_size)
        sizes = [_size_of(image) for image in images]
        if len(set(sizes)) > 1:
            raise ValueError(f"`do_pad` must be True for images of different sizes, got False and {sizes}.")
        return {"pixel_values": torch.stack(images)}

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,  # of our model, or of any with such `logits` and `pred_masks`
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sizes | None = None,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[Segmentation]:
        """Segments of things and stuff, per image.

        Args:
            outputs: the model's.
            threshold: confidence below which a query is dropped; None, here and below: the processor's own.
            mask_threshold: used by the score-weighted mode alone, as the next.
            overlap_mask_area_threshold: the share of its own mask that a segment must keep.
            label_ids_to_fuse: labels with at most one segment; None: `stuff_label_ids`.
            target_sizes: (height, width) of each map; None: the size at which the model saw the image.
            processed_sizes: (height, width) at which the model saw each image; None: what `outputs` say.

        Returns:
            Per image `segmentation` (H, W) int32, 0 void and ids from 1, and `segments_info` with `id`, `label_id`,
            `score`, `area` and `was_fused`.
        """
        fused = self.stuff_label_ids if label_ids_to_fuse is None else label_ids_to_fuse
        threshold = self._fraction("threshold", threshold)
        mask_thresholds = self._mask_thresholds(mask_threshold, overlap_mask_area_threshold)
        merge: Callable[..., Segmentation]
        if self.merging == "paper":
            merge = partial(merge_paper, threshold=threshold, stuff_label_ids=fused)
        else:
            merge = partial(merge_score_weighted, threshold=threshold, label_ids_to_fuse=fused, **mask_thresholds)
        return [merge(*image) for image in _images(outputs, target_sizes, processed_sizes)]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool | None = False,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[dict[str, Any]]:
        """Segments of things alone, per image.

        Arguments and result as in `post_process_panoptic_segmentation`; with `return_coco_annotation` the map is one
        run-length code per value in it.
        """
        merge: Callable[..., Segmentation] = partial(
            merge_instances,
            threshold=self._fraction("threshold", threshold),
            stuff_label_ids=self.stuff_label_ids,
            **self._mask_thresholds(mask_threshold, overlap_mask_area_threshold),
        )
        results = [dict(merge(*image)) for image in _images(outputs, target_sizes, processed_sizes)]
        if not return_coco_annotation:
            return results
        return [{**result, "segmentation": convert_segmentation_to_rle(result["segmentation"])} for result in results]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        return_segmentation_scores: bool = False,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """The label of each pixel, per image.

        Returns:
            (H, W) int64 maps; or, with `return_segmentation_scores`, outputs with such a `segmentation` and
            `segmentation_scores` (K, H, W).
        """
        images = _images(outputs, target_sizes, processed_sizes)
        if not return_segmentation_scores:
            return [semantic_map(*image) for image in images]
        scores = [semantic_scores(*image) for image in images]
        return [
            SemanticSegmentationPostProcessorOutput({"segmentation": s.argmax(0), "segmentation_scores": s})
            for s in scores
        ]

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float | None = None, target_sizes: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """Boxes of things and stuff, per image.

        Returns:
            Per image `scores` (N,), `labels` (N,) and `boxes` (N, 4) xyxy in pixels of `target_sizes`; without these,
            relative to the image.
        """
        threshold = self._fraction("threshold", threshold)
        scores, labels = outputs.logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q) each
        boxes = cxcywh_to_xyxy(outputs.pred_boxes.float())
        if target_sizes is not None:
            height, width = torch.tensor(_pairs("target_sizes", target_sizes, len(boxes)), device=boxes.device).T
            boxes = boxes * torch.stack((width, height, width, height), dim=-1)[:, None]
        return [
            {"scores": s[s > threshold], "labels": x[s > threshold], "boxes": b[s > threshold]}
            for s, x, b in zip(scores, labels, boxes, strict=True)
        ]

    def _fraction(self, name: str, value: float | None) -> float:
        """An argument, or the processor's own value of that name."""
        if value is None:
            return float(getattr(self, name))
        _check_fraction(name, value)
        return value

    def _mask_thresholds(self, mask: float | None, overlap: float | None) -> dict[str, Any]:
        return {
            "mask_threshold": self._fraction("mask_threshold", mask),
            "overlap_mask_area_threshold": self._fraction("overlap_mask_area_threshold", overlap),
        }


def _images(
    outputs: Any, target_sizes: Sizes | None, processed_sizes: Sizes | None
) -> Iterator[tuple[Tensor, Tensor, ImageSizes]]:
    """Logits (Q, K + 1), mask logits (Q, h, w) and sizes of each image of a batch."""
    count, (height, width) = len(outputs.logits), outputs.pred_masks.shape[-2:]
    known = {name: getattr(outputs, name, None) for name in ("image_sizes", "canvas_sizes")}
    canvas = [(MASK_STRIDE * height, MASK_STRIDE * width)] * count
    if known["canvas_sizes"] is not None:
        canvas = _pairs("canvas_sizes", known["canvas_sizes"], count)
    if processed_sizes is None:
        processed_sizes = known["image_sizes"]
    processed = canvas if processed_sizes is None else _pairs("processed_sizes", processed_sizes, count)
    targets = processed if target_sizes is None else _pairs("target_sizes", target_sizes, count)
    sizes = [ImageSizes(*each) for each in zip(processed, canvas, targets, strict=True)]
    return zip(outputs.logits, outputs.pred_masks, sizes, strict=True)


def _padded_batch(images: list[Tensor], pad_size: SizeDict | None) -> dict[str, Tensor]:
    """Images (3, h, w) at the upper left of one canvas, and the mask that says where they are.

    Every pixel is written once: the base class's `pad` copies three times and makes a mask for each channel, which
    took half of the time of a training batch.
    """
    sizes = [_size_of(image) for image in images]
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    canvas = largest
    if pad_size is not None:
        if not (pad_size.height and pad_size.width):
            raise ValueError(f"`pad_size` must have `height` and `width`, got {pad_size}.")
        canvas = pad_size.height, pad_size.width
        if canvas[0] < largest[0] or canvas[1] < largest[1]:
            raise ValueError(f"`pad_size` must be at least the images' {largest}, got {canvas}.")
    dtype = reduce(torch.promote_types, (image.dtype for image in images))
    pixels = images[0].new_zeros((len(images), 3, *canvas), dtype=dtype)
    mask = images[0].new_zeros((len(images), *canvas), dtype=torch.int64)
    for i, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        pixels[i, :, :height, :width] = image
        mask[i, :height, :width] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


def _size_of(image: Tensor) -> tuple[int, int]:
    """Height and width of (..., H, W)."""
    height, width = image.shape[-2:]
    return height, width


def _pairs(name: str, sizes: Sizes, count: int) -> list[tuple[int, int]]:
    """Sizes as whole numbers, one pair per image."""
    rows = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
    if len(rows) != count or any(len(row) != 2 or min(row) < 1 for row in rows):
        raise ValueError(f"`{name}` must be (height, width) of each of the {count} images, got {rows}.")
    return [(int(height), int(width)) for height, width in rows]


def _checked_ids(name: str, ids: Collection[int]) -> list[int]:
    """Different whole numbers from 0, as a list."""
    values = list(ids)
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values) or len(set(values)) < len(values):
        raise ValueError(f"`{name}` must be different whole numbers from 0, got {values}.")
    return values


def _check_fraction(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1, got {value!r}.")


__all__ = ["DetrPanopticImageProcessor"]
