"""Batches: what the processor is given, and augmentation that depends on nothing but seed, epoch and image."""

import pytest
import torch
from torch.utils.data import DataLoader

from detr_panoptic.box_ops import cxcywh_to_xyxy
from detr_panoptic.data.augmentation import LargeScaleJitter, PanopticCollator, RandomAugmentation
from detr_panoptic.image_processing_detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.scenes.dataset import make_scene
from tests.mask_boxes import masks_to_boxes


@pytest.fixture(scope="module")
def records():
    return [make_scene(seed, height=64, width=width) for seed, width in ((3, 71), (4, 97), (5, 83))]


@pytest.fixture
def processor():
    return DetrPanopticImageProcessor(size={"shortest_edge": 50, "longest_edge": 90})


@pytest.fixture
def augmentation():
    return RandomAugmentation(scales=(57, 65, 73), max_size=120, crop_scales=(64,), crop_range=(40, 60))


def same_batch(first, second):
    return torch.equal(first["pixel_values"], second["pixel_values"])


def test_targets_are_the_records_segments(processor, records):
    batch = PanopticCollator(processor)(records)
    assert len(batch["pixel_values"]) == len(batch["pixel_mask"]) == len(batch["labels"]) == 3
    for record, target, mask in zip(records, batch["labels"], batch["pixel_mask"], strict=True):
        assert target["image_id"].tolist() == [record["image_id"]]
        assert target["size"].tolist()[0] == 50
        assert target["orig_size"].tolist() == [64, record["image"].width]
        assert target["class_labels"].tolist() == [segment["label_id"] for segment in record["segments_info"]]
        # Scenes have no void: the masks share out every real pixel.
        assert torch.equal(target["masks"].sum(0), torch.ones(target["size"].tolist(), dtype=torch.int64))
        assert mask.sum() == target["size"].prod()


def test_a_batch_equals_its_samples_alone(processor, augmentation, records):
    collate = PanopticCollator(processor, augmentation, seed=1)
    batch = collate(records)
    for index, record in enumerate(records):
        alone = collate([record])
        height, width = alone["pixel_values"].shape[-2:]
        assert torch.equal(batch["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        assert torch.equal(batch["labels"][index]["masks"], alone["labels"][0]["masks"])


def test_augmentation_sets_the_size(processor, augmentation, records):
    collate = PanopticCollator(processor, augmentation)
    sides = set()
    for epoch in range(12):
        collate.set_epoch(epoch)
        sides |= {int(target["size"].min()) for target in collate(records)["labels"]}
    assert sides == {57, 65, 73}


def test_seed_and_epoch_choose_the_augmentation(processor, augmentation, records):
    collate = PanopticCollator(processor, augmentation, seed=1)
    first = collate(records)
    assert not same_batch(first, PanopticCollator(processor, augmentation, seed=2)(records))
    collate.set_epoch(1)
    assert not same_batch(first, collate(records))
    collate.set_epoch(0)
    assert same_batch(first, collate(records))


def test_workers_that_stay_see_the_epoch(processor, augmentation, records):
    collate = PanopticCollator(processor, augmentation)
    loader = DataLoader(records, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=collate)
    for epoch in (0, 5):
        collate.set_epoch(epoch)
        (from_worker,) = loader
        assert same_batch(from_worker, collate(records))


def everything(batch):
    """All tensors of a batch."""
    yield from (batch["pixel_values"], batch["pixel_mask"])
    for target in batch["labels"]:
        yield from target.values()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("jitter", [False, True])
def test_the_number_of_workers_changes_no_batch(processor, augmentation, records, jitter):
    collate = PanopticCollator(processor, LargeScaleJitter(80) if jitter else augmentation, seed=3)
    collate.set_epoch(2)
    expected = [list(everything(collate(records[start : start + 2]))) for start in (0, 2)]
    for workers in (0, 1, 2):
        torch.manual_seed(workers)  # the loader's own random numbers must not count
        loader = DataLoader(records, batch_size=2, num_workers=workers, collate_fn=collate)
        for batch, tensors in zip(loader, expected, strict=True):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(everything(batch), tensors, strict=True))


def test_boxes_are_those_of_the_masks(processor, records):
    batch = PanopticCollator(processor, LargeScaleJitter(80), seed=5)(records)
    for target in batch["labels"]:
        height, width = target["masks"].shape[1:]
        assert target["size"].tolist() == [height, width]
        corners = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        assert torch.allclose(corners, masks_to_boxes(target["masks"]), atol=1e-4)
        assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())


def test_a_fixed_square_makes_batches_of_one_size(records):
    processor = DetrPanopticImageProcessor(pad_size={"height": 80, "width": 80})
    collate = PanopticCollator(processor, LargeScaleJitter(80))
    for epoch in range(4):
        collate.set_epoch(epoch)
        batch = collate(records)
        assert batch["pixel_values"].shape == (3, 3, 80, 80)
        assert batch["pixel_mask"].sum((1, 2)).tolist() == [int(t["size"].prod()) for t in batch["labels"]]
        assert not (batch["pixel_values"] * (1 - batch["pixel_mask"][:, None])).any()
