"""Threads that share a model, a processor or a pipeline; other default dtypes, as loading sets them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import pipeline

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data.augmentation import LargeScaleJitter, RandomAugmentation
from detr_panoptic.losses import mask_losses
from detr_panoptic.matcher import Matching
from tests.conftest import build_tiny, photo

THREADS = 8


def in_threads(work, count=THREADS):
    """What `work` returns for 0, 1, 2 … in as many threads."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(work, range(count)))


def picture(index):
    """Each of another size."""
    return photo((71 + 3 * index, 53 + 2 * index), seed=index)


def bits(value):
    """Whatever the package returns, as something that compares bit by bit."""
    if isinstance(value, Tensor):
        return (
            value.dtype,
            tuple(value.shape),
            value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return np.asarray(value).tobytes()


def test_threads_that_share_model_and_processor_get_what_each_gets_alone(model_folder):
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)

    def work(index):
        image = picture(index)
        annotation = {
            "image_id": index,
            "segmentation": np.full((image.height, image.width), 7),
            "segments_info": [{"id": 7, "label_id": index % 3}],
        }
        inputs = processor(image, annotations=annotation, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs, mask_queries="all")
        return bits(
            [
                dict(inputs),
                dict(outputs),
                processor.post_process_panoptic_segmentation(outputs),
                processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)]),
            ]
        )

    alone = [work(index) for index in range(THREADS)]
    assert len({repr(result) for result in alone}) == THREADS
    for _ in range(2):
        assert in_threads(work) == alone


def test_threads_that_share_a_pipeline_get_what_each_gets_alone(model_folder):
    segment = pipeline("image-segmentation", model=str(model_folder))

    def work(index):
        return [(part["label"], part["score"], bits(part["mask"])) for part in segment(picture(index))]

    alone = [work(index) for index in range(THREADS)]
    assert sum(map(len, alone)) > THREADS
    for _ in range(2):
        assert in_threads(work) == alone


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def other_default(request):
    """Runs a function with another default dtype, as it is while a thread loads a checkpoint in that dtype."""

    def run(function):
        torch.set_default_dtype(request.param)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return run


def test_the_default_dtype_changes_no_prediction_and_no_loss(tiny_model, tiny_batch, other_default):
    sizes = [(131, 97), (61, 89)]
    processors = [
        DetrPanopticImageProcessor.for_model(tiny_model.config, threshold=0.1, merging=merging)
        for merging in ("paper", "score_weighted")
    ]

    @torch.no_grad()
    def work():
        outputs = tiny_model(**tiny_batch, mask_queries="all")
        return bits(
            [
                dict(outputs),
                [p.post_process_panoptic_segmentation(outputs, target_sizes=sizes) for p in processors],
                processors[0].post_process_semantic_segmentation(outputs),
                processors[0].post_process_object_detection(outputs, target_sizes=sizes),
            ]
        )

    assert other_default(work) == work()


def test_the_default_dtype_changes_no_loss_at_the_masks_own_resolution(other_default):
    canvas = (1031, 1301)  # rows and columns that bfloat16 cannot count
    logits = torch.randn(1, 258, 326, generator=torch.Generator().manual_seed(0))
    labels = [{"class_labels": torch.tensor([0]), "masks": torch.ones(1, *canvas).triu().bool()}]
    matching = Matching(*(torch.zeros(shape, dtype=torch.int64) for shape in (1, (1, 1), (1, 1))))

    def work():
        options: Any = {"canvas_size": canvas, "image_sizes": [canvas], "num_targets": torch.tensor(1.0).float()}
        return mask_losses(logits, labels, matching, resolution="mask", **options)

    torch.testing.assert_close(other_default(work), work(), atol=0, rtol=0)


@pytest.mark.parametrize("augment", [RandomAugmentation((33,), max_size=64, crop_scales=(41,)), LargeScaleJitter(67)])
def test_the_default_dtype_changes_no_augmentation_and_no_input(augment, other_default):
    image = picture(0)
    record = {
        "image": image,
        "image_id": 3,
        "segmentation": np.arange(image.height * image.width).reshape(image.height, -1) // 997 + 1,
        "segments_info": [{"id": i, "label_id": 0} for i in range(1, 6)],
    }

    def work():
        augmented = augment(record, 5)
        inputs = DetrPanopticImageProcessor()(augmented["image"], annotations=augmented, return_tensors="pt")
        return bits([augmented["segmentation"], augmented["segments_info"][0]["bbox"], inputs["pixel_values"]])

    assert other_default(work) == work()


def test_a_model_predicts_while_others_are_built_and_loaded(model_folder):
    """torch.fx, which once traced backbones here, replaces `nn.Module.__call__` for all threads while it works."""
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = bits(dict(model(image)))
    done = Event()

    def predict():
        results: list[bool] = []
        while not done.is_set() or not results:
            with torch.no_grad():
                results.append(bits(dict(model(image))) == expected)
        return results

    with ThreadPoolExecutor(1) as threads:
        predicting = threads.submit(predict)
        try:
            for seed in range(3):
                build_tiny(seed=seed)
                DetrPanopticForSegmentation.from_pretrained(model_folder, dtype=torch.bfloat16)
        finally:
            done.set()
        assert all(predicting.result())
