"""Predictions: the segments of one image, as an object and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from ..data.files import write_file, written_whole
from ..data.plain_text import counted, one_line
from ..data.records import ids_to_rgb
from ..segment_ids import rgb_to_ids
from ..visualization import draw_segments

if TYPE_CHECKING:
    from supervision import Detections

    from ..data.categories import Categories

OVERLAY, MAP, JSON = "_overlay.png", ".png", ".json"


@dataclass(frozen=True)
class Segment:
    """One segment of a prediction.

    Args:
        id: value of its pixels in the segmentation map, from 1.
        label_id: the model's label.
        label: name of the label.
        score: confidence in [0, 1]; None in semantic maps.
        is_thing: whether the label is a thing, not stuff.
        area: number of pixels.
        bbox: x, y, width and height in pixels.
        category_id: the dataset's id of the label; `label_id` where the model knows none.
        was_fused: whether several queries were merged into it.
        instance: in a video, the number of a thing among those of its label, from 0, which keeps its color.
    """

    id: int
    label_id: int
    label: str
    score: float | None
    is_thing: bool
    area: int
    bbox: tuple[int, int, int, int]
    category_id: int
    was_fused: bool = False
    instance: int | None = None


@dataclass
class Prediction:
    """The segments of one image.

    Args:
        image: RGB, upright.
        segmentation: (H, W) int32 of the image's size; 0 is void, ids run from 1.
        segments: one entry for each id in the map.
        id2label: names of all labels of the model; they determine the colors.
        name: file name of the image, or another name for it.
        detections: if asked for, one mapping for each query, with `label_id`, `score`, `bbox` (x, y, width, height in
            pixels) and for masks `counts`, their COCO run-length encoding.

    Examples:
        >>> from detr_panoptic import Predictor
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.scenes import make_scene
        >>> prediction = Predictor.from_pretrained(BUNDLED)(make_scene(1)["image"])
        >>> print(prediction)  # doctest: +SKIP
        >>> prediction.draw().save("overlay.png")  # doctest: +SKIP
    """

    image: Image.Image
    segmentation: NDArray[np.int32]
    segments: list[Segment]
    id2label: Mapping[int, str]
    name: str = "image"
    detections: list[dict[str, Any]] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Returns a line for the image and one for each segment, the largest first."""
        size = f"{self.image.width}x{self.image.height} pixels"
        lines = [f"{one_line(self.name)}: {counted(len(self.segments), 'segment')}, {size}"]
        for segment in sorted(self.segments, key=lambda segment: -segment.area):
            score = "" if segment.score is None else f"{segment.score:.2f}"
            share = f"{segment.area / max(self.segmentation.size, 1):.1%}"
            lines.append(f"  {segment.id:4d}  {one_line(segment.label):24s} {score:>5s} {share:>7s}")
        return "\n".join(lines)

    @property
    def segments_info(self) -> list[dict[str, Any]]:
        """The segments as the image processor's post-processing returns them: `id`, `label_id`, `score`, `area`."""
        names = ("id", "label_id", "score", "area", "was_fused", "instance")
        contents = map(_content, self.segments)
        return [{name: content[name] for name in names if name in content} for content in contents]

    def draw(self, **options: Any) -> Image.Image:
        """Draws the segments over the image, with `alpha`, `show_labels` and `show_legend` of `draw_segments`."""
        return draw_segments(self.image, self.segmentation, self.segments_info, self.id2label, **options)

    def to_coco(self, image_id: int, file_name: str) -> dict[str, Any]:
        """Returns the entry of this image in a COCO panoptic JSON file; the PNG file of the ids has that name."""
        return coco_annotation([asdict(segment) for segment in self.segments], image_id, file_name)

    def to_supervision(self) -> Detections:
        """Returns the segments as `supervision.Detections`, with the names of their labels in `data`."""
        import supervision as sv

        masks = self.segmentation[None] == np.array([s.id for s in self.segments]).reshape(-1, 1, 1)
        corners = [(x, y, x + width, y + height) for x, y, width, height in (s.bbox for s in self.segments)]
        scores = [s.score for s in self.segments]
        return sv.Detections(
            xyxy=np.array(corners, dtype=np.float32).reshape(-1, 4),
            mask=masks,
            class_id=np.array([s.label_id for s in self.segments], dtype=int),
            confidence=None if None in scores else np.array(scores, dtype=np.float32),  # no score of a semantic map
            data={"class_name": np.array([s.label for s in self.segments])},
        )

    def save(
        self,
        folder: str | Path,
        stem: str | None = None,
        *,
        maps: str | Path | None = None,
        overlay: bool = True,
        source: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes `STEM.png` (segment ids as RGB), `STEM_overlay.png` and, last, `STEM.json`.

        Args:
            folder: created if it does not exist.
            stem: of the file names; the image's name without its suffix by default.
            maps: another folder for `STEM.png`.
            overlay: whether to draw the overlay.
            source: further fields for the JSON file, such as `image_id`.

        Returns:
            The JSON file.
        """
        folder, maps = Path(folder), Path(folder if maps is None else maps)
        if stem is None:
            stem = Path(self.name).stem
            if (maps / f"{stem}{MAP}").exists() and not (folder / f"{stem}{JSON}").exists():
                raise ValueError(f"`stem` must be given: {stem}{MAP} is in {maps}, and may be the image itself.")
        if overlay:
            with written_whole(folder / f"{stem}{OVERLAY}") as part:
                self.draw().save(part, format="PNG")
        write_segmentation(maps / f"{stem}{MAP}", self.segmentation)
        content = {
            "image": self.name,
            **(source or {}),
            "width": self.image.width,
            "height": self.image.height,
            "segmentation": f"{stem}{MAP}",
            "segments_info": [_content(segment) for segment in self.segments],
            **({} if self.detections is None else {"detections": self.detections}),
        }
        file = folder / f"{stem}{JSON}"
        write_file(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return file

    @classmethod
    def load(
        cls, image: Image.Image, content: Mapping[str, Any], maps: Path, id2label: Mapping[int, str]
    ) -> Prediction:
        """Reads a prediction that `save` wrote: `content` is that of the JSON file, `maps` the PNG file's folder."""
        with Image.open(maps / content["segmentation"]) as picture:
            ids = rgb_to_ids(np.asarray(picture)).astype(np.int32)
        segments = [Segment(**{**entry, "bbox": tuple(entry["bbox"])}) for entry in content["segments_info"]]
        return cls(image, ids, segments, id2label, content["image"], content.get("detections"))


def _content(segment: Segment) -> dict[str, Any]:
    return {name: value for name, value in asdict(segment).items() if name != "instance" or value is not None}


def coco_annotation(segments: Sequence[Mapping[str, Any]], image_id: int, file_name: str) -> dict[str, Any]:
    """Returns the entry of an image in a COCO panoptic JSON file, given the fields of each `Segment`."""
    same = ("id", "category_id", "area", "bbox", "score")
    entries = [{"isthing": int(s["is_thing"]), "iscrowd": 0} | {key: s[key] for key in same} for s in segments]
    return {"image_id": image_id, "file_name": file_name, "segments_info": entries}


def describe_segments(
    segmentation: NDArray[np.int32], segments_info: Sequence[Mapping[str, Any]], categories: Categories
) -> list[Segment]:
    """Adds names, kinds and boxes to what post-processing returns: a map (H, W) of ids from 1, and their entries."""
    extents = ndimage.find_objects(segmentation)
    segments = []
    for info in segments_info:
        rows, columns = extents[info["id"] - 1]
        label_id = info["label_id"]
        segments.append(
            Segment(
                id=info["id"],
                label_id=label_id,
                label=categories.names[label_id],
                score=info.get("score"),
                is_thing=categories.is_thing[label_id],
                area=info["area"],
                bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                category_id=categories.category_ids[label_id],
                was_fused=info.get("was_fused", False),
            )
        )
    return segments


def write_segmentation(file: str | Path, segmentation: ArrayLike) -> None:
    """Writes (H, W) segment ids as a PNG file in COCO's encoding, atomically."""
    with written_whole(Path(file)) as part:
        Image.fromarray(ids_to_rgb(segmentation)).save(part, format="PNG")
