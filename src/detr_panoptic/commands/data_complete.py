"""`detr-panoptic data complete-stuff`: things annotated by hand, the rest by a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.long_runs import add_batch_options, check_run_options
from ..inference.old_loading import add_device_option, load_model, model_categories, resolve_device
from .data_convert import COCO, Counts, check_output, write_records
from .frame import CommandError, add_command, plain
from .sources import add_source_options, read_source, source_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import numpy as np
    from PIL import Image
    from rich.console import Console

    from ..data import Record
    from ..labeling.completion import LabelMatch
    from .frame import CommandParser

DRAWN = 24  # images in the report
DESCRIPTION = """
Fill what an annotation leaves void with the stuff that a panoptic model sees there, for data of which only things
were annotated. Annotated pixels stay what they are; stuff that is annotated in a part of an image grows. Classes are
matched by name, and stuff that the data does not have becomes a new class.

A pixel stays void if no segment of a score above --threshold owns it, if no mask of such a segment has a probability
of one half there, or if the model sees a thing there that is not to be added.

OUT becomes a folder in COCO panoptic layout: images/, panoptic/ and panoptic.json.
"""
EXAMPLES = """
detr-panoptic data complete-stuff my_boxes_and_masks my_data --model OWNER/NAME
detr-panoptic data complete-stuff coco filled --split val2017 --model my_model --things --report what_was_added
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "complete-stuff",
        run,
        summary="let a model add the stuff to annotated things",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that is empty or does not exist")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="folder of a saved model, or its name on the Hugging Face Hub"
    )
    add_source_options(parser)
    parser.add_argument(
        "--things", action="store_true", help="add things, too, of classes that the data does not have"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="SCORE", help="least score of a segment, 0 to 1 (default: the model's own)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write DIR/index.html: what was added, before and after"
    )
    add_batch_options(parser)
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave broken images out and list them"
    )
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if OUT was written."""
    check_output(arguments.output)
    check_run_options(arguments)

    from rich.console import Console

    from ..labeling.completion import match_labels
    from ..labeling.seen_records import RecordFiles, seen_records

    data = read_source(arguments.source, **source_options(arguments))
    model, processor = load_model(arguments.model, resolve_device(arguments.device), dtype=arguments.dtype)
    match = match_labels(data.categories, model_categories(model.config), with_things=arguments.things)
    if not match.labels:
        raise CommandError(f"`--model {arguments.model}` has no class that could be added to the data.")
    additions = Additions(match, report=arguments.report is not None)
    read = Counts()
    seen = seen_records(RecordFiles(data.records), model, processor, arguments, read)
    records = (additions.complete(*parts) for parts in seen)
    write_records(_with_progress(records, total=len(data.records)), match.categories, arguments.output, target=COCO)
    console = Console(highlight=False)
    additions.show(console, num_images=read.images)
    if arguments.report is not None:
        page = arguments.report / "index.html"
        additions.write(page, arguments.source, num_images=read.images)
        console.print(f"Before and after are in {page}", markup=False, soft_wrap=True)
    console.print(f"Written to {arguments.output}. Look before you train on it.", markup=False, soft_wrap=True)
    return 0


class Additions:
    """What was added to the records, class by class, and pictures of the first of them.

    Args:
        match: of the model's labels to those of the completed data.
        report: keep pictures.
    """

    def __init__(self, match: LabelMatch, *, report: bool) -> None:
        """Start with none."""
        self.match = match
        self.report = report
        self.images: Counter[int] = Counter()
        self.pixels: Counter[int] = Counter()
        self.void_before = self.void_after = self.all_pixels = 0
        self.pictures: list[tuple[Image.Image, str]] = []

    def complete(self, record: Record, seen: np.ndarray, seen_segments: list[dict[str, Any]]) -> Record:
        """The record with its void filled, and counted."""
        from datasets import Image as ImageFeature

        from ..data import segmentation_ids
        from ..labeling.completion import fill_void

        ids = segmentation_ids(ImageFeature(mode="RGB").decode_example(record["segmentation"]))
        completed = fill_void(ids, record["segments_info"], seen, seen_segments, self.match)
        self.images.update(completed.added.keys())
        self.pixels.update(completed.added)
        void = int((ids == 0).sum())
        self.void_before += void
        self.void_after += void - sum(completed.added.values())
        self.all_pixels += ids.size
        after = {**record, "segmentation": completed.ids, "segments_info": completed.segments_info}
        if self.report and completed.added and len(self.pictures) < 2 * DRAWN:
            name = record["file_name"]
            self.pictures += [(self._draw({**record, "segmentation": ids}), f"{name}: before")]
            self.pictures += [(self._draw(after), f"{name}: after")]
        return after

    def _draw(self, record: Record) -> Image.Image:
        from ..labeling.seen_records import picture_of
        from ..visualization import draw_segments

        id2label = self.match.categories.id2label
        picture = draw_segments(picture_of(record), record["segmentation"], record["segments_info"], id2label)
        picture.thumbnail((640, 640))
        return picture

    def rows(self) -> list[tuple[int, str, str, int, int]]:
        """Label, name, kind, images and pixels of each class that was added, the largest first."""
        categories = self.match.categories
        return [
            (label, categories.names[label], "thing" if categories.is_thing[label] else "stuff", self.images[label], n)
            for label, n in self.pixels.most_common()
        ]

    def totals(self, *, num_images: int) -> str:
        """How much was filled, as one line."""
        before, after = (void / max(self.all_pixels, 1) for void in (self.void_before, self.void_after))
        return f"{num_images} images; void before {before:.1%} of the pixels, after {after:.1%}"

    def show(self, console: Console, *, num_images: int) -> None:
        """Print the table of classes."""
        from rich.table import Table

        table = Table("added class", "", "images", "pixels")
        for column in table.columns[2:]:
            column.justify = "right"
        for _, name, kind, images, pixels in self.rows():
            table.add_row(plain(name), kind, str(images), str(pixels))
        if self.pixels:
            console.print(table)
        console.print(self.totals(num_images=num_images))

    def write(self, page: Path, name: str, *, num_images: int) -> None:
        """Write the table and the pictures as a page."""
        from ..visualization import class_colors
        from ..visualization.report import Bar, bar_chart, gallery, heading, paragraph, write_page

        rows, colors = self.rows(), class_colors(self.match.categories.id2label)
        most = max((pixels for *_, pixels in rows), default=1)
        bars = [Bar((text, kind, n, pixels), pixels / most, colors[label]) for label, text, kind, n, pixels in rows]
        parts = [paragraph(self.totals(num_images=num_images))]
        parts += [heading("What was added"), bar_chart(("class", "", "images", "pixels", ""), bars)]
        parts += [heading("Before and after"), gallery(self.pictures, columns=2)]
        write_page(page, f"Stuff added to {name}", parts)


def _with_progress(records: Iterator[Record], *, total: int) -> Iterator[Record]:
    """The records again, with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        records, "completing", total=total, console=console, transient=True, disable=not console.is_terminal
    )
