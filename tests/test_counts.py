"""What a GPU is given, and when the CPU waits for it: operations, waits and copies, counted on a pretended one."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import ModelOutput

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor, panoptic_merging
from detr_panoptic.data import PanopticCollator
from detr_panoptic.inference import Predictor, load
from detr_panoptic.mask_head import CHUNK_BYTES
from detr_panoptic.pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline
from detr_panoptic.scenes import make_scene
from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny, tiny_labels
from tests.pretend_gpu import GPU, pretended_gpu, to_cpu, to_gpu

SIZE = (64, 96)


@pytest.fixture
def like_cuda(monkeypatch):
    """The settings of memory and passes that a GPU has."""
    for name in ("STRIP_BYTES", "PASSES"):
        settings = getattr(panoptic_merging, name)
        monkeypatch.setitem(settings, GPU.type, settings["cuda"])


# ------ inference


class Operations(TorchDispatchMode):
    """Counts operations by name, views left out. The pretended GPU has no kernel for attention, a processor has."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_of_the_published_network_is_few_operations(dtype, monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", CHUNK_BYTES["cuda"])
    torch.manual_seed(0)
    config = DetrPanopticConfig(num_labels=250)  # type: ignore[call-arg]
    model = DetrPanopticForSegmentation(config).eval().to(dtype)
    images = torch.rand(1, 3, *SIZE).to(dtype)
    with torch.no_grad():
        model(images, mask_queries=20)  # folds the norms
        with Operations() as operations:
            model(images, mask_queries=20)
    assert operations.counts.total() <= 450
    assert operations.counts["where"] == operations.counts["rsqrt"] == 0  # no mask for attention, no norm to fold


@pytest.mark.parametrize(("mask_queries", "waits"), [(2, {}), ("all", {}), ("kept", {"nonzero": 1})])
def test_only_a_number_of_masks_that_depends_on_the_image_is_waited_for(mask_queries, waits, tiny_batch, monkeypatch):
    model = to_gpu(build_tiny().eval())
    images = to_gpu([tiny_batch["pixel_values"], tiny_batch["pixel_mask"]])
    with torch.no_grad(), pretended_gpu(monkeypatch) as gpu:
        model(*images, mask_queries=mask_queries)
    assert gpu.waits == waits


@pytest.mark.parametrize(("widths", "is_padded"), [([88], False), ([88, 88], False), ([88, 64], True)])
def test_the_pipeline_masks_attention_only_if_images_are_padded(widths, is_padded, model_folder):
    segment = DetrPanopticImageSegmentationPipeline.from_pretrained(model_folder)
    pictures = [make_scene(seed, height=64, width=width)["image"] for seed, width in enumerate(widths)]
    with Operations() as operations:
        segment(pictures, batch_size=len(pictures))
    assert (operations.counts["where"] > 0) == is_padded


# ------ merging


def outputs_of(batch, num_queries, num_labels=5):
    """Outputs in which every query sees an object and has its own part of the image."""
    g = torch.Generator().manual_seed(0)
    logits = nn.functional.one_hot(torch.randint(num_labels, (batch, num_queries), generator=g), num_labels + 1)
    sizes = torch.tensor([[800, 1066]] * batch)
    blobs = nn.functional.interpolate(torch.randn(batch, num_queries, 12, 16, generator=g), (200, 267))
    return ModelOutput(logits=30.0 * logits, pred_masks=blobs, image_sizes=sizes, canvas_sizes=sizes)


@pytest.mark.usefixtures("like_cuda")
@pytest.mark.parametrize("num_queries", [20, 100])
@pytest.mark.parametrize("merging", ["paper", "score_weighted"])
def test_merging_is_few_operations_and_two_waits_for_a_batch(merging, num_queries, monkeypatch):
    settings = {"stuff_label_ids": [3, 4], "merging": merging, "overlap_mask_area_threshold": 0.0}
    processor, counts = DetrPanopticImageProcessor(**settings), []
    for batch in (1, 3):
        outputs, sizes = outputs_of(batch, num_queries), [(480, 640)] * batch
        expected = processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes)
        with pretended_gpu(monkeypatch) as gpu:
            found = processor.post_process_panoptic_segmentation(to_gpu(outputs), target_sizes=sizes)
        for one, other in zip(found, expected, strict=True):
            assert one["segments_info"] == other["segments_info"]
            assert torch.equal(to_cpu(one["segmentation"]), other["segmentation"])
        assert len(expected[0]["segments_info"]) > 5
        assert gpu.waits == {"fetch": 2}
        counts.append(gpu.operations.total())
    assert counts[0] <= 60
    assert counts[1] < 3 * counts[0]


# ------ training


def training_batch():
    generator = torch.Generator().manual_seed(1)
    labels, pixel_mask = tiny_labels(generator), torch.zeros(2, 65, 97, dtype=torch.int64)
    pixel_mask[0], pixel_mask[1, :49, :64] = 1, 1
    images = torch.randn(2, 3, 65, 97, generator=generator) * pixel_mask[:, None]
    return {"pixel_values": images, "pixel_mask": pixel_mask, "labels": labels}


def losses_on_gpu(monkeypatch, *, layers=2):
    """The operations of the losses of a model with so many layers, forward and backward."""
    model = build_tiny().train()
    batch, queries = 2, model.config.num_queries
    g = torch.Generator().manual_seed(0)
    logits = to_gpu(torch.randn(layers, batch, queries, 4, generator=g)).requires_grad_()
    boxes = to_gpu(torch.rand(layers, batch, queries, 4, generator=g)).requires_grad_()
    labels = [{name: target[name] for name in ("class_labels", "boxes")} for target in training_batch()["labels"]]
    with pretended_gpu(monkeypatch) as gpu:
        matched = model.criterion.match(labels, logits, boxes)
        canvas = type("Canvas", (), {"masks": to_gpu(torch.zeros(0, 16, 24)), "rows": to_gpu(torch.zeros(0).long())})
        loss, terms = model.criterion(matched, canvas)
        loss.backward()
    assert len(terms) == 3 * layers
    return gpu


def test_losses_take_as_many_operations_for_six_layers_as_for_two(monkeypatch):
    few, many = (losses_on_gpu(monkeypatch, layers=layers) for layers in (2, 6))
    assert few.operations == many.operations
    assert few.waits == many.waits == {"fetch": 1}


def test_a_map_becomes_the_masks_that_it_was_made_of():
    records = [make_scene(seed, height=64, width=width) for seed, width in ((3, 96), (4, 80))]
    maps, masks = (
        PanopticCollator(DetrPanopticImageProcessor(do_resize=False), as_maps=as_maps)(records)["labels"]
        for as_maps in (True, False)
    )
    for one, other in zip(maps.with_masks(), masks, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("masks" in target or "segment_map" in target for target in maps.without_masks())


class Pretending(Accelerator):
    """An accelerator of this process's pretended GPU."""

    device = GPU

    def reduce(self, tensor, **_options):
        return tensor


@pytest.mark.parametrize("moved_before", [True, False])
def test_a_training_step_waits_twice_or_three_times(moved_before, monkeypatch):
    """For the matching and for whether all is finite; and where labels are on the GPU already, for their classes."""
    model = to_gpu(build_tiny(decoder_layers=3).train())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = training_batch()
    batch = {name: to_gpu(value) if moved_before or name != "labels" else value for name, value in batch.items()}
    with pretended_gpu(monkeypatch) as gpu:
        terms = train_step(model, [batch], optimizer, Pretending(cpu=True), max_grad_norm=0.1)
    waits = {"fetch": 2} | ({"_to_copy from the GPU": 1} if moved_before else {})
    assert gpu.waits == waits
    assert to_cpu(terms["loss"]).isfinite()


def test_a_batch_reaches_the_gpu_as_few_tensors(monkeypatch):
    records = [make_scene(seed, height=64, width=width) for seed, width in ((3, 96), (4, 80), (5, 96))]
    counts = {}
    for maps in (False, True):
        batch = dict(PanopticCollator(DetrPanopticImageProcessor(do_resize=False), as_maps=maps)(records))
        with pretended_gpu(monkeypatch) as gpu:
            moved = [value.to(GPU, non_blocking=True) for name, value in batch.items() if name != "labels"]
            if maps:
                batch["labels"].to(GPU, non_blocking=True)
            else:
                moved += [v.to(GPU, non_blocking=True) for target in batch["labels"] for v in target.values()]
        counts[maps] = gpu.copied
    assert counts == {False: 26, True: 3}


# ------ from pictures to segments


@pytest.mark.usefixtures("like_cuda")
def test_a_picture_waits_for_its_input_and_four_times(model_folder, monkeypatch):
    """For the queries that are kept, the check that all is finite, two steps of merging, and the map."""
    predictor = Predictor(*load(model_folder, device="cpu"))
    picture = make_scene(1, height=64, width=88)["image"]
    expected = predictor(picture)
    to_gpu(predictor.model)
    monkeypatch.setattr(type(predictor.model), "device", GPU)
    with pretended_gpu(monkeypatch) as gpu:
        found = predictor(picture)
    assert [(s.label, s.area) for s in found.segments] == [(s.label, s.area) for s in expected.segments]
    assert gpu.waits.total() <= 5
    assert gpu.operations["where"] == 0  # no mask for attention: nothing is padded
