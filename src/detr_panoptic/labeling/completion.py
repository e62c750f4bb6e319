"""`complete_stuff`: things annotated by hand, the rest added by a model."""

from pathlib import Path
from typing import Any

from ..inference.options import OnError, check_options
from ..inference.pictures import Pictures
from ..scenes.source import read_source
from .classes import match_stuff
from .folder import check_output
from .labels import LabelingRun
from .results import Labels
from .teachers import open_teacher


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
    device: str = "auto",
    dtype: str | None = None,
    on_error: OnError = "stop",
    progress: bool = True,
) -> Labels:
    """Fills the void of annotations with the stuff that a model predicts there, and writes the result.

    The output is a folder in COCO panoptic layout: `images/`, `panoptic/` and `panoptic.json`. Annotated pixels stay
    as they are, and image files are copied byte by byte. Stuff that is annotated in a part of an image grows. Classes
    are matched by name, ignoring case; stuff that the data lacks becomes a new class.

    A pixel stays void if no segment with a score above the threshold owns it, if no mask of such a query has a
    probability of at least one half there, or if the model predicts a thing there that is not to be added.

    `model` is as the teacher of `label`, and the other arguments are those of `label`; by default, `threshold` is the
    image processor's. `with_things` adds things, too, of classes that the data lacks.

    Raises:
        ValueError: the output holds something else, an image cannot be read, or the model has no class that may be
            added.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic import complete_stuff
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> folder = tempfile.mkdtemp()
        >>> completion = complete_stuff("scenes", folder, model=BUNDLED, limit=2, progress=False)
        >>> completion.images, completion.void_before
        (2, 0.0)
    """
    check_options("panoptic", threshold, batch_size=batch_size, num_workers=num_workers, on_error=on_error)
    check_output(output, report)
    lenient = on_error == "skip"
    data = read_source(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=lenient)
    teacher = open_teacher(model, device=device, dtype=dtype)
    match = match_stuff(data.categories, teacher.categories, with_things=with_things)
    if not match.labels:
        raise ValueError("`model` has no class that may be added to the data.")
    least = teacher.own_threshold if threshold is None else threshold
    run = LabelingRun(teacher, match, least, batch_size, num_workers, on_error, progress, annotated=True)
    return run.fill(Pictures(data.records), output, report)
