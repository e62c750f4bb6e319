"""Videos: frames in, segments whose ids last from frame to frame, a drawn video out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.files import written_whole
from ..data.plain_text import counted

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video import VideoStream
    from PIL import Image

    from .prediction import Prediction, Segment

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
CAMERA = "/dev/video"
# FFmpeg also takes lists of other files and addresses, such as `ffconcat`, for videos.
FILES_ONLY = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,mpeg,mpegts,mpegvideo",
}
INSTALL = "videos need `pip install detr-panoptic[video]`"
USUAL_RATE = Fraction(30)  # frames per second of a stream that does not say
TICK = Fraction(1, 90_000)  # seconds; frames of a phone do not come at a constant rate
MAX_UNCONFIRMED = 1000  # things of one label that the tracker may still confirm
UNCONFIRMED = -1  # the tracker's id of a thing in its first frame


class Frame(NamedTuple):
    """An upright RGB image, its number in the video from 0, and its time from the start."""

    image: Image.Image
    number: int
    seconds: float


@dataclass
class VideoPrediction:
    """What `Predictor.predict_video` wrote; prints as one line.

    Args:
        video: the drawn video.
        frames: folder of a PNG and a JSON file for each frame.
        num_frames: number of predicted frames.
        num_things: number of different things, by label.
        failures: why the video could not be read to its end, if so.

    Examples:
        >>> from pathlib import Path
        >>> print(VideoPrediction(Path("out/clip.mp4"), Path("out/clip"), 300, {"person": 4}, []))
        300 frames with 4 person; results in out
    """

    video: Path
    frames: Path
    num_frames: int
    num_things: dict[str, int]
    failures: list[str]

    def __str__(self) -> str:
        """Returns how many frames and things there are, and where."""
        things = ", ".join(f"{count} {label}" for label, count in self.num_things.items()) or "no things"
        ending = "".join(f"; {message}" for message in self.failures)
        return f"{counted(self.num_frames, 'frame')} with {things}; results in {self.video.parent}{ending}"


def is_video(source: Any) -> bool:
    """Returns whether a source is a video file, the address of a stream, or a camera, by its name."""
    name = str(source)
    return name.lower().endswith(VIDEO_SUFFIXES) or name.startswith(CAMERA) or "://" in name


class Video:
    """A video that is read frame by frame, and must be closed.

    If it ends before its last frame, `failures` then says why.

    Args:
        source: a file, the address of a stream (`rtsp://…`, `http://…`) or a camera (`/dev/video0`).
        every: takes only every so many frames, at least 1.
        limit: number of frames to take, from the first.
        max_pixels: of a frame.

    Raises:
        ValueError: the source is not a video, or its frames are too large; names it.
    """

    def __init__(
        self, source: str | Path, *, every: int = 1, limit: int | None = None, max_pixels: int | None = None
    ) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self.name, self.every, self._limit = str(source), every, limit
        self.failures: list[str] = []
        is_camera = self.name.startswith(CAMERA)
        options = {} if is_camera or "://" in self.name else FILES_ONLY
        try:
            self._container = av.open(self.name, format="v4l2" if is_camera else None, container_options=options)
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            reason = "it has no pictures" if isinstance(error, IndexError) else error.strerror
            raise ValueError(f"Cannot read the video {self.name!r}: {reason}.") from error
        if max_pixels is not None:
            if self._stream.width * self._stream.height > max_pixels:
                self.close()
                raise ValueError(f"{self.name} has more than {max_pixels:,} pixels.")
            self._stream.codec_context.options = {"max_pixels": str(max_pixels)}  # of frames that are larger later

    @property
    def rate(self) -> Fraction:
        """Frames per second that are taken."""
        return (self._stream.average_rate or USUAL_RATE) / self.every

    def __len__(self) -> int:
        """Returns the number of frames that the file says it has; 0 if it says none."""
        return -(-self._stream.frames // self.every)

    def close(self) -> None:
        """Closes the file or stream."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames; a video that is broken in the middle ends there, and `failures` says so."""
        import av

        number, last = 0, 0.0
        try:
            for number, frame in enumerate(self._container.decode(self._stream), start=1):
                last = frame.time or last
                if self._limit is not None and number > self._limit * self.every:
                    return self._fail(f"only its first {number - 1} frames are read")
                if (number - 1) % self.every == 0:
                    image = frame.to_image()
                    image = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                    seconds = frame.time if frame.time is not None else (number - 1) / float(self.rate * self.every)
                    yield Frame(image, number - 1, seconds)
        except av.FFmpegError as error:
            self._fail(f"it ends after {number} frames: {error.strerror}")
        else:
            # A trimmed video has fewer frames than it says (0 if it does not say), but lasts as long as it says.
            length = (self._stream.duration or 0) * (self._stream.time_base or 0)
            if number < self._stream.frames and last + 2 / (self.rate * self.every) < length:
                self._fail(f"it ends after {number} of {self._stream.frames} frames")

    def _fail(self, reason: str) -> None:
        self.failures.append(f"{self.name}: {reason}")
        logger.warning("%s: %s.", self.name, reason)


class Tracking:
    """Gives things ids that last from frame to frame, and stuff one id for each label.

    Args:
        rate: frames per second; a thing that was hidden for up to a second keeps its id.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._numbers = count(1)
        self._of_label: dict[int, _LabelTracking] = {}
        self._stuff: dict[int, int] = {}  # label to id
        self._names: dict[int, str] = {}

    @property
    def num_things(self) -> dict[str, int]:
        """Number of things that were seen in more than one frame, by label."""
        counts = {self._names[label_id]: len(tracking.ids) for label_id, tracking in self._of_label.items()}
        return {name: number for name, number in counts.items() if number}

    def follow(self, prediction: Prediction) -> Prediction:
        """Returns the prediction of the next frame with lasting ids, in its map and its segments."""
        things: dict[int, list[Segment]] = {label_id: [] for label_id in self._of_label}  # unseen labels count, too
        new_ids = np.zeros(len(prediction.segments) + 1, dtype=np.int32)
        instances: dict[int, int] = {}
        for segment in prediction.segments:
            if segment.is_thing and segment.score is not None:
                things.setdefault(segment.label_id, []).append(segment)
                self._names[segment.label_id] = segment.label
            else:
                new_ids[segment.id] = self._stuff.setdefault(segment.label_id, 0) or next(self._numbers)
                self._stuff[segment.label_id] = int(new_ids[segment.id])
        for label_id, segments in things.items():
            if label_id not in self._of_label:
                self._of_label[label_id] = _LabelTracking(self._rate, self._numbers)
            for segment, new_id, instance in self._of_label[label_id].follow(segments):
                new_ids[segment.id], instances[segment.id] = new_id, instance
        lasting = [replace(s, id=int(new_ids[s.id]), instance=instances.get(s.id)) for s in prediction.segments]
        return replace(prediction, segmentation=new_ids[prediction.segmentation], segments=lasting)


class _LabelTracking:
    """Follows the things of one label by their boxes (ByteTrack, arXiv 2110.06864)."""

    def __init__(self, rate: float, numbers: Iterator[int]) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError(INSTALL) from error

        # Every segment counts: the predictor's threshold has dropped what is uncertain.
        self._tracker = ByteTrackTracker(
            frame_rate=rate, minimum_consecutive_frames=1, track_activation_threshold=0.0, high_conf_det_threshold=0.0
        )
        self._numbers, self._instances = numbers, count()
        self.ids: dict[int, tuple[int, int]] = {}  # the tracker's id to ours, and the number among those of the label
        self._unconfirmed: list[tuple[NDArray[np.float32], tuple[int, int]]] = []  # first boxes, the newest last

    def follow(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, int, int]]:
        """Yields each segment of a frame with its lasting id and its number among those of its label."""
        import supervision as sv

        x, y, width, height = np.array([s.bbox for s in segments], dtype=np.float32).reshape(-1, 4).T
        detections = sv.Detections(
            xyxy=np.stack((x, y, x + width, y + height), axis=-1),
            confidence=np.array([s.score for s in segments], dtype=np.float32),
            data={"index": np.arange(len(segments))},
        )
        tracked = self._tracker.update(detections)
        del self._unconfirmed[:-MAX_UNCONFIRMED]
        found = zip(tracked.data.get("index", ()), tracked.xyxy, tracked.tracker_id, strict=True)  # type: ignore[arg-type]
        for index, box, tracker_id in found:
            if tracker_id == UNCONFIRMED:
                own = (next(self._numbers), next(self._instances))
                self._unconfirmed.append((box, own))
            else:  # one that is confirmed now keeps the id of its first frame
                own = self.ids[tracker_id] = self.ids.get(tracker_id) or self._confirm(box)
            yield segments[index], *own

    def _confirm(self, box: NDArray[np.float32]) -> tuple[int, int]:
        """Returns the id and the number that a thing got in its first frame, from where it is now."""
        import supervision as sv

        overlaps = sv.box_iou_batch(box[None], np.array([first for first, _ in self._unconfirmed]))
        return self._unconfirmed.pop(int(overlaps.argmax()))[1]


def follow_video(
    video: Video, predict: Callable[[Image.Image], Prediction], tracking: Tracking | None = None
) -> Iterator[tuple[Frame, Prediction]]:
    """Yields each frame with its prediction, whose ids last."""
    tracking = tracking or Tracking(float(video.rate))
    for frame in video:
        yield frame, replace(tracking.follow(predict(frame.image)), name=f"{Path(video.name).stem} {frame.number}")


def write_video(
    video: Video, predict: Callable[[Image.Image], Prediction], output: Path, *, progress: bool = True
) -> VideoPrediction:
    """Writes drawn frames as an MP4 file, and the segments of each as PNG and JSON.

    An interrupted run (Ctrl-C) keeps the frames that it has.

    Raises:
        ValueError: the folder has results of this video already.
    """
    import av

    stem = Path(video.name).stem or "video"
    file, folder = output / f"{stem}.mp4", output / stem
    for path in (file, folder):
        if path.exists():
            raise ValueError(f"`output` must not have results of this video, but {str(path)!r} exists.")
    folder.mkdir(parents=True)
    tracking, number, stream = Tracking(float(video.rate)), 0, None
    frames = tqdm(follow_video(video, predict, tracking), total=len(video) or None, unit="frame", disable=not progress)
    with written_whole(file) as part, av.open(str(part), "w", format="mp4") as container:
        try:
            for frame, prediction in frames:
                picture = prediction.draw()
                if stream is None:
                    stream, start = _picture_stream(container, picture.size, video.rate), frame.seconds
                shown = av.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
                shown.pts, shown.time_base = round((frame.seconds - start) / TICK), TICK
                container.mux(stream.encode(shown))
                source = {"frame": frame.number, "seconds": round(frame.seconds, 3)}
                prediction.save(folder, f"{frame.number:06d}", overlay=False, source=source)
                number += 1
        except KeyboardInterrupt:  # how a camera is stopped
            logger.warning("Interrupted after %d frames, which are kept.", number)
        if stream is None:
            folder.rmdir()
            reason = "; ".join(video.failures) or "it has no frames"
            raise ValueError(f"Cannot read the video {video.name!r}: {reason}.")
        container.mux(stream.encode())
    return VideoPrediction(file, folder, number, tracking.num_things, video.failures)


def _picture_stream(container: OutputContainer, size: tuple[int, int], rate: Fraction) -> VideoStream:
    """Adds the drawn pictures to a file, in the format that every browser plays, whose sides are even."""
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height = (max(2, length - length % 2) for length in size)
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", TICK
    return stream
