"""`complete_stuff`: things annotated by hand, the rest added by a model."""

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm.auto import tqdm

from ..data.files import check_new_folder, whole_folder
from ..data.plain_text import markdown, one_line
from ..data.records import segmentation_ids
from ..data.writing import write_coco_panoptic_dataset
from ..evaluation.results import format_table
from ..inference import Prediction, Predictor
from ..inference.loop import in_order
from ..inference.pictures import Pictures
from ..inference.predictor import OnError
from ..scenes.source import read_source
from ..segment_ids import VOID_ID
from ..visualization import draw_segments
from ..visualization.sheets import stack
from .filling import LabelMatch, fill_void, match_stuff

DRAWN, ROWS = 24, 6  # images in the report, and on each of its sheets
DRAWN_SIDE = 640  # pixels, at most


class AddedClass(NamedTuple):
    """A class that was added, and the numbers of images and pixels that got it."""

    name: str
    is_thing: bool
    images: int
    pixels: int


@dataclass
class Completion:
    """What `complete_stuff` added to a number of images; prints as a table.

    `match` has the categories of the completed data in `folder`; `failures` are messages about images left out.
    """

    folder: Path
    match: LabelMatch = field(repr=False)
    images: int = 0
    failures: list[str] = field(default_factory=list)
    _max_drawn: int = field(default=0, repr=False)
    _images: Counter[int] = field(default_factory=Counter, repr=False)  # by label, as the next one
    _pixels: Counter[int] = field(default_factory=Counter, repr=False)
    _void: Counter[str] = field(default_factory=Counter, repr=False)  # pixels before, after, and all
    _pictures: list[tuple[str, Image.Image]] = field(default_factory=list, repr=False)  # before and after in turns

    @property
    def void_before(self) -> float:
        """Share of void pixels in the source, in [0, 1]."""
        return self._void["before"] / max(self._void["all"], 1)

    @property
    def void_after(self) -> float:
        """Share of void pixels in the output, in [0, 1]."""
        return self._void["after"] / max(self._void["all"], 1)

    @property
    def added(self) -> list[AddedClass]:
        """The added classes, the largest first."""
        names, is_thing = self.match.categories.names, self.match.categories.is_thing
        return [
            AddedClass(names[label], is_thing[label], self._images[label], pixels)
            for label, pixels in self._pixels.most_common()
        ]

    def __str__(self) -> str:
        """Returns a table of the added classes, and the share of void before and after."""
        return f"{self._table(one_line)}\n\n{self._totals()}"

    def save(self, folder: str | Path) -> None:
        """Writes `completion.json`, `completion.md` and sheets of images before and after."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: getattr(self, name) for name in ("images", "failures", "void_before", "void_after")}
        content |= {"folder": str(self.folder), "added": [row._asdict() for row in self.added]}
        (folder / "completion.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        parts = ["# Added stuff", self._totals(), self._table(markdown)]
        for number, start in enumerate(range(0, len(self._pictures), 2 * ROWS), start=1):
            captions, pictures = zip(*self._pictures[start : start + 2 * ROWS], strict=True)
            stack(pictures, columns=2, captions=captions).save(folder / f"sheet_{number}.png")
            parts.append(f"![before and after](sheet_{number}.png)")
        (folder / "completion.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def complete(
        self, record: Mapping[str, Any], prediction: Prediction, threshold: float | list[float]
    ) -> dict[str, Any]:
        """Returns a record with its void filled, and counts what was added."""
        ids = segmentation_ids(record["segmentation"])
        seen = np.where(claimed_pixels(prediction, threshold), prediction.segmentation, VOID_ID)
        filled = fill_void(ids, record["segments_info"], seen, prediction.segments_info, self.match)
        self.images += 1
        self._images.update(filled.added.keys())
        self._pixels.update(filled.added)
        before, after = (int(np.sum(found == VOID_ID)) for found in (ids, filled.ids))
        self._void.update(before=before, after=after, all=ids.size)
        if filled.added and len(self._pictures) < 2 * self._max_drawn:
            for when, shown, info in (("before", ids, record["segments_info"]), ("after", *filled[:2])):
                picture = draw_segments(prediction.image, shown, info, self.match.categories.id2label)
                picture.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
                self._pictures.append((f"{prediction.name}: {when}", picture))
        return {**record, "segmentation": filled.ids, "segments_info": filled.segments_info}

    def _table(self, escape: Callable[[str], str]) -> str:
        rows = [[row.name, ("stuff", "thing")[row.is_thing], str(row.images), str(row.pixels)] for row in self.added]
        return format_table(["added class", "kind", "images", "pixels"], rows, escape=escape)

    def _totals(self) -> str:
        skipped = f", {len(self.failures)} skipped" if self.failures else ""
        return f"{self.images} images{skipped}; void {self.void_before:.1%} before, {self.void_after:.1%} after"


def complete_stuff(  # noqa: PLR0913  every option of a long run, each with a default
    source: Any,
    output: str | Path,
    *,
    model: Any,
    threshold: float | None = None,
    with_things: bool = False,
    report: str | Path | None = None,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    runtime: str = "torch",
    device: str = "auto",
    dtype: str | None = None,
    on_error: OnError = "stop",
    progress: bool = True,
) -> Completion:
    """Fills the void of annotations with the stuff that a model predicts there, and writes the result.

    The output is a folder in COCO panoptic layout: `images/`, `panoptic/` and `panoptic.json`. Annotated pixels stay
    as they are, and image files are copied byte by byte. Stuff that is annotated in a part of an image grows. Classes
    are matched by name, ignoring case; stuff that the data lacks becomes a new class.

    A pixel stays void if no segment with a score above the threshold owns it, if no mask of such a query has a
    probability of at least one half there, or if the model predicts a thing there that is not to be added.

    Args:
        source: annotated images, as `read_panoptic` takes them, or "scenes".
        output: a folder that is empty or does not exist.
        model: a folder, a name on the Hub, a `Predictor`, or a model and its image processor.
        threshold: least score of a segment, in [0, 1]. None: the image processor's.
        with_things: add things, too, of classes that the data lacks.
        report: a folder for `completion.md`, `completion.json` and sheets of images before and after.
        split: of the source.
        data_format: of the source. None recognizes it.
        limit: number of images, from the first.
        batch_size: images of similar shape that share a forward; their padding changes results slightly.
        num_workers: processes that load images. None: none on CPU, up to 8 on a GPU.
        runtime: of a model that is loaded: "torch", "openvino" or "onnxruntime", or "auto" as in `Predictor`.
        device: for a model that is loaded here. "auto" takes a GPU if there is one.
        dtype: of the computation, such as "bfloat16". None: float32.
        on_error: for an image that cannot be read, "stop" raises its error and "skip" leaves it out and logs it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the output exists, an image cannot be read, or the model has no class that may be added.

    Example:
        >>> import tempfile
        >>> from detr_panoptic import complete_stuff
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> folder = tempfile.mkdtemp()
        >>> completion = complete_stuff("scenes", folder, model=BUNDLED, limit=2, progress=False)
        >>> completion.images, completion.void_before
        (2, 0.0)
    """
    output = Path(output)
    check_new_folder(output)
    lenient = on_error == "skip"
    data = read_source(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=lenient)
    predictor = Predictor.of(model, runtime=runtime, device=device, dtype=dtype)
    match = match_stuff(data.categories, predictor.categories, with_things=with_things)
    if not match.labels:
        raise ValueError("`model` has no class that may be added to the data.")
    completion = Completion(output, match, _max_drawn=0 if report is None else DRAWN)
    pictures = Pictures(data.records)
    predictions = predictor.iterate(
        pictures,
        threshold=threshold,
        batch_size=batch_size,
        num_workers=num_workers,
        detections="mask",
        on_error=on_error,
        failures=completion.failures,
    )
    least = predictor.processor.threshold if threshold is None else threshold
    completed = (
        completion.complete({**record, "image": pictures.stored(record["index"])["image"]}, prediction, least)
        for record, prediction in in_order(
            tqdm(predictions, total=len(pictures), unit="image", disable=not progress or None), batch_size
        )
    )
    with whole_folder(output) as folder:
        write_coco_panoptic_dataset(folder, completed, match.categories)
        if not completion.images:
            raise ValueError("`source` has no image that can be read.")
    if report is not None:
        completion.save(report)
    return completion


def claimed_pixels(prediction: Prediction, threshold: float | list[float]) -> np.ndarray:
    """Returns where a query above its label's threshold has a mask probability of at least one half: (H, W) bool."""
    size = list(prediction.segmentation.shape)
    limits = dict(enumerate(threshold)) if isinstance(threshold, list) else defaultdict(lambda: threshold)
    codes = [
        {"size": size, "counts": mask["counts"]}
        for mask in prediction.detections or ()
        if mask["score"] > limits[mask["label_id"]]
    ]
    if not codes:
        return np.zeros(size, dtype=bool)
    with warnings.catch_warnings():  # pycocotools 2.0 meets numpy 2's rules for `__array__`
        warnings.simplefilter("ignore", DeprecationWarning)
        return rle.decode(rle.merge(codes)).astype(bool)
