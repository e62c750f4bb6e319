import copy

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detr_panoptic.backbone import AppliedNorm2d, AppliedNormAct2d, Backbone, NormalizedConv2d, fold_frozen_norms


def plain_body(name: str) -> nn.Module:
    """A body of frozen norms with statistics that do something, as timm runs it."""
    torch.manual_seed(0)
    body = freeze_batch_norm_2d(timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)))
    for buffer_name, buffer in body.named_buffers():
        if buffer_name.endswith(("bias", "running_mean")):
            buffer.normal_(std=0.1)
        else:
            buffer.uniform_(0.5, 1.5)
    return body.eval()


def folded(body: nn.Module) -> nn.Module:
    body = copy.deepcopy(body)
    fold_frozen_norms(body)
    return body


def images(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(
    ("name", "norms", "left"),
    [
        ("resnet50", 53, 0),
        ("test_resnet", 15, 0),
        ("tf_efficientnet_lite0", 48, 5),  # five follow convolutions that pad by the size of their input
        ("resnetv2_50", 48, 16),  # sixteen follow a sum
        ("convnext_atto", 0, 0),
    ],
)
@torch.no_grad()
def test_folded_norms_change_no_map_and_no_name(name, norms, left):
    plain = plain_body(name).double()
    fast = folded(plain)
    assert list(fast.state_dict()) == list(plain.state_dict())
    applied = [m for m in fast.modules() if isinstance(m, (AppliedNorm2d, AppliedNormAct2d))]
    assert len(applied) == sum(isinstance(m, NormalizedConv2d) for m in fast.modules()) == norms - left
    x = images(1, 3, 64, 96, dtype=torch.float64)
    for expected, found in zip(plain(x), fast(x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@torch.no_grad()
def test_a_norm_that_others_read_past_stays_as_it_is():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
            self.twice, self.norms = nn.Conv2d(5, 5, 1), nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(5)])

        def forward(self, x):
            x = self.conv(x)
            x = x + self.norm(x)
            for norm in self.norms:
                x = norm(self.twice(x))
            return x

    torch.manual_seed(0)
    plain = freeze_batch_norm_2d(Branched())
    for buffer in plain.buffers():
        buffer.uniform_(0.5, 1.5)
    assert torch.equal(folded(plain)(images(2, 3, 5, 7)), plain(images(2, 3, 5, 7)))


@torch.no_grad()
def test_a_body_that_looks_at_its_images_stays_as_it_is():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.mean() > 0 else x

    body = folded(freeze_batch_norm_2d(Looking()))
    assert type(body.conv) is nn.Conv2d


def test_gradients_are_those_of_the_plain_body():
    plain = plain_body("test_resnet").double().train()
    fast = folded(plain)
    x = images(2, 3, 64, 96, dtype=torch.float64)
    gradients = []
    for body in (plain, fast):
        sum(features.square().sum() for features in body(x)).backward()
        gradients.append({name: p.grad for name, p in body.named_parameters()})
    torch.testing.assert_close(*gradients, atol=0, rtol=1e-8)


@torch.no_grad()
def test_weights_may_change_in_any_way_between_calls():
    backbone, other = Backbone("test_resnet"), Backbone("test_resnet")
    x = images(1, 3, 64, 96)
    backbone(x)
    backbone.load_state_dict(other.state_dict())
    assert torch.equal(backbone(x)[-1], other(x)[-1])
    other.body.bn1.running_mean.add_(1)
    assert not torch.equal(backbone(x)[-1], other(x)[-1])
    backbone.body = copy.deepcopy(other.body)
    assert torch.equal(backbone(x)[-1], other(x)[-1])
    doubled = copy.deepcopy(backbone).double()(x.double())[-1]
    torch.testing.assert_close(doubled.float(), backbone(x)[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_norms_cost_no_pass_over_a_map():
    """What a norm did to its map it does to a weight: the elements that are multiplied do not grow with the image."""
    backbone = Backbone("test_resnet")
    counts = []
    for size in ((64, 96), (128, 192)):
        with _ElementwiseProducts() as products:
            backbone(images(1, 3, *size))
        counts.append(products.elements)
    assert counts[0] == counts[1] > 0


class _ElementwiseProducts(torch.utils._python_dispatch.TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mul:
            self.elements += result.numel()
        return result


@torch.no_grad()
def test_convolutions_are_as_many_as_before():
    plain, fast = plain_body("test_resnet"), Backbone("test_resnet")
    counts = []
    for body in (plain, fast):
        with FlopCounterMode(display=False) as counter:
            body(images(1, 3, 64, 96))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_close(dtype):
    backbone = Backbone("test_resnet").eval()
    expected = backbone(images(1, 3, 64, 96))
    with torch.autocast("cpu", dtype):
        automatic = backbone(images(1, 3, 64, 96))
    cast = backbone.to(dtype)(images(1, 3, 64, 96, dtype=dtype))
    for float32, *halves in zip(expected, automatic, cast, strict=True):
        for half in halves:
            assert half.dtype == dtype
            assert (half.float() - float32).abs().max() < 0.05 * float32.abs().max()


def test_maps_are_channels_last():
    for features in Backbone("test_resnet")(images(2, 3, 64, 96)):
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_it_compiles_without_a_graph_break():
    backbone = Backbone("test_resnet").eval()
    assert torch._dynamo.explain(backbone)(images(1, 3, 64, 96)).graph_break_count == 0
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(1, 3, 64, 96))[-1], backbone(images(1, 3, 64, 96))[-1])
