"""Faster forms of a model predict what it predicts."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detr_panoptic.backbone import ConvNorm
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Predictor, cuda_graphs
from detr_panoptic.inference.cuda_graphs import CudaGraphs
from detr_panoptic.inference.fast_form import fast_form
from detr_panoptic.inference.fused import FusedBlock, FusedConv, FusedLinear, can_fuse, fused_copy
from detr_panoptic.scenes import make_scene
from tests.conftest import build_tiny

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
OUTPUTS = ("logits", "pred_boxes", "pred_masks")


def randomized(**overrides):
    """A model whose norms change their inputs."""
    model = build_tiny(**overrides).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("weight", "bias", "running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18", "resnet50d", "test_vit", "mobilenetv3_small_050"])
@torch.no_grad()
def test_a_fused_copy_gives_the_same_results_at_every_size(backbone):
    model = randomized(backbone=backbone)
    fast = fused_copy(model)
    for size in ((65, 97), (64, 64), (129, 70)):
        images = torch.randn(2, 3, *size)
        mask = torch.ones(2, *size, dtype=torch.int64)
        mask[1, 40:] = 0
        expected, found = (m(images, mask, mask_queries="all") for m in (model, fast))
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_in_half_precision_it_is_as_close_as_the_model():
    model, images = randomized(), torch.randn(1, 3, 64, 96)
    exact = model(images, mask_queries="all")
    model = model.bfloat16()
    errors = []
    for form in (model, fused_copy(model)):
        found = form(images.bfloat16(), mask_queries="all")
        errors.append([(found[name].float() - exact[name]).abs().mean().item() for name in OUTPUTS])
    assert all(fast < 1.5 * slow for slow, fast in zip(*errors, strict=True))


@torch.no_grad()
def test_activations_and_sums_are_part_of_the_convolutions():
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    model, images = build_tiny(backbone="resnet50").eval(), torch.randn(1, 3, 64, 96)
    fast = fused_copy(model)
    counts: Counter[str] = Counter()
    fast(images)
    with Operations():
        fast.model.backbone(images)
    # The stem's ReLU and pooling, and the copy of the image to channels-last, are all that is not a convolution.
    assert counts.pop("_convolution_pointwise") == 53
    assert sum(counts.values()) == 3


def test_every_layer_is_replaced_and_the_model_is_left_alone():
    model = build_tiny(backbone="resnet50").eval()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    fast = fused_copy(model)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    body = [*fast.model.backbone._fused[1].modules()]
    assert not any(isinstance(m, ConvNorm) for m in body)
    assert sum(isinstance(m, FusedBlock) for m in body) == 16
    assert not any(type(m) is torch.nn.Linear for m in fast.modules())
    assert any(isinstance(m, FusedLinear) for m in fast.modules())
    assert isinstance(fast.model.input_projection, FusedConv)


def test_what_cannot_be_fused_is_not():
    hooked = build_tiny()
    hooked.class_head.register_forward_hook(lambda *_: None)
    assert can_fuse(build_tiny())
    assert not can_fuse(hooked)
    assert not can_fuse(build_tiny().double())
    assert fast_form(hooked) is hooked
    with pytest.raises(ValueError, match=r"`compile` .*cudagraph"):
        fast_form(build_tiny(), "cudagraph")


class WithoutGpu(CudaGraphs):
    """Graphs that are not captured, and what is captured."""

    def __init__(self, model):
        super().__init__(model)
        self.captured = []

    def _capture(self, inputs, masks):
        self.captured.append((masks, *(tuple(tensor.shape) for tensor in inputs.values())))
        return lambda given: {name: self.model(**given, mask_queries=masks)[name] for name in cuda_graphs.OUTPUTS}


@torch.no_grad()
def test_graphs_are_kept_for_the_shapes_that_were_used_last(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_SHAPES", 2)
    model = build_tiny().eval()
    graphs = WithoutGpu(model)
    images = {width: torch.randn(1, 3, 64, width) for width in (64, 80, 96)}
    for width in (64, 80, 64, 96, 64, 80):
        found, expected = (m(images[width], mask_queries=2) for m in (graphs, model))
        assert torch.equal(found.pred_masks, expected.pred_masks)
    assert [shape[-1] for _, shape in graphs.captured] == [64, 80, 96, 80]


@torch.no_grad()
def test_a_graph_never_leaves_out_a_mask_that_is_kept(monkeypatch):
    model, images = build_tiny().eval(), torch.randn(1, 3, 64, 96)
    model.class_head.bias[-1] = -9  # all five queries are kept
    expected = model(images)
    for masks in (2, 5):
        monkeypatch.setattr(cuda_graphs, "MASKS", masks)
        graphs = WithoutGpu(model)
        assert torch.equal(graphs(images).pred_masks, expected.pred_masks)
        assert graphs.captured == [(masks, (1, 3, 64, 96))]


@torch.no_grad()
def test_an_image_without_a_kept_query_comes_first():
    model, images = randomized(), torch.randn(1, 3, 64, 96)
    model.class_head.bias[-1] = 99
    fast = fused_copy(model)
    assert fast(images, mask_queries="kept").pred_masks.shape == model(images, mask_queries="kept").pred_masks.shape
    expected, found = (m(images, mask_queries="all") for m in (model, fast))
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


def test_a_predictor_that_has_run_can_be_pickled_and_copied():
    predictor, image = Predictor.from_pretrained(BUNDLED, runtime="torch"), make_scene(3)["image"]
    expected = predictor(image).segmentation
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert other.network is not None
        assert other.network is not other.model
        assert (other(image).segmentation == expected).all()


@pytest.mark.parametrize("change", ["weights", "dtype", "model"])
def test_a_model_that_has_changed_runs_itself(change, caplog):
    predictor, image = Predictor.from_pretrained(BUNDLED, runtime="torch"), make_scene(3)["image"]
    assert predictor(image).segments
    if change == "weights":
        with torch.no_grad():
            predictor.model.class_head.bias[-1] += 99
    elif change == "dtype":
        predictor.model.bfloat16()
    else:
        predictor.model = copy.deepcopy(predictor.model)
    expected = Predictor(predictor.model, predictor.processor)(image).segmentation
    assert (predictor(image).segmentation == expected).all()
    assert "the predictor's model has changed" in caplog.text
    assert (expected == 0).all() == (change == "weights")


def test_a_predictor_is_taken_as_it_is_or_refused():
    predictor = Predictor.from_pretrained(BUNDLED, runtime="torch", device="cpu", dtype="float16")
    cpu = torch.device("cpu")
    for fits in ({}, {"dtype": torch.float16}, {"dtype": "float16", "device": "cpu"}, {"device": cpu}):
        assert Predictor.of(predictor, **fits) is predictor
    for contradicts in ({"dtype": "bfloat16"}, {"dtype": "float32"}, {"device": "cuda:0"}, {"runtime": "openvino"}):
        with pytest.raises(ValueError, match=next(iter(contradicts))):
            Predictor.of(predictor, **contradicts)
