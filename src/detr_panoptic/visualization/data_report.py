"""Images for the report of `check_data`: findings, and samples from the whole dataset."""

from pathlib import Path

from PIL import Image

from ..data.checking import DataCheck
from ..data.files import written_whole
from ..data.plain_text import one_line
from .overlays import draw_segments
from .sheets import stack

DRAWN_CASES = 3  # of each kind of finding
DRAWN_SAMPLES = 12  # images from the whole dataset
COLUMNS = 3
CELL_SIDE = 480  # pixels, longer side


def save_data_sheets(check: DataCheck, folder: str | Path) -> list[Path]:
    """Draws the first images of each kind of finding of `check_data`, and samples, each kind as one PNG file.

    Returns:
        The files in `folder`; kinds of which no image can be read have none.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.data import check_data
        >>> from detr_panoptic.scenes import read_source
        >>> check = check_data(read_source("scenes", limit=2), progress=False)
        >>> [path.name for path in save_data_sheets(check, tempfile.mkdtemp())]
        ['samples.png']
    """
    index_of = {name: index for index, name in enumerate(check.names)}
    step = max(len(check.names) // DRAWN_SAMPLES, 1)
    sheets = {"samples": [(index, "") for index in range(0, len(check.names), step)][:DRAWN_SAMPLES]}
    for kind, cases in check.by_kind.items():
        found = [(index_of[case.where], f": {case.message}") for case in cases if case.where in index_of]
        sheets[kind] = found[:DRAWN_CASES]
    paths = []
    for name, cells in sheets.items():
        drawn = {check.names[index] + text: _overlay(check, index) for index, text in cells}
        pictures = {one_line(caption): picture for caption, picture in drawn.items() if picture is not None}
        if pictures:
            with written_whole(Path(folder, f"{name}.png")) as part:
                stack([*pictures.values()], columns=COLUMNS, captions=[*pictures]).save(part)
            paths.append(Path(folder, f"{name}.png"))
    return paths


def _overlay(check: DataCheck, index: int) -> Image.Image | None:
    """Draws the segments over an image; returns the image alone without a map of its size, None without an image."""
    row = check.row(index)
    picture = row.picture()
    if picture is None:
        return None
    annotation, id2label = row.annotation, check.categories.id2label
    if annotation.ids is not None and annotation.ids.shape == (picture.height, picture.width):
        picture = draw_segments(picture, annotation.ids, [dict(entry) for entry in annotation.known], id2label)
    picture.thumbnail((CELL_SIDE, CELL_SIDE))
    return picture
