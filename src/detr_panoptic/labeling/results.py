"""What a teacher added to images, as an object that prints, and as a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ..data.plain_text import counted, markdown, one_line
from ..data.records import segmentation_ids
from ..evaluation.tables import format_table
from ..visualization import draw_segments
from ..visualization.sheets import stack

if TYPE_CHECKING:
    from .classes import LabelMatch
    from .folder import Labeled, LabelFolder

DRAWN, ROWS = 24, 6  # images in the report, and on each of its sheets
DRAWN_SIDE = 640  # pixels, at most


class AddedClass(NamedTuple):
    """A class that was added, and the numbers of images and pixels that got it."""

    name: str
    is_thing: bool
    images: int
    pixels: int


@dataclass
class Labels:
    """The result of `label` or `complete_stuff`: what a model added to images. Prints as a table.

    Args:
        files: the folder of the results.
        match: has the categories of the data.
        teacher: name of the model.
        license: of the teacher, if its model card says so.
        labeled: what was added to each image.
        earlier: number of images that were done before.
        failures: messages about images left out.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic import complete_stuff
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> labels = complete_stuff("scenes", tempfile.mkdtemp(), model=BUNDLED, limit=1, progress=False)
        >>> print(str(labels).partition("; ")[0])  # scenes have no void
        Nothing was added.
        <BLANKLINE>
        1 image
    """

    files: LabelFolder = field(repr=False)
    match: LabelMatch = field(repr=False)
    teacher: str
    license: str | None
    labeled: list[Labeled] = field(repr=False)
    earlier: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of the dataset."""
        return self.files.output

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labeled)

    @property
    def void_before(self) -> float:
        """Share of void pixels in the source, in [0, 1]."""
        return sum(image.void_before for image in self.labeled) / self._pixels

    @property
    def void_after(self) -> float:
        """Share of void pixels in the output, in [0, 1]."""
        return sum(image.void_after for image in self.labeled) / self._pixels

    @property
    def _pixels(self) -> int:
        return max(sum(image.pixels for image in self.labeled), 1)

    @property
    def added(self) -> list[AddedClass]:
        """The added classes, the largest first."""
        images, pixels = Counter[int](), Counter[int]()
        for image in self.labeled:
            images.update(image.added.keys())
            pixels.update(image.added)
        names, is_thing = self.match.categories.names, self.match.categories.is_thing
        return [AddedClass(names[label], is_thing[label], images[label], n) for label, n in pixels.most_common()]

    @property
    def least_sure(self) -> list[Labeled]:
        """The images, ordered by the scores of their pixels, the lowest first. Void pixels count as 0."""
        return sorted(self.labeled, key=lambda image: image.score)

    def __str__(self) -> str:
        """Returns a table of the added classes, the share of void before and after, and the teacher's license."""
        return f"{self._table(one_line)}\n\n{self._totals()}\n{one_line(self._teacher())}"

    def save(self, folder: str | Path) -> None:
        """Writes `labels.json`, `labels.md` and sheets of images before and after, the least sure first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ("images", "earlier", "failures", "void_before", "void_after", "teacher", "license")
        content = {name: getattr(self, name) for name in names}
        content |= {"folder": str(self.folder), "added": [row._asdict() for row in self.added]}
        content["least_sure"] = [{"file_name": image.file_name, "score": image.score} for image in self.least_sure]
        (folder / "labels.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        parts = ["# Labels", self._totals(), markdown(self._teacher()), self._table(markdown)]
        drawn = [image for image in self.least_sure if image.added][:DRAWN]
        if drawn:
            parts.append("The images with the least sure labels come first.")
        for number, start in enumerate(range(0, len(drawn), ROWS), start=1):
            captions, pictures = zip(
                *(pair for image in drawn[start : start + ROWS] for pair in self._draw(image)), strict=True
            )
            stack(pictures, columns=2, captions=captions).save(folder / f"sheet_{number}.png")
            parts.append(f"![before and after](sheet_{number}.png)")
        (folder / "labels.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def _draw(self, image: Labeled) -> list[tuple[str, Image.Image]]:
        """Returns captions and pictures of an image before and after."""
        record = self.files.pictures[image.place]
        ids, info = self.files.read(image.place)
        before: tuple = (ids * 0, [])
        if "segmentation" in record:
            before = segmentation_ids(record["segmentation"]), record["segments_info"]
        drawn = []
        for when, (shown, segments) in (("before", before), (f"score {image.score:.2f}", (ids, info))):
            picture = draw_segments(record["image"], shown, segments, self.match.categories.id2label)
            picture.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
            drawn.append((f"{image.file_name}: {when}", picture))
        return drawn

    def _table(self, escape: Callable[[str], str]) -> str:
        if not self.added:
            return "Nothing was added."
        rows = [[row.name, ("stuff", "thing")[row.is_thing], str(row.images), str(row.pixels)] for row in self.added]
        return format_table(["added class", "kind", "images", "pixels"], rows, escape=escape)

    def _totals(self) -> str:
        earlier = f", {self.earlier} of them from earlier runs" if self.earlier else ""
        skipped = f", {len(self.failures)} skipped" if self.failures else ""
        voids = f"void {self.void_before:.1%} before, {self.void_after:.1%} after"
        return f"{counted(self.images, 'image')}{earlier}{skipped}; {voids}"

    def _teacher(self) -> str:
        return f"teacher: {self.teacher}, license: {self.license or 'unknown; look at its model card'}"
