"""Files of visitors: checked before they are decoded, segmented, and packed into one ZIP file."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..image_reading import FORMATS
from ..inference import Prediction, is_video
from ..inference.pictures import unique_stems
from ..inference.prediction import JSON, MAP, OVERLAY
from ..inference.video import Video, write_video

MAX_FILES, MAX_FRAMES = 20, 300  # of a request; the frames are those of all its videos together
MAX_EVERY = 33  # of the frames of a video one is taken: whatever its header says, 9900 are read
RESULTS = (OVERLAY, MAP, JSON, ".mp4", "")  # endings of what a file becomes; that of the frames' folder is empty

Result = tuple[Path, str]  # a picture or video to show, and its caption


@contextmanager
def shown_errors(path: Path) -> Iterator[None]:
    """Shows errors about a file to the visitor, without its folder."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None)  # of FFmpeg or the system, whose texts name paths
        if not isinstance(error, (ValueError, TypeError, ImportError, OSError)) and reason is None:
            raise
        text = f"{path.name}: {reason}." if reason else str(error).replace(f"{path.parent}/", "")
        raise gr.Error(text, print_exception=False) from error


def check_image(path: Path, max_pixels: int) -> tuple[int, int]:
    """Returns width and height; ValueError if a file is not an image or is too large."""
    size = (max_pixels + 1, 1)  # of a file that Pillow itself refuses
    try:
        with suppress(Image.DecompressionBombError), Image.open(path, formats=FORMATS) as picture:
            size = picture.size
    except Exception as error:  # broken files raise anything from SyntaxError to struct.error
        raise ValueError(f"{path.name} is not an image of a format that can be read.") from error
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"{path.name} has more than {max_pixels:,} pixels.")
    return size


def segment_uploads(
    predict: Callable[..., Prediction], uploads: Sequence[Any], folder: Path, *, max_pixels: int, progress: gr.Progress
) -> tuple[list[Result], str]:
    """Returns what to show of each image and video, and a ZIP file of what `detr-panoptic predict` writes.

    A file that cannot be read is left out with a warning, and is an error if there is no other.
    """
    if len(uploads) > MAX_FILES:
        raise gr.Error(f"At most {MAX_FILES} files at once, got {len(uploads)}.", print_exception=False)
    paths = [Path(upload["path"]) for upload in uploads]
    limit = MAX_FRAMES // max(1, sum(map(is_video, paths)))
    results, errors = [], []
    # Gradio deletes the files that it shows: all others exist only inside the ZIP file.
    with tempfile.TemporaryDirectory() as work:
        stems = unique_stems(paths, RESULTS, output=Path(work))
        for path, stem in zip(progress.tqdm(paths, unit="files"), stems, strict=True):
            target = Path(work, f"{stem}{path.suffix}")
            try:
                with shown_errors(path):
                    if is_video(path):
                        with closing(Video(path, limit=limit, max_pixels=max_pixels)) as video:
                            results.append(_segment_video(predict, video, target, limit, progress))
                    else:
                        check_image(path, max_pixels)
                        prediction = predict(path)
                        prediction.save(work, stem)
                        results.append((Path(work, f"{stem}{OVERLAY}"), str(prediction).partition("\n")[0]))
            except gr.Error as error:
                errors.append(error)
                shutil.rmtree(Path(work, stem), ignore_errors=True)
                for ending in RESULTS[:-1]:
                    Path(work, f"{stem}{ending}").unlink(missing_ok=True)
        if not results:
            raise errors[-1]
        for left_out in errors:
            gr.Warning(left_out.message)
        archive = shutil.make_archive(str(folder / "segments"), "zip", work)
        return [(Path(shutil.move(file, folder)), caption) for file, caption in results], archive


def _segment_video(
    predict: Callable[..., Prediction], video: Video, target: Path, limit: int, progress: gr.Progress
) -> Result:
    """Predicts at most so many frames, spread over the video if it says how many it has."""
    video.every, video.name, numbers = min(MAX_EVERY, max(1, -(-len(video) // limit))), target.name, count()

    def predict_frame(image: Image.Image) -> Prediction:
        progress((next(numbers), min(len(video) or limit, limit)), desc=target.name, unit="frames")
        return predict(image)

    result = write_video(video, predict_frame, target.parent, progress=False)
    for failure in result.failures:
        gr.Warning(failure)
    return result.video, f"{target.name}: {str(result).partition(';')[0]}"
