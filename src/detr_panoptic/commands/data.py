"""`detr-panoptic data check`, `data convert`, `data label` and `data complete-stuff`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from .options import READING, RUNNING, Model, NewFolder, OnError, Reading, Report, Running, Source, Stuff, Threshold


def check(
    source: Source,
    /,
    *,
    queries: Annotated[int, Parameter(help="Queries of the model that is to be trained.")] = 100,
    report: Report = None,
    workers: Annotated[int | None, Parameter(help="Threads that open files; by default one per core.")] = None,
    reading: Reading = READING,
) -> int:
    """Checks a dataset: ids, categories, areas, boxes, sizes, broken files.

    Lists all problems; training would stop at the first one. An error makes
    training wrong or stops it, a warning costs quality, a note is worth knowing.
    The exit code is 1 if there is an error, and 2 if there is nothing to check.

    For example:

        detr-panoptic data check my_data
        detr-panoptic data check coco --split val2017 --report coco_check
        detr-panoptic data check my_data --queries 200 --limit 500
    """
    from .. import check_data
    from ..data.files import check_folder
    from ..scenes import SCENES, read_source
    from ..visualization.data_report import save_data_sheets

    if report is not None:
        check_folder(report, "report")
    data = read_source(source, limit=reading.limit) if source == SCENES else source
    result = check_data(data, num_queries=queries, workers=workers, **asdict(reading))
    print(result)
    if report is not None:
        print(f"The report is {result.save(report)}")
        save_data_sheets(result, report)
    return 1 if result.has_errors else 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of the output, and what the input does not say."""

    to: Annotated[Literal["coco", "dataset", "parquet", "coco-instances"], Parameter(help="Format of the output.")] = (
        "coco"
    )
    masks: Annotated[Literal["polygons", "rle"], Parameter(help="Masks of coco-instances.")] = "polygons"
    stuff: Stuff = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Scenes:
    """How `scenes` are generated."""

    seed: Annotated[int, Parameter(help="Of `scenes`: another number gives other scenes.")] = 0
    workers: Annotated[int, Parameter(help="Processes that paint `scenes`; 0: this one.", validator=Number(gte=0))] = 0


FORM, SCENES_OPTIONS = Form(), Scenes()


def convert(
    source: Source,
    output: NewFolder,
    /,
    *,
    form: Form = FORM,
    scenes: Scenes = SCENES_OPTIONS,
    on_error: OnError = "stop",
    reading: Reading = READING,
) -> int:
    """Writes a dataset in another format; image files are copied byte by byte.

    The output folder gets

        --to coco     images/, panoptic/ and panoptic.json
        --to dataset  a folder for load_from_disk of `datasets`
        --to parquet  data/SPLIT-….parquet, the layout of the Hub
        --to coco-instances  images/ and instances.json, for annotation tools

    For example:

        detr-panoptic data convert my_export my_data --stuff sky road
        detr-panoptic data convert cityscapes out --split train --to parquet
        detr-panoptic data convert scenes my_scenes --limit 30000 --workers 16
    """
    from .. import convert_data
    from ..scenes import SCENES, read_source

    data: Any = source
    if source == SCENES:
        data = read_source(source, limit=reading.limit, scene_seed=scenes.seed, scene_workers=scenes.workers)
    result = convert_data(data, output, **asdict(form), on_error=on_error, **asdict(reading))
    print(result)
    return 2 if result.failures else 0


def split(
    source: Annotated[str, Parameter(help="Annotated images: a folder, a file or a Hub dataset.")],
    output: NewFolder,
    /,
    *,
    validation_fraction: Annotated[float, Parameter(help="Share of the images for `val`.")] = 0.15,
    seed: Annotated[int, Parameter(help="Another number gives another choice.")] = 0,
    data_format: Annotated[str | None, Parameter(name="--format", help="Format, if it is not detected.")] = None,
) -> int:
    """Writes a dataset as two splits, `train` and `val`, in COCO's panoptic layout.

    Classes have about the same share in both; one that occurs in fewer than four
    images stays in `train`.

    For example:

        detr-panoptic data split my_data my_splits
        detr-panoptic data split my_data my_splits --validation-fraction 0.3
    """
    from .. import split_data

    print(split_data(source, output, fraction=validation_fraction, seed=seed, data_format=data_format))
    return 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What becomes a label."""

    classes: Annotated[
        str | None, Parameter(help="YAML file of wanted classes: `car: [car, truck]`; by default the teacher's.")
    ] = None
    stuff: Stuff = None
    threshold: Annotated[float, Parameter(help="Least score of a segment, 0 to 1.")] = 0.8


WANTED = Wanted()


def label(
    photos: Annotated[str, Parameter(help="Images: a folder, a file or a dataset.")],
    output: Annotated[Path, Parameter(help="A new folder, or that of an earlier run, which continues.")],
    /,
    *,
    teacher: Annotated[str, Parameter(help="Folder or Hub id of a panoptic model, of transformers or ours.")],
    wanted: Wanted = WANTED,
    report: Report = None,
    on_error: OnError = "stop",
    reading: Reading = READING,
    running: Running = RUNNING,
) -> int:
    """Labels images with the segments that a pretrained model is sure of.

    The teacher is a Mask2Former, OneFormer, EoMT, MaskFormer or DETR model, or one
    that was trained here. Pixels that no sure segment covers stay void, which
    training ignores. The report shows the images with the least sure labels first.

    The output is a folder in COCO's panoptic layout. A run that was interrupted
    continues when it is started again.

    For example:

        detr-panoptic data label photos out --teacher OWNER/NAME --report labels
        detr-panoptic data label photos out --teacher my_model --threshold 0.9
        detr-panoptic data label photos out --teacher my_model --classes map.yaml
    """
    from .. import label as label_images

    result = label_images(
        photos,
        output,
        teacher=teacher,
        **asdict(wanted),
        report=report,
        on_error=on_error,
        **asdict(reading),
        **running.loading(),
        **running.steps(),
    )
    print(result)
    print(f"The dataset is in {output}. Look at it before you train on it.")
    return 2 if result.failures else 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Additions:
    """What a model adds to a dataset."""

    things: Annotated[bool, Parameter(help="Also add things of classes that the data does not have.")] = False
    threshold: Threshold = None


ADDITIONS = Additions()


def complete_stuff(
    source: Source,
    output: Annotated[Path, Parameter(help="A new folder, or that of an earlier run, which continues.")],
    /,
    *,
    model: Model,
    additions: Additions = ADDITIONS,
    report: Report = None,
    on_error: OnError = "stop",
    reading: Reading = READING,
    running: Running = RUNNING,
) -> int:
    """Adds the stuff that a model predicts to a dataset with annotated things only.

    Annotated pixels stay as they are. Classes are matched by name, and stuff that
    the data does not have becomes a new class. A pixel stays void if no segment
    with a score above the threshold covers it, or if the model sees a thing there
    that is not to be added.

    The output is a folder in COCO's panoptic layout.

    For example:

        detr-panoptic data complete-stuff my_things my_data --model OWNER/NAME
        detr-panoptic data complete-stuff my_things out --model my_model --things
    """
    from .. import complete_stuff as complete

    result = complete(
        source,
        output,
        model=model,
        with_things=additions.things,
        threshold=additions.threshold,
        report=report,
        on_error=on_error,
        **asdict(reading),
        **running.loading(),
        **running.steps(),
    )
    print(result)
    print(f"The dataset is in {output}. Look at it before you train on it.")
    return 2 if result.failures else 0
