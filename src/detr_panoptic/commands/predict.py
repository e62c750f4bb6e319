"""`detr-panoptic predict`: photographs in, overlays and segments out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .frame import USER_ERROR, CommandError, add_command, explain, report
from .loading import add_device_option, load_model, resolve_device

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from PIL import Image

    from .frame import CommandParser
    from .prediction import Prediction

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
OUTPUT_ENDINGS = ("_overlay.png", ".png", ".json")  # what `write_prediction` adds to a stem
MAX_LISTED_IMAGES = 10  # in the table; the files hold all
TASKS = ("panoptic", "instance", "semantic")
DESCRIPTION = """
Find the things and the stuff in photographs. For each image NAME.jpg the output folder gets

  NAME_overlay.png  the photograph with colored, labeled segments
  NAME.png          the segment of each pixel, in COCO's panoptic format: id = R + 256 G + 256² B, 0 is void
  NAME.json         the segments: id, label, score, area in pixels and box [x, y, width, height]

Images of the same name are numbered. An image that cannot be read is reported and the others are done; the exit code
is 2 then.
"""
EXAMPLES = """
detr-panoptic predict photo.jpg --model my_model
detr-panoptic predict holiday/ portrait.png --model my_model --output segments --batch-size 4
detr-panoptic predict street.jpg --model my_model --task instance --threshold 0.7 --device cuda
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
        "images", nargs="+", metavar="IMAGE", help="image files, and folders whose images are all taken"
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="folder of a saved model, or its name on the Hugging Face Hub"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="folder for the results"
    )
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
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images that go through the model at once"
    )
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if every image was done."""
    _check(arguments)
    paths, missing = expand_images(arguments.images, output=arguments.output)
    for message in missing:
        report(message)
    if not paths:
        return USER_ERROR
    model, processor = load_model(arguments.model, resolve_device(arguments.device))

    from .prediction import Prediction, describe_segments, segment, write_prediction

    arguments.output.mkdir(parents=True, exist_ok=True)
    stems = output_stems(paths, arguments.output)
    first: list[Prediction] = []
    num_done = 0
    for pictures in _with_progress(_read_batches(paths, arguments.batch_size), total=len(paths)):
        images = list(pictures.values())
        results = segment(images, model, processor, task=arguments.task, threshold=arguments.threshold)
        for (index, image), result in zip(pictures.items(), results, strict=True):
            segmentation = result["segmentation"].cpu().numpy()
            segments_info = describe_segments(segmentation, result["segments_info"], model.config)
            prediction = Prediction(paths[index].name, image, segmentation, segments_info)
            write_prediction(prediction, arguments.output, stems[index])
            num_done += 1
            if len(first) < MAX_LISTED_IMAGES:
                first.append(prediction)
    if num_done:
        _print_table(first, num_done=num_done, output=arguments.output)
    return 0 if num_done == len(paths) and not missing else USER_ERROR


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
    """Refuse numbers out of range before anything is loaded."""
    if arguments.output.is_file():
        raise CommandError(f"`--output {arguments.output}` is a file: name a folder for the results.")
    if arguments.batch_size < 1:
        raise CommandError(f"`--batch-size` must be at least 1, got {arguments.batch_size}.")
    if arguments.threshold is None:
        return
    if not 0 <= arguments.threshold <= 1:
        raise CommandError(f"`--threshold` must be from 0 to 1, got {arguments.threshold}.")
    if arguments.task == "semantic":
        raise CommandError("`--threshold` has no meaning for the semantic task: every pixel gets its best class.")


def _read_batches(paths: Sequence[Path], batch_size: int) -> Iterator[dict[int, Image.Image]]:
    """Up to `batch_size` pictures at a time, by their place in `paths`; those that cannot be read are reported."""
    for start in range(0, len(paths), batch_size):
        pictures = {}
        for index, path in enumerate(paths[start : start + batch_size], start=start):
            picture = _read_or_report(path)
            if picture is not None:
                pictures[index] = picture
        if pictures:
            yield pictures


def _read_or_report(path: Path) -> Image.Image | None:
    from .prediction import read_image

    try:
        return read_image(path)
    except ValueError as error:
        report(explain(error))
        return None


def _with_progress(batches: Iterable[dict[int, Image.Image]], *, total: int) -> Iterator[dict[int, Image.Image]]:
    """The batches again, with a bar on the terminal if there are several images."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=total == 1 or not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)
        for batch in batches:
            yield batch
            progress.update(task, completed=max(batch) + 1)


def _print_table(predictions: Sequence[Prediction], *, num_done: int, output: Path) -> None:
    """Show the segments of the first images, and say where the results are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "label")
    table.add_column("score", justify="right")
    table.add_column("share of area", justify="right")
    for prediction in predictions:
        name = escape(prediction.name)
        num_pixels = prediction.segmentation.size
        for entry in sorted(prediction.segments_info, key=lambda entry: -entry["area"]):
            score = "" if entry["score"] is None else f"{entry['score']:.2f}"
            table.add_row(name, escape(entry["label"]), score, f"{entry['area'] / num_pixels:.1%}")
            name = ""
        if not prediction.segments_info:
            table.add_row(name, "nothing above the threshold", "", "")
        table.add_section()
    console = Console()
    console.print(table)
    if num_done > len(predictions):
        console.print(f"... and {num_done - len(predictions)} more images")
    console.print(f"Images done: {num_done}. Results are in {output}", markup=False, soft_wrap=True)
