"""`detr-panoptic predict`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .options import (
    PUBLISHED_MODEL,
    READING,
    RUNNING_ANYWHERE,
    Model,
    OnError,
    Output,
    Reading,
    RunningAnywhere,
    Threshold,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Results:
    """What is predicted and how it is written."""

    to: Annotated[Literal["files", "coco", "parquet"], Parameter(help="How the results are written.")] = "files"
    task: Annotated[
        Literal["panoptic", "instance", "semantic"],
        Parameter(help="Things and stuff; things only; or one segment per class."),
    ] = "panoptic"
    threshold: Threshold = None
    tile: Annotated[int | None, Parameter(help="Cut large images into squares of so many pixels.")] = None
    overlap: Annotated[int, Parameter(help="Pixels that neighboring tiles share.")] = 128
    on_error: OnError = "skip"
    every: Annotated[int, Parameter(help="Of a video, predict only every so many frames.")] = 1


RESULTS = Results()
OF_VIDEOS = {"task", "threshold", "every", "device", "dtype", "runtime"}  # others have no effect on videos
FLAGS = {"data_format": "--format", "num_workers": "--workers"}


def predict(
    *images: Annotated[
        str,
        Parameter(help="Images, folders of images, videos, cameras (/dev/video0), addresses of streams (rtsp://…)."),
    ],
    data: Annotated[str | None, Parameter(help="Instead of images: a dataset, annotated or not, or `scenes`.")] = None,
    model: Model = PUBLISHED_MODEL,
    output: Output = Path("predictions"),
    results: Results = RESULTS,
    reading: Reading = READING,
    running: RunningAnywhere = RUNNING_ANYWHERE,
) -> int:
    """Segments images: files, folders, videos, or a dataset (--data).

    The output folder gets

        --to files    for each image NAME.jpg
                      NAME_overlay.png  the image with labeled segments
                      NAME.png          segment ids in COCO's encoding:
                                        R + 256 G + 256² B, 0 is void
                      NAME.json         label, score, area, box of each segment
        --to coco     panoptic.json and the maps in panoptic/, COCO's format
        --to parquet  data/*.parquet, a dataset that `train --data` reads

    and for a video NAME.mp4 with the drawn segments, and in the folder NAME a PNG and
    a JSON file for each frame; a thing keeps its id and its color.

    Existing results of images are kept, so an interrupted run continues when it is
    started again. A video needs a folder without earlier results of it. On several
    processes: accelerate launch -m detr_panoptic.commands predict with the same
    options.

    For example:

        detr-panoptic predict photo.jpg --model my_model
        detr-panoptic predict holiday/ photo.png --model my_model --batch-size 4
        detr-panoptic predict photo.jpg --model my_model --task instance
        detr-panoptic predict clip.mp4 --model my_model --every 2
        detr-panoptic predict city.tif --model my_model --tile 1024
        detr-panoptic predict --data coco --split unlabeled2017 --to parquet
    """
    if bool(images) == (data is not None):
        raise ValueError("Expected either images and folders, or a dataset with `--data`.")

    from PIL import Image

    from ..inference import PredictionFolder, Predictor, VideoPrediction, check_options, is_video, open_pictures
    from ..scenes import SCENES

    options = asdict(results)
    videos = [source for source in images if is_video(source)]
    source = [source for source in images if not is_video(source)] or data
    if source is None:
        given = {**options, **asdict(reading), **asdict(running)}
        default = {**asdict(RESULTS), **asdict(READING), **asdict(RUNNING_ANYWHERE)}
        if changed := [name for name in given if name not in OF_VIDEOS and given[name] != default[name]]:
            flag = FLAGS.get(changed[0], f"--{changed[0].replace('_', '-')}")
            raise ValueError(f"`{flag}` is for images, and {videos[0]} is a video.")
    if not videos and results.every != RESULTS.every:
        raise ValueError(f"`--every` is for videos, got {results.every} without one.")
    check_options(output=output, **options, **running.steps())  # before the model is loaded, as the next
    if results.tile is not None:
        Image.MAX_IMAGE_PIXELS = None  # Pillow refuses images above 179 million pixels
    # Generated scenes wait for the model: to paint them takes longer than to load it.
    pictures = source if source in (None, SCENES) else open_pictures(source, **asdict(reading))
    predictor = Predictor.from_pretrained(model, **running.loading())
    of_videos = {"task": results.task, "threshold": results.threshold, "every": options.pop("every")}
    done: list[PredictionFolder | VideoPrediction] = []
    if pictures is not None:
        done.append(predictor.predict(pictures, output, **options, **asdict(reading), **running.steps()))
    done.extend(predictor.predict_video(video, output, **of_videos) for video in videos)
    print(*done, sep="\n")
    return 2 if any(part.failures for part in done) else 0
