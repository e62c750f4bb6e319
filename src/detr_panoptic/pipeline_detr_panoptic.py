"""The image segmentation pipeline for DETR panoptic models.

Unlike transformers' own, it takes images of different sizes with `batch_size`, arrays and tensors, and its thresholds
default to the processor's, so that a call gives what the model was measured with.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
from transformers.pipelines import ImageSegmentationPipeline
from transformers.utils import ModelOutput

from .image_reading import read_picture, stack_padded

TASK = "image-segmentation"
ARGUMENTS = ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold", "timeout")  # of a call

# Pipelines log an error unless they find a model's name here. The table loads no class.
MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES.setdefault("detr_panoptic", "DetrPanopticForSegmentation")


class DetrPanopticImageSegmentationPipeline(ImageSegmentationPipeline):
    """Turns images into masks with labels and scores.

    A call takes an image or a list of images, `subtask` ("panoptic", the default, "instance" or "semantic"),
    `threshold`, `mask_threshold`, `overlap_mask_area_threshold` and `batch_size`. It returns, per image, a list of
    `score`, `label` and `mask` (a black and white picture of the image's size).

    Examples:
        >>> segment = DetrPanopticImageSegmentationPipeline.from_pretrained("OWNER/NAME")  # doctest: +SKIP
        >>> [found["label"] for found in segment("street.jpg")]  # doctest: +SKIP
        ['person', 'road', 'sky-other-merged']
    """

    # `pipeline` would try to load both, and ask whether to trust the code of a repository that has some.
    _load_tokenizer = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    image_processor_class: ClassVar[Any] = None  # set by the image processor's file, which imports this one

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **kwargs: Any) -> "DetrPanopticImageSegmentationPipeline":
        """Builds the pipeline, as `pipeline` does, from a saved model of this package or of transformers' DETR."""
        from .modeling_detr_panoptic import HUB_ARGUMENTS, DetrPanopticForSegmentation

        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS & kwargs.keys()}
        loading = {name: kwargs.pop(name) for name in ("dtype", "device_map") if name in kwargs}
        processor = cls.image_processor_class.from_pretrained(model, **hub)
        loaded = DetrPanopticForSegmentation.from_pretrained(model, **hub, **loading, **kwargs.pop("model_kwargs", {}))
        return cls(model=loaded, image_processor=processor, task=TASK, **kwargs)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Segments an image, or the images of a list, a tuple or a column of a dataset."""
        several = isinstance(inputs, Sequence) and not isinstance(inputs, str)
        return super().__call__(list(inputs) if several else inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := sorted(kwargs.keys() - ARGUMENTS):
            raise ValueError(f"The pipeline takes the arguments {', '.join(ARGUMENTS)}, got {', '.join(unknown)}.")
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if "subtask" in kwargs:
            forward = {**forward, "mask_queries": "all" if kwargs["subtask"] == "semantic" else None}
        return preprocess, forward, postprocess

    def preprocess(  # type: ignore[override]
        self,
        image: Any,
        subtask: str | None = None,  # noqa: ARG002  all subtasks need the same
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """Returns `pixel_values` (1, 3, h, w), `target_size` (1, 2), height first, and with `pad_size` a `pixel_mask`.

        Raises ValueError, with the name of the file, if it cannot be read.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_picture(image, timeout=timeout)
        processor: Any = self.image_processor
        pixels = processor.process_image(image)
        inputs = processor(pixels, do_pad=processor.pad_size is not None, return_tensors="pt").to(self.dtype)
        return {**inputs, "target_size": torch.tensor([pixels.shape[-2:]])}

    def get_iterator(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Returns the base class's iterator, but batches are padded."""
        results = super().get_iterator(*args, **kwargs)
        results.loader.loader.collate_fn = collate_padded
        return results

    def _forward(  # type: ignore[override]
        self, model_inputs: Mapping[str, Tensor], mask_queries: str | int | None = None
    ) -> ModelOutput:
        """Returns the tensors that post-processing reads; the base class splits a batch along their first axis."""
        inputs = dict(model_inputs)
        target_size = inputs.pop("target_size")
        outputs = self.model(**inputs, mask_queries=mask_queries)
        names = ("logits", "pred_masks", "image_sizes", "canvas_sizes")
        return ModelOutput({name: outputs[name] for name in names} | {"target_size": target_size})

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: ModelOutput,
        subtask: str | None = None,
        threshold: float | Sequence[float] | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Returns `score`, `label` and `mask` of each segment of an image; None means the processor's threshold."""
        processor: Any = copy.copy(self.image_processor)
        processor.stuff_label_ids = self.model.config.stuff_label_ids  # the processor's may be those of older labels
        sizes = model_outputs["target_size"]
        if subtask == "semantic":
            labels = processor.post_process_semantic_segmentation(model_outputs, target_sizes=sizes)[0].numpy()
            return [self._result(labels == label_id, label_id, None) for label_id in np.unique(labels).tolist()]
        if subtask not in {None, "panoptic", "instance"}:
            raise ValueError(f"`subtask` must be panoptic, instance or semantic, got {subtask!r}.")
        merge = getattr(processor, f"post_process_{subtask or 'panoptic'}_segmentation")
        merged = merge(model_outputs, threshold, mask_threshold, overlap_mask_area_threshold, target_sizes=sizes)[0]
        segmentation = merged["segmentation"].numpy()
        return [
            self._result(segmentation == segment["id"], segment["label_id"], segment["score"])
            for segment in merged["segments_info"]
        ]

    def _result(self, mask: np.ndarray, label_id: int, score: float | None) -> dict[str, Any]:
        picture = Image.fromarray(mask.view(np.uint8) * np.uint8(255))  # a third of the time of the base class's way
        id2label: Any = self.model.config.id2label
        return {"score": score, "label": id2label[label_id], "mask": picture}


def collate_padded(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks preprocessed images to one batch; those of several sizes are padded, which its `pixel_mask` says."""
    batch = {name: stack_padded([i[name][0] for i in items]) for name in items[0] if name != "target_size"}
    if "pixel_mask" not in batch and len({item["pixel_values"].shape for item in items}) > 1:
        masks = [torch.ones_like(item["pixel_values"][0, 0], dtype=torch.int64) for item in items]
        batch["pixel_mask"] = stack_padded(masks)  # without it attention is faster
    return batch | {"target_size": torch.cat([item["target_size"] for item in items])}


__all__ = ["DetrPanopticImageSegmentationPipeline"]
