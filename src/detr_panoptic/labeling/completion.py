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

    Args:
        source: annotated images, as `read_panoptic` takes them, or "scenes".
        output: a folder that is empty, does not exist, or holds an earlier run with the same settings and data.
        model: as the teacher of `label`.
        threshold: least score of a segment, in [0, 1]. None: the image processor's.
        with_things: add things, too, of classes that the data lacks.
        report: a folder for `labels.md`, `labels.json` and sheets of images before and after, the least sure first.
        split: of the source.
        data_format: of the source. None recognizes it.
        limit: number of images, from the first.
        batch_size: images of similar shape that share a forward; their padding changes results slightly.
        num_workers: processes that load images. None: none on CPU, up to 8 on a GPU.
        device: for a model that is loaded here. "auto" takes a GPU if there is one.
        dtype: of the computation, such as "bfloat16". None: float32.
        on_error: for an image that cannot be read, "stop" raises its error and "skip" leaves it out and logs it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the output holds something else, an image cannot be read, or the model has no class that may be
            added.

    Example:
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
    labels = run.fill(Pictures(data.records), output)
    if report is not None:
        labels.save(report)
    return labels
