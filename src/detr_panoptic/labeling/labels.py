"""`label`: images labeled by a teacher; and the loop that `complete_stuff` shares with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.records import segmentation_ids
from ..inference.options import OnError, check_options
from ..inference.pictures import Pictures, open_pictures
from ..inference.predictor import report_failures
from ..segment_ids import VOID_ID
from .classes import LabelMatch, match_classes
from .filling import fill_void
from .folder import LabelFolder, check_output
from .results import Labels
from .teachers import Teacher, Threshold, open_teacher

logger = logging.getLogger(__name__)


def label(  # noqa: PLR0913  every option of a long run, each with a default
    photos: Any,
    output: str | Path,
    *,
    teacher: Any,
    classes: Any = None,
    stuff: Sequence[str] | None = None,
    threshold: float = 0.8,
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
    """Labels images with the segments that a pretrained model is sure of, and writes them as a dataset.

    The output is a folder in COCO's panoptic layout, with a `score` for each segment. A pixel stays void, which
    training ignores, unless a mask of a query above the threshold has a probability of at least one half there.
    Images that are labeled already are left as they are, so a run that was interrupted continues where it stopped.

    Args:
        photos: the sources of `Predictor.predict`: an image, a folder, a list of paths, or a dataset, whose
            annotations are not used.
        output: a folder that is empty, does not exist, or holds an earlier run with the same settings and images.
        teacher: a panoptic model of transformers (Mask2Former, MaskFormer, OneFormer, EoMT, DETR) or of this package:
            a folder, a name on the Hub, a `Predictor`, or a model and its processor. Its license may cover its labels.
        classes: the wanted classes, each with the teacher's name or names for it, such as `{"car": ["car", "truck"]}`;
            or a YAML file of these. Pixels of other classes stay void. None: the teacher's own classes.
        stuff: the wanted classes that are stuff; the others are things. None: as the teacher says, or as in
            COCO or Cityscapes if the names are theirs.
        threshold: least score of a segment, in [0, 1].
        report: a folder for `labels.md`, `labels.json` and sheets of images, the least certain labels first.
        split: of the source.
        data_format: of the source. None recognizes it.
        limit: number of images, from the first.
        batch_size: images that share a forward; padding between them changes results slightly.
        num_workers: processes that load images. None: none on CPU, up to 8 on a GPU.
        device: for a teacher that is loaded here. "auto" takes a GPU if there is one.
        dtype: of the computation, such as "bfloat16". None: float32.
        on_error: for an image that cannot be read, "stop" raises its error and "skip" leaves it out and logs it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the teacher does no panoptic segmentation, a name of a class is unknown, the output holds something
            else or labels of other images, or an image cannot be read.
        OSError: the disk is full. The images that are done stay, and the same call continues.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic import label
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> labels = label("scenes", tempfile.mkdtemp(), teacher=BUNDLED, limit=2, progress=False)
        >>> labels.images, labels.void_after < 0.5
        (2, True)
    """
    check_options("panoptic", threshold, batch_size=batch_size, num_workers=num_workers, on_error=on_error)
    check_output(output, report)
    pictures = open_pictures(photos, split=split, data_format=data_format, limit=limit)
    report_failures(pictures.missing, on_error)
    opened = open_teacher(teacher, device=device, dtype=dtype)
    match = match_classes(opened, classes, stuff)
    run = LabelingRun(opened, match, threshold, batch_size, num_workers, on_error, progress, annotated=False)
    run.failures += pictures.missing
    return run.fill(pictures, output, report)


@dataclass
class LabelingRun:
    """Fills the void of images with a teacher's segments; `annotated` images keep what they have."""

    teacher: Teacher
    match: LabelMatch
    threshold: Threshold
    batch_size: int
    num_workers: int | None
    on_error: OnError
    progress: bool
    annotated: bool
    failures: list[str] = field(default_factory=list)

    def fill(self, pictures: Pictures, output: str | Path, report: str | Path | None) -> Labels:
        """Writes the labels of all images that are not done, and a report; ValueError if no image can be read."""
        folder = LabelFolder(output, pictures, self.match.categories)
        earlier = folder.open(
            {
                "teacher": self.teacher.fingerprint,
                "threshold": self.threshold,
                "classes": self.match.categories.to_coco(),
                "labels": sorted(self.match.labels.items()),
                "batch_size": self.batch_size,
                "annotated": self.annotated,
            }
        )
        logger.info("teacher %s, license: %s", self.teacher.name, self.teacher.license or "unknown")
        names = ("batch_size", "num_workers", "on_error", "failures")
        options = {name: getattr(self, name) for name in names}
        results = self.teacher.iterate(pictures, self.threshold, is_done=folder.is_done, **options)
        with tqdm(total=len(pictures) - earlier, unit="image", disable=None if self.progress else True) as bar:
            for record, result, sure in results:
                if not folder.is_done(record["index"]):  # another image of its batch was not
                    self._write(folder, record, result, sure.cpu().numpy())
                    bar.update()
        info = {"description": f"labels by {self.teacher.name}", "teacher_license": self.teacher.license}
        labeled = folder.finish(info)
        if not labeled:
            raise ValueError("`source` has no image that can be read.")
        teacher = self.teacher
        labels = Labels(folder, self.match, teacher.name, teacher.license, labeled, earlier, self.failures)
        if report is not None:
            labels.save(report)
        return labels

    def _write(self, folder: LabelFolder, record: Any, result: Any, sure: np.ndarray) -> None:
        seen = np.where(sure, result["segmentation"].cpu().numpy(), VOID_ID)
        ids, segments = np.zeros(seen.shape, dtype=np.int64), []
        if self.annotated:
            ids, segments = segmentation_ids(record["segmentation"]), record["segments_info"]
        filled = fill_void(ids, segments, seen, result["segments_info"], self.match)
        folder.write({**record, "image": None}, filled, ids)
