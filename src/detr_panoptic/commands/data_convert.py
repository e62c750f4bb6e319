"""`detr-panoptic data convert`: a dataset of any format to one that this program, and others, read quickly."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frame import CommandError, add_command, explain, report
from .sources import SCENES, add_source_options, read_source, source_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from datasets import Dataset

    from ..data import PanopticData, Record
    from ..data.categories import Categories
    from .frame import CommandParser

COCO, DATASET, PARQUET = TARGETS = ("coco-panoptic", "dataset", "parquet")
SKIP_HINT = "(`--on-error skip` leaves such images out)"
DESCRIPTION = f"""
Write a dataset anew: id maps, segments and categories in one format, the pictures copied byte by byte. OUT gets

  {COCO}  images/, panoptic/ and panoptic.json, which every panoptic tool reads
  {DATASET}        a folder for load_from_disk of `datasets`, from which push_to_hub sends it to the Hub
  {PARQUET}        data/SPLIT-….parquet, the layout of datasets on the Hub

SOURCE is a folder, a Parquet file or OWNER/NAME on the Hub, in any format of docs/data.md, or `{SCENES}`.
"""
EXAMPLES = """
detr-panoptic data convert my_export my_data
detr-panoptic data convert cityscapes cityscapes_train --split train --to parquet
detr-panoptic data convert scenes my_scenes --limit 30000 --workers 16 --to dataset
detr-panoptic data convert coco coco_small --format coco-instances --split val2017 --limit 100 --on-error skip
"""


class ConversionNotes(logging.Handler):
    """What the readers say in the log about decisions that they had to take, summed up."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.disputed_pixels = 0
        self.disputed_images = 0
        self.covered_instances = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Add what one line of the log says."""
        self.disputed_pixels += getattr(record, "disputed_pixels", 0)
        self.disputed_images += hasattr(record, "disputed_pixels")
        self.covered_instances += getattr(record, "covered_instances", 0)


class Counts:
    """What was written, and what was left out."""

    def __init__(self) -> None:
        self.images = self.segments = self.crowds = 0
        self.labels: set[int] = set()
        self.broken: list[str] = []

    def add(self, record: Record) -> None:
        """Count one record."""
        segments = record["segments_info"]
        self.images += 1
        self.segments += len(segments)
        self.crowds += sum(segment["iscrowd"] for segment in segments)
        self.labels |= {segment["label_id"] for segment in segments}


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers, "convert", run, summary="write it in another format", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that is empty or does not exist")
    add_source_options(parser)
    parser.add_argument("--seed", type=int, default=0, help=f"of `{SCENES}`: other ones for another number")
    parser.add_argument("--workers", type=int, default=0, help=f"processes that make `{SCENES}`; 0: this one")
    parser.add_argument("--to", choices=TARGETS, default=COCO, help="format of OUT")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave broken images out and list them"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if OUT was written."""
    output: Path = arguments.output
    check_output(output)
    notes = ConversionNotes()
    logger = logging.getLogger("detr_panoptic.data")
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        data = read_source(
            arguments.source,
            scene_seed=arguments.seed,
            scene_workers=arguments.workers,
            **source_options(arguments),
        )
        counts = convert(data, output, target=arguments.to, split=arguments.split, skip=arguments.on_error == "skip")
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)
    _print_summary(counts, notes, data, output)
    return 0


def check_output(output: Path) -> None:
    """Raises CommandError unless a folder can be written there without touching what exists."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise CommandError(f"OUT {str(output)!r} must be a folder that is empty or does not exist.")


def convert(data: PanopticData, output: Path, *, target: str, split: str | None, skip: bool) -> Counts:
    """Write a dataset.

    Args:
        data: map-style records and their categories.
        output: a folder that is empty or does not exist.
        target: one of `TARGETS`.
        split: what Parquet files are named after.
        skip: leave out what cannot be read.

    Raises:
        CommandError: nothing can be read, or something and it is not to be left out.
    """
    counts = Counts()
    records = _with_progress(good_records(data.records, counts, skip=skip), total=len(data.records))
    write_records(records, data.categories, output, target=target, split=split)
    return counts


def write_records(
    records: Iterable[Record], categories: Categories, output: Path, *, target: str, split: str | None = None
) -> None:
    """Write canonical records; OUT appears when it is complete.

    Args:
        records: canonical ones.
        categories: of their label ids.
        output: a folder that is empty or does not exist.
        target: one of `TARGETS`.
        split: what Parquet files are named after.

    Raises:
        CommandError: a run that was stopped has left its part.
    """
    from ..data import save_dataset, write_coco_panoptic_dataset, write_parquet

    partial = output.with_name(f"{output.name}.partial")
    if partial.exists():
        raise CommandError(f"{str(partial)!r} is left of a run that was stopped: delete it first.")
    try:
        if target == COCO:
            write_coco_panoptic_dataset(partial, records, categories)
        elif target == DATASET:
            save_dataset(partial, records, categories)
        else:
            write_parquet(partial, records, categories, split=split or "train")
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def good_records(records: Dataset, counts: Counts, *, skip: bool) -> Iterator[Record]:
    """Records as files that can be read; the others are reported, or end it."""
    from ..data.check_sources import undecoded
    from ..data.writing import stored_record

    encoded = undecoded(records)
    for index in range(len(records)):
        try:
            record = stored_record(encoded[index])
            _decode(record["image"]["bytes"])
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            reason = f"{_name(records, index)}: {explain(error)}"
            if not skip:
                raise CommandError(f"{reason} {SKIP_HINT}") from error
            counts.broken.append(reason)
            report(reason)
            continue
        counts.add(record)
        yield record
    if not counts.images:
        raise CommandError("no image of SOURCE can be read.")


def _decode(contents: bytes) -> None:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(contents)) as picture:
        picture.load()


def _name(records: Dataset, index: int) -> str:
    """A row's name, without opening its files."""
    plain = records.with_format(None)
    known = [name for name in ("file_name", "image_id") if name in plain.features]
    row = plain.select_columns(known)[index] if known else {}
    return str(row.get("file_name") or f"image {row.get('image_id', index)}")


def _with_progress(records: Iterator[Record], *, total: int) -> Iterator[Record]:
    """The records again, with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        records, "converting", total=total, console=console, transient=True, disable=not console.is_terminal
    )


def _print_summary(counts: Counts, notes: ConversionNotes, data: PanopticData, output: Path) -> None:
    from rich.console import Console

    lines = [
        f"Images: {counts.images}, segments: {counts.segments}, crowds among them: {counts.crowds}, "
        f"classes used: {len(counts.labels)} of {len(data.categories)}."
    ]
    if notes.disputed_images:
        lines.append(
            f"Instances overlap in {notes.disputed_images} images: {notes.disputed_pixels} pixels went to the smaller "
            f"one, {notes.covered_instances} instances have no pixel left."
        )
    if counts.broken:
        lines += [f"Left out, as they cannot be read: {len(counts.broken)}.", *(f"  {line}" for line in counts.broken)]
    lines.append(f"Written to {output}.")
    console: Any = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
