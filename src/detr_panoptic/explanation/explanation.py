"""Attention of a model for the objects of one image.

Legend: B images, Q queries, L decoder layers, M heads, (h, w) the map of the encoded image, (H, W) the photograph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backbone import DILATED_STRIDES, STRIDES
from ..box_ops import cxcywh_to_xyxy
from ..data.plain_text import one_line
from ..data.reading import check_least
from ..image_reading import read_picture
from ..inference import Predictor
from ..inference.detections import query_masks
from ..inference.loop import make_batch, run_model
from ..inference.options import check_options
from ..inference.pictures import plain_picture
from ..panoptic_merging import ImageSizes
from ..visualization import ObjectAttention, draw_attention, draw_segments, stack
from ..visualization.labels import label_text

TASKS = ("panoptic", "instance")


@dataclass(frozen=True)
class Explanation:
    """One image, its segments, and where the queries of the chosen objects looked.

    Args:
        name: Of the image, without a suffix.
        image: RGB, upright.
        segmentation: (H, W) int32 of the image's size; 0 is void, ids run from 1.
        segments: All segments: `id`, `label_id`, `label`, `score`, and the `query` that each comes from.
        objects: Attention of each chosen object, by its name, such as `segment_3` or `query_17`.
        id2label: Name of each label id.

    Examples:
        >>> from detr_panoptic import explain
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.scenes import make_scene
        >>> explanation = explain(BUNDLED, make_scene(1)["image"], segments=[2, 1])
        >>> list(explanation.objects), explanation.segments[0]["id"]
        (['segment_2', 'segment_1'], 1)
    """

    name: str
    image: Image.Image = field(repr=False)
    segmentation: np.ndarray = field(repr=False)
    segments: list[dict[str, Any]]
    objects: dict[str, ObjectAttention] = field(repr=False)
    id2label: Mapping[int, str] = field(repr=False)

    def draw(self, name: str | None = None, *, layer: int | None = None, head: int | None = None) -> Image.Image:
        """Draws the sheet of one object, or the sheets of all objects below each other.

        Args:
            name: One of `objects`; None for all of them.
            layer: Decoder layer, from 1, whose heads are shown; None for the last.
            head: Shows only this head, from 1; None for all.

        Returns:
            An RGB image; without any object, the image itself.

        Raises:
            ValueError: If there is no such object, layer or head.
        """
        if name is not None and name not in self.objects:
            raise ValueError(f"`name` must be one of {', '.join(self.objects) or 'no objects'}, got {name!r}.")
        chosen = self.objects.values() if name is None else [self.objects[name]]
        sheets = [draw_attention(self.image, attention, layer=layer, head=head) for attention in chosen]
        return stack(sheets) if sheets else self.image.copy()

    def save(self, folder: str | PathLike[str], *, layer: int | None = None, head: int | None = None) -> list[Path]:
        """Writes the overlay, NAME_overlay.png, and a sheet for each object, such as NAME_segment_3.png.

        The folder is created if it does not exist; `layer` and `head` are as in `draw`. Returns the files.
        """
        sheets = {name: self.draw(name, layer=layer, head=head) for name in self.objects}
        overlay = draw_segments(self.image, self.segmentation, self.segments, self.id2label)
        Path(folder).mkdir(parents=True, exist_ok=True)
        files = []
        for name, picture in {"overlay": overlay, **sheets}.items():
            files.append(Path(folder) / f"{self.name}_{name}.png")
            picture.save(files[-1])
        return files

    def __str__(self) -> str:
        """Returns a line for each object."""
        lines = [f"{name}: {attention.title} ({attention.subtitle})" for name, attention in self.objects.items()]
        return "\n".join(map(one_line, lines or [f"{self.name}: nothing above the threshold"]))


def explain(
    model: Any,
    image: str | PathLike[str] | Image.Image,
    *,
    threshold: float | None = None,
    segments: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    task: str = "panoptic",
    device: str = "auto",
) -> Explanation:
    """Shows where a model looked for the objects of an image: the mask head's attention and the cross-attention.

    Args:
        model: A `Predictor`, a (model, image processor) pair, or the folder or Hub id of a saved model.
        image: An image, or the path of one.
        threshold: Minimum score of a segment; None for that of the image processor.
        segments: Ids of the segments to explain; None for all.
        queries: Queries to explain instead of segments, from 0. They need not have become segments.
        task: "panoptic" or "instance". A semantic map adds up all queries, so it has no query for a segment.
        device: Of a model that is loaded.

    Returns:
        The segments and their attention maps. `.draw()` and `.save(folder)` make pictures of them.

    Raises:
        ValueError: If the image cannot be read, or an argument names something that does not exist.

    Examples:
        >>> from detr_panoptic import explain
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.scenes import make_scene
        >>> explanation = explain(BUNDLED, make_scene(1)["image"], queries=[17])
        >>> explanation.objects["query_17"].mask_maps.shape[0]  # heads
        8
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
    if segments is not None and queries is not None:
        raise ValueError("`segments` and `queries` cannot be given together.")
    check_options(task, threshold)
    for argument, numbers, first in (("segments", segments, 1), ("queries", queries, 0)):
        for number in numbers or ():
            check_least(argument, number, first)
    picture = plain_picture(image if isinstance(image, Image.Image) else read_picture(image))
    predictor = Predictor.of(model, device=device)
    network, processor = predictor.model, predictor.processor
    for query in queries or ():
        if query >= network.config.num_queries:
            raise ValueError(f"`queries` must be from 0 to {network.config.num_queries - 1}, got {query}.")
    name = "image" if isinstance(image, Image.Image) else Path(image).stem
    batches = [make_batch(processor, [{"image": picture, "file_name": name}])]
    masks = None if queries is None else "all"
    ((_, outputs),) = run_model(network, batches, mask_queries=masks, output_attentions=True)
    merge = getattr(processor, f"post_process_{task}_segmentation")
    (result,) = merge(outputs, threshold, target_sizes=[(picture.height, picture.width)])
    id2label, info = network.config.id2label, result["segments_info"]
    origins = zip(info, queries_of(info, outputs.logits[0]), strict=True)
    found = [{**segment, "label": id2label[segment["label_id"]], "query": query} for segment, query in origins]
    segmentation = result["segmentation"].cpu().numpy()
    reader = _AttentionReader(name, picture, outputs, network.config)
    if queries is not None:
        objects = {f"query_{query}": reader.of_query(query) for query in queries}
    else:
        chosen = _chosen(found, segments)
        objects = {f"segment_{entry['id']}": reader.of_segment(entry, segmentation) for entry in chosen}
    return Explanation(name, picture, segmentation, found, objects, id2label)


def queries_of(segments_info: Sequence[Mapping[str, Any]], logits: Tensor) -> list[int]:
    """Returns the query that each segment comes from; of fused queries, the one whose score the segment has.

    The segments are in the order of their ids, which is that of the queries; logits are (Q, K + 1).
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    found: list[int] = []
    for segment in segments_info:
        distance = (scores - segment["score"]).abs().masked_fill(labels != segment["label_id"], float("inf"))
        distance[found] = float("inf")  # two queries can have the same label and score
        found.append(int(distance.argmin()))
    return found


def _chosen(segments: list[dict[str, Any]], ids: Sequence[int] | None) -> list[dict[str, Any]]:
    """Returns the segments with these ids, in the order of the ids."""
    if ids is None:
        return segments
    by_id = {entry["id"]: entry for entry in segments}
    if unknown := [segment_id for segment_id in ids if segment_id not in by_id]:
        known = f"1 to {max(by_id)}" if by_id else "none"
        raise ValueError(f"`segments` must be ids of the image's segments ({known}), got {unknown[0]}.")
    return [by_id[segment_id] for segment_id in ids]


@dataclass(frozen=True)
class _AttentionReader:
    """Takes the maps of single queries out of the model's outputs for one image."""

    name: str
    image: Image.Image
    outputs: Any
    config: Any

    def of_segment(self, segment: Mapping[str, Any], segmentation: np.ndarray) -> ObjectAttention:
        """Returns the attention of the query that became this segment, with the segment as its mask."""
        subtitle = f"segment {segment['id']} of {self.name}, query {segment['query']}"
        title = label_text(segment, self.config.id2label)
        return self._of(segment["query"], segmentation == segment["id"], title, subtitle)

    def of_query(self, query: int) -> ObjectAttention:
        """Returns the attention of any query, with its own mask."""
        probs = self.outputs.logits[0, query].float().softmax(-1)
        label = int(probs[:-1].argmax())
        title = label_text({"label_id": label, "score": float(probs[label])}, self.config.id2label)
        processed, canvas = (tuple(pair[0].tolist()) for pair in (self.outputs.image_sizes, self.outputs.canvas_sizes))
        sizes = ImageSizes(processed, canvas, target=(self.image.height, self.image.width))
        mask = query_masks(self.outputs.pred_masks[0, query : query + 1], sizes)[..., 0].cpu().numpy()
        return self._of(query, mask, title, f"query {query} of {self.name}, no object with {float(probs[-1]):.2f}")

    def _of(self, query: int, mask: np.ndarray, title: str, subtitle: str) -> ObjectAttention:
        mask_maps = self.outputs.mask_attentions[0, query]  # (M, h, w)
        cross_maps = torch.stack([layer[0, :, query] for layer in self.outputs.cross_attentions])  # (L, M, h*w)
        scale = torch.tensor([self.image.width, self.image.height] * 2)
        left, top, right, bottom = (cxcywh_to_xyxy(self.outputs.pred_boxes[0, query].float()).cpu() * scale).tolist()
        return ObjectAttention(
            title=title,
            subtitle=subtitle,
            box=(left, top, right, bottom),
            mask=mask,
            mask_maps=mask_maps.float().cpu().numpy(),
            cross_maps=cross_maps.unflatten(-1, mask_maps.shape[-2:]).float().cpu().numpy(),
            processed_size=tuple(self.outputs.image_sizes[0].tolist()),
            stride=(DILATED_STRIDES if self.config.dilation else STRIDES)[-1],
        )
