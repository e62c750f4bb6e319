"""What the page says of a picture: its segments, where the model looked, and the files that `predict` would write."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..app.answers import Content, File, Result, Settings, Threshold
from ..app.guard import Guard
from ..app.limits import Limits
from ..app.page import page_application
from ..explanation.explanation import Explanation, explain_image
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.old_loading import model_categories
from ..inference.old_prediction import Prediction, describe_segments, prediction_json, segment
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..scenes.dataset import SCENE_CATEGORIES, make_scene
from ..segment_ids import ids_to_rgb
from ..visualization import attention_panel, hover
from .demo import UNSEEN_SEED

TASKS = {
    "panoptic": "panoptic: things and stuff",
    "instance": "instance: things, each on its own",
    "semantic": "semantic: one segment per class",
}
EXAMPLES = 24  # different scenes, so that no more files than that come of the button
SCALE = 2  # of a scene, for readable labels
EMPTY = '<p role="status">Nothing scored that high. A lower least score may show something.</p>'
CONNECT = """
function connect(root, data) {
  const owner = connectSegments(root, data);
  if (data.attention) connectAttention(root, owner, data);
}
"""


def application_for(
    model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, limits: Limits, folder: Path
) -> AbstractContextManager[Guard]:
    """The page of a model as an ASGI application.

    Args:
        model: in evaluation mode.
        processor: the model's.
        limits: of the server.
        folder: of the uploads.
    """
    return page_application(partial(answer, model, processor), content_for(model, processor), limits, folder)


def answer(
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    name: str,
    image: Image.Image,
    settings: Settings,
    check_time: Callable[[], None],
) -> Result:
    """The result of one picture.

    Args:
        model: in evaluation mode.
        processor: the model's.
        name: of the picture's file.
        image: upright, RGB.
        settings: task and thresholds.
        check_time: called between the steps; raises when there is no time left.
    """
    check_time()
    explanation = None
    if settings.task == "semantic":  # its queries add up: no segment has one of its own
        (result,) = segment([image], model, processor, task="semantic", threshold=None)
        segmentation = result["segmentation"].cpu().numpy()
        segments = describe_segments(segmentation, result["segments_info"], model.config)
    else:
        values = settings.thresholds
        explanation = explain_image(
            image,
            name,
            model,
            processor,
            task=settings.task,
            threshold=values["threshold"],
            mask_thresholds=(values.get("mask_threshold"), values.get("overlap_mask_area_threshold")),
        )
        segmentation, segments = explanation.segmentation, explanation.segments_info
    check_time()
    id2label = model_categories(model.config).id2label
    markup, data, order = hover.hover_parts(image, segmentation, segments, id2label)
    if not segments:
        markup = hover.Html(markup + EMPTY)
    check_time()
    if explanation is not None and segments:
        markup = hover.Html(markup + attention_panel.MARKUP)
        data["attention"] = _attention(explanation, order)
    stem = Path(name).stem or "picture"
    data["picture"] = f"{stem}_overlay.png"
    return Result(markup, data, _files(Prediction(name, image, segmentation, segments), stem))


def content_for(model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor) -> Content:
    """What the page offers for a model."""
    knows_scenes = model_categories(model.config).id2label == SCENE_CATEGORIES.id2label
    introduction = (
        "Every pixel gets its thing or stuff. Point at a segment to see its class and score; click it to see where "
        "the model looked."
    )
    if knows_scenes:
        introduction += " This model knows generated scenes; it has not learned from photographs."
    return Content(
        title="Panoptic segmentation",
        introduction=introduction,
        tasks=TASKS,
        thresholds=_thresholds(processor),
        examples={"A generated scene": example} if knows_scenes else {},
        style=hover.STYLE + attention_panel.STYLE,
        script="".join(file.read_text(encoding="utf-8") for file in (hover.SCRIPT, attention_panel.SCRIPT)) + CONNECT,
    )


def example() -> Image.Image:
    """A scene that the model has not seen."""
    number = int(np.random.default_rng().integers(EXAMPLES))
    scene = make_scene(UNSEEN_SEED + number, height=256, width=256)["image"]
    return scene.resize([SCALE * side for side in scene.size], Image.Resampling.BICUBIC)


def _thresholds(processor: DetrPanopticImageProcessor) -> list[Threshold]:
    weighted = ("instance",) if processor.merging == "paper" else ("panoptic", "instance")
    return [
        Threshold(
            "threshold",
            "Least score",
            "Segments with a lower one are left out.",
            processor.threshold,
            ("panoptic", "instance"),
        ),
        Threshold(
            "mask_threshold",
            "Mask threshold",
            "A pixel may belong to an object from this probability on.",
            processor.mask_threshold,
            weighted,
        ),
        Threshold(
            "overlap_mask_area_threshold",
            "Least visible part",
            "Objects of which the others leave less are left out.",
            processor.overlap_mask_area_threshold,
            weighted,
        ),
    ]


def _attention(explanation: Explanation, order: list[int]) -> dict:
    ids = [explanation.segments_info[index]["id"] for index in order]
    return attention_panel.attention_data(explanation.of_segment(segment_id) for segment_id in ids)


def _files(prediction: Prediction, stem: str) -> list[File]:
    """What `predict` writes beside the overlay."""
    stream = io.BytesIO()
    Image.fromarray(ids_to_rgb(prediction.segmentation)).save(stream, "PNG")
    text = prediction_json(prediction, f"{stem}.png")
    return [
        File("segment ids (PNG)", f"{stem}.png", "image/png", stream.getvalue()),
        File("segments (JSON)", f"{stem}.json", "application/json", text.encode()),
    ]
