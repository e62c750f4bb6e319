"""Where a model looked for the objects of one image. Imports torch; commands import it when they run.

Legend: B images, Q queries, L decoder layers, M heads, (h, w) the map of the encoded image, (H, W) the photograph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backbone import DILATED_STRIDES, STRIDES
from ..box_ops import cxcywh_to_xyxy
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.old_prediction import MaskThresholds, describe_segments, segments_of
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..panoptic_merging import ImageSizes, query_masks
from ..visualization import ObjectAttention, hover_figure
from ..visualization.embedding import picture_tag
from ..visualization.labels import label_text
from ..visualization.report import Html, write_page

SHEET_SIDE = 4000  # pixels: sheets stand on the page as they are


@dataclass(frozen=True)
class Explanation:
    """One image, its segments, and all that the model attended to.

    Args:
        name: the image's file name.
        image: RGB, upright.
        segmentation: (H, W) int32 of the image's size, 0 is void.
        segments_info: what `describe_segments` returns, with the `query` of each.
        outputs: of the model, with attentions; for one image.
        stride: pixels of the model's image per cell of the encoded one.
        id2label: name of each label id.
    """

    name: str
    image: Image.Image
    segmentation: np.ndarray
    segments_info: list[dict[str, Any]]
    outputs: Any
    stride: int
    id2label: Mapping[int, str]

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.outputs.logits.shape[1]

    def of_segment(self, segment_id: int) -> ObjectAttention:
        """Where the query of a segment looked, with the segment as its mask."""
        segment = next(entry for entry in self.segments_info if entry["id"] == segment_id)
        mask = self.segmentation == segment_id
        of_what = f"segment {segment_id} of {self.name}, query {segment['query']}"
        return self._of_query(segment["query"], mask, label_text(segment, self.id2label), of_what)

    def of_query(self, query: int) -> ObjectAttention:
        """Where any query looked, with its own mask, whether it became a segment or not."""
        probs = self.outputs.logits[0, query].float().softmax(-1)
        label = int(probs[:-1].argmax())
        title = label_text({"label_id": label, "score": float(probs[label])}, self.id2label)
        of_what = f"query {query} of {self.name}, no object with {float(probs[-1]):.2f}"
        size = self.image.height, self.image.width
        canvas = tuple(self.outputs.canvas_sizes[0].tolist())
        sizes = ImageSizes(processed=self._processed_size, canvas=canvas, target=size)
        mask = query_masks(self.outputs.pred_masks[0, query : query + 1], sizes)[..., 0]
        return self._of_query(query, mask.cpu().numpy(), title, of_what)

    @property
    def _processed_size(self) -> tuple[int, int]:
        height, width = self.outputs.image_sizes[0].tolist()
        return height, width

    def _of_query(self, query: int, mask: np.ndarray, title: str, subtitle: str) -> ObjectAttention:
        mask_maps = self.outputs.mask_attentions[0, query]  # (M, h, w)
        cross = torch.stack([layer[0, :, query] for layer in self.outputs.cross_attentions])  # (L, M, h*w)
        width, height = self.image.size
        box = cxcywh_to_xyxy(self.outputs.pred_boxes[0, query].float()).cpu() * torch.tensor([width, height] * 2)
        left, top, right, bottom = box.tolist()
        return ObjectAttention(
            title=title,
            subtitle=subtitle,
            box=(left, top, right, bottom),
            mask=mask,
            mask_maps=_array(mask_maps),
            cross_maps=_array(cross.unflatten(-1, mask_maps.shape[-2:])),
            processed_size=self._processed_size,
            stride=self.stride,
        )


def explain_image(
    image: Image.Image,
    name: str,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    *,
    threshold: float | None,
    all_masks: bool = False,
    task: str = "panoptic",
    mask_thresholds: MaskThresholds = (None, None),
) -> Explanation:
    """Run the model on one image and keep what it attended to.

    Args:
        image: upright, RGB.
        name: of its file.
        model: in evaluation mode.
        processor: the model's.
        threshold: the least score of a segment; None: the processor's.
        all_masks: make the masks of all queries, also of those that see no object.
        task: "panoptic" or "instance"; the classes of a semantic map come from no query alone.
        mask_thresholds: see `segments_of`.
    """
    inputs = processor(images=image, return_tensors="pt").to(device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        outputs = model(**inputs, mask_queries="all" if all_masks else None, output_attentions=True)
    sizes = [(image.height, image.width)]
    (result,) = segments_of(outputs, processor, sizes, task=task, threshold=threshold, mask_thresholds=mask_thresholds)
    segmentation = result["segmentation"].cpu().numpy()
    segments = describe_segments(segmentation, result["segments_info"], model.config)
    queries = queries_of(segments, outputs.logits[0])
    id2label: dict[Any, str] = model.config.id2label or {}
    return Explanation(
        name=name,
        image=image,
        segmentation=segmentation,
        segments_info=[{**entry, "query": query} for entry, query in zip(segments, queries, strict=True)],
        outputs=outputs,
        stride=(DILATED_STRIDES if model.config.dilation else STRIDES)[-1],
        id2label=id2label,
    )


def queries_of(segments_info: Sequence[Mapping[str, Any]], logits: Tensor) -> list[int]:
    """The query that each segment comes from; of several that were fused, the one whose score it has.

    Args:
        segments_info: `label_id` and `score` each, in the order of their ids, which is that of the queries.
        logits: (Q, K + 1).
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    found: list[int] = []
    for segment in segments_info:
        distance = (scores - segment["score"]).abs().masked_fill(labels != segment["label_id"], float("inf"))
        distance[found] = float("inf")  # two queries may have one label and one score: each segment has its own
        found.append(int(distance.argmin()))
    return found


def write_explanation_page(
    file: Path, explanation: Explanation, sheets: Mapping[str, tuple[str, Image.Image]], links: Mapping[int, str]
) -> None:
    """A page with the image to point at, and the sheets below.

    Args:
        file: to write.
        explanation: of the image.
        sheets: by their anchor on the page: a title and the picture.
        links: the address of each segment's sheet.
    """
    parts = [
        hover_figure(
            explanation.image,
            explanation.segmentation,
            explanation.segments_info,
            explanation.id2label,
            links=links,
        )
    ]
    for anchor, (title, sheet) in sheets.items():
        picture = picture_tag(sheet, alt=f"attention maps of {title}", max_side=SHEET_SIDE)
        parts.append(Html(f'<section id="{anchor}" class="sheet">{picture}</section>'))
    style = "<style>.sheet { margin-top: 2rem; } .sheet img { width: 100%; height: auto; }</style>"
    write_page(file, f"What the model looked at in {explanation.name}", [Html(style), *parts])


def _array(maps: Tensor) -> np.ndarray:
    return maps.float().cpu().numpy()
