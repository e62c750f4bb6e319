"""`detr-panoptic predict`: photographs in, overlays and segments out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.long_runs import add_run_options, check_run_options, journal_folder, processes, run_over
from ..inference.old_loading import add_model_option, fingerprint, load_model
from ..training.faults import held_output
from .frame import USER_ERROR, CommandError, add_command, plain, report
from .sources import add_source_options, read_pictures, source_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from accelerate import PartialState

    from ..evaluation.journal import Journal
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.old_pictures import DatasetPictures, ImageFiles
    from ..inference.old_prediction import Prediction
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .frame import CommandParser

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
OUTPUT_ENDINGS = ("_overlay.png", ".png", ".json")  # what `write_prediction` adds to a stem
MAX_LISTED_IMAGES = 10  # in the table; the files hold all
TASKS = ("panoptic", "instance", "semantic")
FILES, COCO, PARQUET = "files", "coco-panoptic", "parquet"
DESCRIPTION = """
Find the things and the stuff in photographs: image files, folders, or a dataset (--data). The output folder gets

  --to files          for each image NAME.jpg
                      NAME_overlay.png  the photograph with colored, labeled segments
                      NAME.png          the segment of each pixel, as in COCO's panoptic format:
                                        id = R + 256 G + 256² B, 0 is void
                      NAME.json         the segments: id, label, score, area in pixels and box [x, y, width, height]
  --to coco-panoptic  panoptic.json and the maps in panoptic/, COCO's panoptic format
  --to parquet        data/*.parquet, a dataset with pictures, maps and segments that `train --data` reads

Images of the same name are numbered, those of a dataset that have no name are called by their id. An image that cannot
be read is reported and the others are done; the exit code is 2 then. On several processes: accelerate launch
scripts/predict.py with the same options. A run that was interrupted goes on where it was when it is started again.
"""
EXAMPLES = """
detr-panoptic predict photo.jpg --model my_model
detr-panoptic predict holiday/ portrait.png --model my_model --output segments --batch-size 4
detr-panoptic predict street.jpg --model my_model --task instance --threshold 0.7 --device cuda
detr-panoptic predict million/ --model my_model --to coco-panoptic --workers 8 --batch-size 16
detr-panoptic predict --data coco --split unlabeled2017 --model my_model --to parquet
detr-panoptic predict --data OWNER/PHOTOGRAPHS --split train --model my_model --to coco-panoptic
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "predict",
        run,
        summary="segment photographs",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image files, and folders whose images are all taken"
    )
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="instead of images: what `train --data` takes, or any dataset or folder of folders with pictures",
    )
    add_source_options(parser)
    add_model_option(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="folder for the results"
    )
    parser.add_argument("--to", choices=(FILES, COCO, PARQUET), default=FILES, help="how the results are written")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="panoptic",
        help="panoptic: things and stuff; instance: things alone, each on its own; semantic: one segment per class",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="drop segments with a lower score, 0 to 1; not for the semantic task (default: the model's own)",
    )
    add_run_options(parser, on_error="skip")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if every image was done."""
    _check(arguments)
    pictures, missing = _pictures(arguments)
    for message in missing:
        report(message)
    if not len(pictures):
        return USER_ERROR
    with processes(arguments.device) as (state, device):
        model, processor = load_model(arguments.model, device, dtype=arguments.dtype)
        with held_output(arguments.output, state):
            journal = _predict_all(arguments, pictures, model, processor, state)
    return USER_ERROR if missing or journal.failures else 0


def _predict_all(
    arguments: argparse.Namespace,
    pictures: ImageFiles | DatasetPictures,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    state: PartialState,
) -> Journal:
    from ..evaluation.journal import Journal
    from ..inference.old_prediction import MASK_QUERIES
    from ..inference.writers import CocoWriter, FileWriter, ParquetWriter

    writers = {FILES: FileWriter, COCO: CocoWriter, PARQUET: ParquetWriter}
    settings = {
        "command": "predict",
        "model": fingerprint(model, processor),
        "images": pictures.fingerprint(),
        **{name: getattr(arguments, name) for name in ("to", "task", "threshold", "batch_size")},
        "dtype": str(model.dtype),
    }
    journal = Journal(journal_folder(arguments.output), settings, length=len(pictures), process=state.process_index)
    done_before = len(journal)
    writer = writers[arguments.to](arguments.output, pictures, model, processor, arguments)
    run_over(pictures, model, processor, journal, state, arguments, writer, MASK_QUERIES.get(arguments.task))
    if state.is_main_process:
        writer.finish(journal)
        if len(journal):
            print_table(writer.first, num_done=len(journal), done_before=done_before, output=arguments.output)
    state.wait_for_everyone()
    return journal


def _pictures(arguments: argparse.Namespace) -> tuple[ImageFiles | DatasetPictures, list[str]]:
    """All images, and a line for each name that means none."""
    if arguments.data is None:
        paths, missing = expand_images(arguments.images, output=arguments.output)

        from ..inference.old_pictures import ImageFiles

        return ImageFiles(paths), missing

    from ..inference.old_pictures import DatasetPictures

    return DatasetPictures(read_pictures(arguments.data, **source_options(arguments)), with_truth=False), []


def expand_images(names: Sequence[str], *, output: Path) -> tuple[list[Path], list[str]]:
    """The files that the user means, and a line for each name that means none.

    Args:
        names: files and folders; of a folder, the images right inside, sorted.
        output: folder of the results, which must not be read as input.

    Raises:
        CommandError: an input folder is the output folder.
    """
    paths: list[Path] = []
    missing = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            if path.is_file():
                paths.append(path)
            else:
                missing.append(f"No such file or folder: {name}")
            continue
        if path.resolve() == output.resolve():
            raise CommandError(f"`--output {output}` is an input folder too: its results would be read as images.")
        inside = sorted(
            child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file()
        )
        paths += inside
        if not inside:
            missing.append(f"No images in {name} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return paths, missing


def output_stems(paths: Sequence[Path], output: Path) -> list[str]:
    """A name for the results of each image, so that no two files collide and no input is overwritten.

    Args:
        paths: the images; `a/x.jpg` and `b/x.jpg` become `x` and `x_2`.
        output: folder of the results; images that lie in it keep their files.
    """
    # Case is ignored: on most desktops X.json and x.json are one file.
    taken = {path.name.casefold() for path in paths if path.parent.resolve() == output.resolve()}
    stems = []
    for path in paths:
        number, stem = 1, path.stem
        while taken & (files := {f"{stem}{ending}".casefold() for ending in OUTPUT_ENDINGS}):
            number += 1
            stem = f"{path.stem}_{number}"
        taken |= files
        stems.append(stem)
    return stems


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is loaded."""
    if bool(arguments.images) == (arguments.data is not None):
        raise CommandError("Name either images and folders, or a dataset with `--data`.")
    for name in ("split", "format", "limit"):
        if arguments.data is None and getattr(arguments, name) is not None:
            raise CommandError(f"`--{name}` has no meaning without `--data`.")
    check_run_options(arguments)
    if arguments.threshold is not None and arguments.task == "semantic":
        raise CommandError("`--threshold` has no meaning for the semantic task: every pixel gets its best class.")


def print_table(predictions: Sequence[Prediction], *, num_done: int, done_before: int, output: Path) -> None:
    """Show the segments of the first images, and say where the results are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "label")
    table.add_column("score", justify="right")
    table.add_column("share of area", justify="right")
    for prediction in predictions:
        name = plain(prediction.name)
        num_pixels = prediction.segmentation.size
        for entry in sorted(prediction.segments_info, key=lambda entry: -entry["area"]):
            score = "" if entry["score"] is None else f"{entry['score']:.2f}"
            table.add_row(name, plain(entry["label"]), score, f"{entry['area'] / num_pixels:.1%}")
            name = ""
        if not prediction.segments_info:
            table.add_row(name, "nothing above the threshold", "", "")
        table.add_section()
    console = Console()
    if predictions:
        console.print(table)
    if predictions and num_done > len(predictions):
        console.print(f"... and {num_done - len(predictions)} more images")
    earlier = f", {done_before} of them by earlier runs" if done_before else ""
    console.print(f"Images done: {num_done}{earlier}. Results are in {output}", markup=False, soft_wrap=True)
