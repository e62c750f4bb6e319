"""Prediction: images, folders and datasets to segments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..box_ops import fetch
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..image_reading import image_to_tensor, read_picture
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..runtimes import Choice, open_if_prepared, open_runtime
from .detections import detect
from .fast_form import fast_form, form_of, remade, state_of
from .folder import Layout, PredictionFolder, fingerprint
from .loading import converted, find_device, load, model_categories
from .loop import Batch, load_batch, make_batch, plan_batches, run_model
from .options import OVERLAP, Detections, OnError, Task, check_options
from .pictures import Pictures, open_pictures, plain_picture
from .prediction import Prediction, describe_segments
from .tiling import Tiling, predict_tiles
from .video import Frame, Video, VideoPrediction, follow_video, write_video

logger = logging.getLogger(__name__)

ImageInput = Image.Image | np.ndarray | str | Path
MAX_WORKERS = 8  # more loading processes are faster than any GPU
PATIENCE = timedelta(days=7)  # a process may wait for another one that has the slow images


class _Options(TypedDict, total=False):
    """Those of `Predictor.__call__`."""

    task: Task
    threshold: float | None
    tile: int | None
    overlap: int


class Predictor:
    """Runs a model over images.

    `evaluate` and the validation of `train` run their models through it, too.

    Args:
        model: the model, on the device that it runs on.
        processor: its image processor.
        network: a faster form of the model, from `fast_form` or `open_runtime`; None: the model itself runs.

    Examples:
        >>> from detr_panoptic import Predictor
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.scenes import make_scene
        >>> predictor = Predictor.from_pretrained(BUNDLED)
        >>> prediction = predictor(make_scene(1)["image"])
        >>> prediction.segmentation.shape
        (256, 256)
    """

    def __init__(
        self, model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, *, network: Any = None
    ) -> None:
        self.model = model
        self._network, self._made_for = network, state_of(model)
        self.processor = processor
        self.categories = model_categories(model.config)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        compile: str | None = None,
    ) -> Predictor:
        """Loads a model and its image processor. The predictor runs a faster form of the model: see `fast_form`.

        Args:
            model: a folder, or the name of a repository on the Hub.
            runtime: "torch", "openvino" or "onnxruntime". The latter two write graphs of the model to the user's cache
                the first time, in about half a minute. "auto" is "openvino" on a CPU if the model has run on it before
                and its results agree, which is logged, and "torch" otherwise.
            device: "auto" takes a GPU if there is one; under `accelerate launch`, each process takes its own. OpenVINO
                and ONNX Runtime take a CPU.
            dtype: of the computation, such as "bfloat16"; None: float32. "int8" needs a folder that `quantize` wrote.
            compile: "cudagraph" captures a CUDA graph for each image size. Use it for many images of few sizes.

        Raises:
            ValueError: there is no such model, runtime or device, the checkpoint is broken, or `compile` needs a GPU.
            ImportError: the runtime is not installed.
        """
        choice = Choice.check(runtime, device=device, dtype=dtype, compile=compile)
        if choice is not None:
            loaded, processor = load(model, device="cpu")
            network = (open_if_prepared if runtime == "auto" else open_runtime)(loaded, model, choice)
            return cls(loaded, processor, network=network or fast_form(converted(loaded, model, dtype)))
        if device == "auto" and (state := processes()).num_processes > 1:
            device = state.device
        loaded, processor = load(model, device=device, dtype=dtype)
        return cls(loaded, processor, network=fast_form(loaded, compile))

    @property
    def network(self) -> Any:
        """The faster form of the model that runs in its place. None if there is none, or the model has changed."""
        if self._network is not None and state_of(self.model) != self._made_for:
            logger.warning("the predictor's model has changed: it runs itself, not the faster form made of it")
            self._network = None
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        """Returns what pickling keeps: a fused copy and CUDA graphs are made anew."""
        return {**vars(self), "_network": form_of(self.network)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a predictor, with the form of its model that it had."""
        vars(self).update(state)
        self._network, self._made_for = remade(self._network, self.model), state_of(self.model)

    @property
    def runtime(self) -> str:
        """The runtime: "torch", "openvino" or "onnxruntime"."""
        return getattr(self.network, "runtime", "torch")

    @property
    def dtype(self) -> str:
        """The precision, such as "float32"."""
        return str(getattr(self.network, "precision", self.model.dtype)).removeprefix("torch.")

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        runtime: str = "torch",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
    ) -> Predictor:
        """Returns the predictor of whatever the package accepts as a model.

        Args:
            model: a `Predictor`, which is returned; a model and its image processor; or what `from_pretrained` takes.
            runtime: of a model that is loaded. The default gives the same numbers with and without OpenVINO.
            device: of a model that is loaded.
            dtype: of a model that is loaded.
        """
        if not isinstance(model, Predictor | tuple):
            return cls.from_pretrained(model, runtime=runtime, device=device, dtype=dtype)
        predictor = model if isinstance(model, Predictor) else cls(*model)
        has = predictor.model.device
        place = has.type if device == "auto" or torch.device(device).index is None else str(has)
        own = {"runtime": predictor.runtime, "device": place, "dtype": predictor.dtype}
        for name, given in (("runtime", runtime), ("device", device), ("dtype", dtype)):
            if given not in ("auto", "torch", None) and own[name] != str(given).removeprefix("torch."):
                raise ValueError(f"`{name}` is for models that are loaded; this one has {own[name]}, got {given}")
        return predictor

    @overload
    def __call__(self, images: ImageInput, **options: Unpack[_Options]) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is a sequence of str, but not of images
    @overload
    def __call__(self, images: Sequence[ImageInput], **options: Unpack[_Options]) -> list[Prediction]: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        task: Task = "panoptic",
        threshold: float | None = None,
        tile: int | None = None,
        overlap: int = OVERLAP,
    ) -> Prediction | list[Prediction]:
        """Segments one image or several. Each goes through the model alone, so none affects another.

        Args:
            images: PIL images of any mode, paths, or arrays (H, W, 3) of uint8 in RGB order.
            task: "panoptic": things and stuff; "instance": things only; "semantic": one segment for each class.
            threshold: least score of a segment, in [0, 1]; None: the image processor's. It has no effect on the
                semantic task.
            tile: side in pixels of square tiles. Larger images are cut into tiles, which go through the model one by
                one, so the model's memory does not grow with the image. None: images are not cut.
            overlap: least number of pixels that neighboring tiles share. Things that agree there are joined.

        Raises:
            ValueError: a file is not an image, or an argument is out of range.
        """
        tiling = check_options(task, threshold, tile=tile, overlap=overlap)
        if isinstance(images, Image.Image | np.ndarray | str | Path):
            return self([images], task=task, threshold=threshold, tile=tile, overlap=overlap)[0]
        records = self._single_records(images)
        if tiling is not None:
            return [self._segment_tiles(record, task, threshold, tiling) for record in records]
        batches = (make_batch(self.processor, [record]) for record in records)
        return [prediction for _, prediction in self._segment(batches, task, threshold)]

    def iterate(  # noqa: PLR0913  every option of a long run, each with a default
        self,
        source: Any,
        *,
        task: Task = "panoptic",
        threshold: float | None = None,
        batch_size: int = 1,
        num_workers: int | None = None,
        detections: Detections = "none",
        on_error: OnError = "stop",
        failures: list[str] | None = None,
        share: bool = False,
    ) -> Iterator[tuple[Mapping[str, Any], Prediction]]:
        """Yields each record of a source with its prediction, as they are computed.

        The arguments are those of `predict`. Messages about skipped images are added to the list `failures`; with
        `share`, each process of `accelerate launch` gets a share of the images.

        Raises:
            ValueError: an argument is out of range, or an image cannot be read.
            FloatingPointError: the model's outputs are not finite.
        """
        options: Any = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
        check_options(task, threshold, detections=detections, **options)
        batches = self._batches(source, share=share, failures=failures, **options)
        yield from self._segment(batches, task, threshold, detections)

    def iterate_outputs(
        self,
        source: Any,
        *,
        batch_size: int = 1,
        num_workers: int | None = None,
        on_error: OnError = "stop",
        failures: list[str] | None = None,
        is_done: Callable[[int], bool] | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """Yields batches of records with the model's raw outputs, before post-processing.

        The arguments are those of `iterate`. Batches are left out if `is_done` is true for the index of each image.
        """
        options: Any = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
        check_options(**options)
        batches = self._batches(source, is_done=is_done, failures=failures, **options)
        yield from run_model(self.model, batches, network=self.network)

    def predict(  # noqa: PLR0913  every option of a long run, each with a default
        self,
        source: Any,
        output: str | Path,
        *,
        task: Task = "panoptic",
        threshold: float | None = None,
        to: Layout = "files",
        split: str | None = None,
        data_format: str | None = None,
        limit: int | None = None,
        batch_size: int = 1,
        num_workers: int | None = None,
        detections: Detections = "none",
        tile: int | None = None,
        overlap: int = OVERLAP,
        overlay: bool | None = None,
        on_error: OnError = "stop",
        progress: bool = True,
    ) -> PredictionFolder:
        """Segments a folder or dataset of any size and writes the results.

        Results that exist already are kept, so a run that was interrupted continues where it stopped. Under
        `accelerate launch` the processes share the images.

        Args:
            source: a path to an image, a folder of images or a dataset in any format of `read_panoptic`, annotated or
                not; a list of paths; "scenes"; or a `Dataset` or `PanopticData`.
            output: folder of the results.
            task: as in `__call__`.
            threshold: as in `__call__`.
            to: "files" writes the segment ids, an overlay and a JSON file for each image; "coco" writes
                `panoptic.json` and the folder `panoptic`, and "parquet" a dataset that `read_panoptic` reads.
            split: of the source.
            data_format: of the source; None recognizes it.
            limit: number of images, from the first.
            batch_size: images of similar shape that share a forward; their padding changes results slightly.
            num_workers: processes that load images; None: none on CPU, up to 8 on a GPU.
            detections: "box" or "mask" adds every query to the JSON files, for average precision.
            tile: as in `__call__`.
            overlap: as in `__call__`.
            overlay: whether to draw overlays; None: with "files" only.
            on_error: for an image that cannot be read, "stop" raises its error and "skip" logs it and continues.
            progress: whether to show a progress bar.

        Raises:
            ValueError: an argument is out of range, the source contains no images, an image cannot be read, or the
                output folder holds results of other settings.
            FloatingPointError: the model's outputs are not finite.
        """
        options: Any = {"task": task, "threshold": threshold, "detections": detections, "batch_size": batch_size}
        others: Any = {"tile": tile, "overlap": overlap, "num_workers": num_workers, "on_error": on_error, "to": to}
        tiling = check_options(output=output, **options, **others)
        pictures = open_pictures(source, split=split, data_format=data_format, limit=limit)
        report_failures(pictures.missing, on_error)
        state = processes()
        draws = to == "files" if overlay is None else overlay
        folder = PredictionFolder(output, pictures, self.categories, layout=to)
        if state.is_main_process:
            model = {"model": fingerprint(self.model, self.processor), "dtype": self.dtype, "runtime": self.runtime}
            folder.open({**options, **model, "tile": tiling})
        state.wait_for_everyone()
        plan = list(plan_batches(pictures, batch_size, folder.is_done))
        state.wait_for_everyone()  # a process that wrote before another has planned would change its plan
        own = plan[state.process_index :: state.num_processes]
        failures = list(pictures.missing) if state.is_main_process else []  # every process found the same
        processor = self.processor if tiling is None else None  # tiles are prepared one by one
        reading: Any = {"num_workers": num_workers, "on_error": on_error, "failures": failures}
        batches = read_batches(pictures, iter(own), processor, self.model.device, **reading)
        bar = tqdm(total=sum(map(len, own)), unit="image", disable=not (progress and state.is_main_process) or None)
        with bar:
            for record, prediction in self._segment(batches, task, threshold, detections, tiling):
                folder.write(record, prediction, overlay=draws)
                bar.update()
        state.wait_for_everyone()
        folder.failures = gather_object(failures) if state.num_processes > 1 else failures
        if state.is_main_process:
            folder.finish()
        state.wait_for_everyone()
        return folder

    def video(
        self, source: str | Path, *, task: Task = "panoptic", threshold: float | None = None, every: int = 1
    ) -> Iterator[tuple[Frame, Prediction]]:
        """Yields each frame of a video with its prediction, in which a thing keeps its id from frame to frame.

        The source is a file, the address of a stream (`rtsp://…`, `http://…`) or a camera (`/dev/video0`).
        With `every` above 1, the frames between are skipped. The other arguments are those of `__call__`.

        Raises:
            ValueError: the source is not a video, or an argument is out of range.
            ImportError: `pip install detr-panoptic[video]` is missing.
        """
        check_options(task, threshold, every=every)
        with closing(Video(source, every=every)) as video:
            yield from follow_video(video, partial(self, task=task, threshold=threshold))

    def predict_video(
        self,
        source: str | Path,
        output: str | Path,
        *,
        task: Task = "panoptic",
        threshold: float | None = None,
        every: int = 1,
        progress: bool = True,
    ) -> VideoPrediction:
        """Writes `NAME.mp4` with drawn segments, without sound, and the segments of each frame to the folder `NAME`.

        The arguments are those of `video`. A stream is written until it ends or Ctrl-C.

        Raises:
            ValueError: as in `video`, or the output folder has results of this video.
            ImportError: as in `video`.
        """
        check_options(task, threshold, every=every, output=output)
        with closing(Video(source, every=every)) as video:
            return write_video(video, partial(self, task=task, threshold=threshold), Path(output), progress=progress)

    def _single_records(self, images: Iterable[ImageInput]) -> Iterator[Mapping[str, Any]]:
        for number, image in enumerate(images, start=1):
            picture, name = image, f"image {number}"
            if isinstance(image, str | Path):
                picture, name = read_picture(image), Path(image).name
            elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
                picture = Image.fromarray(image_to_tensor(image).permute(1, 2, 0).numpy())
            if not isinstance(picture, Image.Image):
                got = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
                raise TypeError(f"`images` must be PIL images, paths or arrays of uint8, got {got}.")
            yield {"image": plain_picture(picture), "image_id": number, "file_name": name}

    def _batches(
        self,
        source: Any,
        batch_size: int,
        *,
        share: bool = False,
        is_done: Callable[[int], bool] | None = None,
        **options: Any,
    ) -> Iterator[Batch]:
        """Yields the batches of a source, or this process's share of them; `options` are those of `read_batches`."""
        pictures = open_pictures(source)
        report_failures(pictures.missing, options["on_error"])
        plan = plan_batches(pictures, batch_size, is_done)
        if share:
            state = processes()
            plan = islice(plan, state.process_index, None, state.num_processes)
        yield from read_batches(pictures, plan, self.processor, self.model.device, **options)

    def _segment(
        self,
        batches: Iterable[Batch],
        task: Task,
        threshold: float | None,
        detections: Detections = "none",
        tiling: Tiling | None = None,
    ) -> Iterator[tuple[Mapping[str, Any], Prediction]]:
        """Yields each record of the batches with its prediction."""
        if tiling is not None:
            for record in chain.from_iterable(batch.records for batch in batches):
                yield record, self._segment_tiles(record, task, threshold, tiling)
            return
        # A semantic map adds up all queries, also those whose best class is "no object".
        mask_queries = "all" if task == "semantic" or detections == "mask" else None
        for batch, outputs in run_model(self.model, batches, mask_queries=mask_queries, network=self.network):
            results = self._merge(outputs, batch.sizes, task, threshold)
            maps = fetch(*(result["segmentation"] for result in results))
            for index, (record, result) in enumerate(zip(batch.records, results, strict=True)):
                prediction = self._describe(record, maps[index].numpy(), result["segments_info"])
                if detections != "none":
                    with_masks = detections == "mask"
                    prediction.detections = detect(outputs, index, batch.sizes[index], with_masks=with_masks)
                yield record, prediction

    def _segment_tiles(
        self, record: Mapping[str, Any], task: Task, threshold: float | None, tiling: Tiling
    ) -> Prediction:
        predict = partial(self, task=task, threshold=threshold)
        return self._describe(record, *predict_tiles(record["image"], tiling, predict))

    def _describe(
        self, record: Mapping[str, Any], segmentation: NDArray[np.int32], info: Sequence[Mapping[str, Any]]
    ) -> Prediction:
        segments = describe_segments(segmentation, info, self.categories)
        name = str(record.get("file_name") or f"{record['image_id']:012d}.png")
        return Prediction(record["image"], segmentation, segments, self.categories.id2label, name)

    def _merge(
        self, outputs: Any, sizes: list[tuple[int, int]], task: Task, threshold: float | None
    ) -> list[Mapping[str, Any]]:
        """Returns the segmentation (H, W) and the segments of each image."""
        if task == "semantic":
            maps: Any = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            return [_segments_of_labels(label_map) for label_map in maps]
        merge = getattr(self.processor, f"post_process_{task}_segmentation")
        return list(merge(outputs, threshold, target_sizes=sizes))


def processes() -> PartialState:
    """Returns this process's place among those of `accelerate launch`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return PartialState()
    # Without `cpu`, processes on CPU would not find each other, and each would do all the work.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or find_device("auto").type == "cpu"
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


def read_batches(
    pictures: Pictures,
    plan: Iterator[list[int]],
    processor: Any,
    device: torch.device,
    *,
    num_workers: int | None,
    on_error: OnError,
    failures: list[str] | None,
) -> Iterator[Batch]:
    """Yields the batches of a plan with the images that can be read; messages about others go to `failures`.

    Without a processor, batches have no inputs. `device` is the model's, and the arguments after it are of `iterate`.
    """
    if num_workers is None:
        on_cpu = device.type == "cpu"
        num_workers = 0 if on_cpu else min((os.cpu_count() or 1) // processes().num_processes, MAX_WORKERS)
    indices, load = range(len(pictures)), partial(load_batch, pictures, processor)
    for batch, messages in DataLoader(indices, batch_sampler=plan, collate_fn=load, num_workers=num_workers):  # type: ignore[arg-type]
        report_failures(messages, on_error)
        if failures is not None:
            failures += messages
        if batch is not None:
            yield batch


def report_failures(messages: Iterable[str], on_error: OnError) -> None:
    """Raises ValueError with the first message, or logs all of them to "skip" the images."""
    for message in messages:
        if on_error == "stop":
            raise ValueError(message)
        logger.warning("skipped: %s", message)


def _segments_of_labels(label_map: torch.Tensor) -> dict[str, Any]:
    """Turns a map of labels (H, W) into one segment for each label, without scores."""
    labels, segmentation, areas = label_map.unique(return_inverse=True, return_counts=True)
    info = [
        {"id": index, "label_id": label, "area": area}
        for index, (label, area) in enumerate(zip(labels.tolist(), areas.tolist(), strict=True), start=1)
    ]
    return {"segmentation": (segmentation + 1).int(), "segments_info": info}
