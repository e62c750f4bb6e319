"""Frozen norms that run inside their convolutions: the same maps, at every change of weights and modules."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detr_panoptic.backbone import Backbone, ConvNorm, conv_norm_pairs, freeze_norms, fuse_norms


def plain_body(name: str) -> nn.Module:
    """Returns a body of frozen norms whose statistics matter, as timm runs it."""
    torch.manual_seed(0)
    return randomize(freeze_norms(timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)))).eval()


def randomize(body: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, buffer in body.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(-0.2, 0.2) if name.endswith(("bias", "running_mean")) else buffer.uniform_(0.5, 1.5)
    return body


def images(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("resnet50", 53),
        ("test_resnet", 15),
        ("tf_efficientnet_lite0", 43),  # five of 48 follow convolutions that pad by the size of their input
        ("resnetv2_50", 32),  # before activation: 16 of 48 follow a sum
        ("repvit_m0_9", 83),  # 23 norms follow a sum of convolutions: all maps were wrong
        ("convnext_atto", 0),
        *(
            pytest.param(name, None, marks=pytest.mark.slow)
            for name in (
                *("densenet121", "dla34", "hrnet_w18_small", "skresnet18", "resnest14d", "res2net50_26w_4s"),
                *("regnety_002", "mobilenetv3_small_050", "mobilenetv4_conv_small", "ghostnet_050", "repvgg_a0"),
                *("ese_vovnet19b_dw", "resnet18d", "cs3darknet_s", "tinynet_e", "fastvit_t8"),
            )
        ),
    ],
)
@torch.no_grad()
def test_fused_norms_change_no_map(name, pairs):
    plain = plain_body(name).double()
    fused = fuse_norms(plain)
    found = sum(isinstance(m, ConvNorm) for m in fused.modules())
    assert found == len(list(conv_norm_pairs(plain)))
    assert found == pairs or (pairs is None and found > 5)
    x = images(1, 3, 64, 96, dtype=torch.float64)
    for expected, maps in zip(plain(x), fused(x), strict=True):
        # Res2Net adds its maps up in a chain of groups: 3e-10.
        torch.testing.assert_close(maps, expected, atol=1e-12, rtol=1e-10 if pairs is not None else 1e-8)


def test_names_are_those_of_timm():
    names = timm.create_model("test_resnet", features_only=True).state_dict().keys()
    ours = {name.removeprefix("body.") for name in Backbone("test_resnet").state_dict()}
    assert ours == {name for name in names if not name.endswith("num_batches_tracked")}


def test_gradients_are_those_of_the_plain_body():
    plain = plain_body("test_resnet").double().train()
    x = images(2, 3, 64, 96, dtype=torch.float64)
    gradients = []
    for body in (plain, fuse_norms(plain)):
        plain.zero_grad()
        sum(features.square().sum() for features in body(x)).backward()
        gradients.append({name: p.grad.clone() for name, p in plain.named_parameters()})
    torch.testing.assert_close(*gradients, atol=0, rtol=1e-8)


def test_gradients_or_none_give_the_same_bits():
    backbone = Backbone("test_resnet")
    with torch.no_grad():
        expected = backbone(images(1, 3, 64, 96))[-1]
    assert torch.equal(backbone(images(1, 3, 64, 96))[-1], expected)


CHANGES = {
    "load_state_dict": lambda b: b.load_state_dict(randomize(Backbone("test_resnet")).state_dict()),
    "in place": lambda b: b.body.bn1.running_mean.add_(1),
    "data replaced": lambda b: setattr(b.body.conv1[0].weight, "data", b.body.conv1[0].weight.data * 2),
    "parameter replaced": lambda b: setattr(b.body.conv1[0], "weight", nn.Parameter(b.body.conv1[0].weight * 2)),
    "buffer replaced": lambda b: setattr(b.body.bn1, "bias", b.body.bn1.bias + 1),
    "module replaced": lambda b: b.body.set_submodule(
        "layer2", randomize(Backbone("test_resnet")).double().get_submodule("body.layer2")
    ),
    "body replaced": lambda b: setattr(b, "body", randomize(Backbone("test_resnet")).double().body),
    "float64": lambda b: b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_weights_may_change_in_any_way_between_calls(change):
    torch.manual_seed(0)
    x = images(1, 3, 64, 96, dtype=torch.float64)
    backbone: Any = randomize(Backbone("test_resnet").eval())
    before = backbone(x.float())[-1] if change == "float64" else backbone.double()(x)[-1]
    CHANGES[change](backbone)
    after, copied = backbone(x)[-1], copy.deepcopy(backbone)
    torch.testing.assert_close(after, backbone.body(x)[-1], atol=1e-10, rtol=1e-10)
    assert after.dtype != before.dtype or not torch.equal(after, before)
    assert torch.equal(copied(x)[-1], after)
    copied.body.bn1.bias.add_(1)
    assert torch.equal(backbone(x)[-1], after)
    assert not torch.equal(copied(x)[-1], after)


@torch.no_grad()
def test_nothing_that_does_not_depend_on_the_image_is_computed_twice():
    backbone = Backbone("test_resnet").eval()
    first, later = (count_operations(backbone) for _ in range(2))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in backbone.modules())
    assert first["convolution"] == later["convolution"] == convolutions
    assert first["rsqrt"] == 15
    assert later["rsqrt"] == later["mul"] == 0


def count_operations(module: nn.Module) -> dict[str, int]:
    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[func.overloadpacket.__name__] = counts.get(func.overloadpacket.__name__, 0) + 1
            return func(*args, **(kwargs or {}))

    counts: dict[str, int] = {"mul": 0, "rsqrt": 0}
    with Counting():
        module(images(1, 3, 64, 96))
    return counts


@torch.no_grad()
def test_hooks_see_what_they_would_in_timm():
    backbone = Backbone("test_resnet").eval()
    expected = backbone(images(1, 3, 64, 96))[-1]
    seen = []
    for module in (backbone.body.conv1[0], backbone.body.bn1, backbone.body.layer3):
        module.register_forward_hook(lambda _module, _args, output: seen.append(output.shape[1]))
    torch.testing.assert_close(backbone(images(1, 3, 64, 96))[-1], expected)
    assert len(seen) == 3


@torch.no_grad()
def test_a_forward_does_not_walk_over_the_modules(monkeypatch):
    backbone = Backbone("test_resnet").eval()
    expected = backbone(images(1, 3, 64, 96))[-1]
    walks = []
    walk = nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda *args, **options: walks.append(1) or walk(*args, **options))
    assert torch.equal(backbone(images(1, 3, 64, 96))[-1], expected)
    assert not walks
    copied, seen = copy.deepcopy(backbone), []
    for module in (copied.body.layer3, copied.body.bn1):  # a container and a layer
        handle = module.register_forward_hook(lambda *_: seen.append(1))
        copied(images(1, 3, 64, 96))
        handle.remove()
    copied.body.conv1[0].forward = lambda x: x.new_zeros(1, 16, 32, 48)  # as accelerate replaces it
    assert not torch.equal(copied(images(1, 3, 64, 96))[-1], expected)
    assert torch.equal(backbone(images(1, 3, 64, 96))[-1], expected)
    assert len(seen) == 2


@torch.no_grad()
def test_convolutions_are_as_many_as_in_timm():
    counts = []
    for body in (plain_body("test_resnet"), Backbone("test_resnet")):
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
    backbone = randomize(Backbone("test_resnet").eval())
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(1, 3, 64, 96))[-1], backbone(images(1, 3, 64, 96))[-1])


def test_it_exports_without_copies_of_its_weights():
    backbone = randomize(Backbone("test_resnet").eval())
    program = torch.export.export(backbone, (images(1, 3, 64, 96),))
    assert len(program.constants) == 0
    assert torch.equal(program.module()(images(1, 3, 64, 96))[-1], backbone(images(1, 3, 64, 96))[-1])


def test_a_replica_of_data_parallel_uses_its_own_tensors():
    """`nn.DataParallel` copies the attributes of a module; every replica read the norms of the first device."""
    backbone, x = randomize(Backbone("test_resnet").eval()).double(), images(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(x)[-1]
    replica = replicate(backbone, lambda tensor: tensor * 2)
    with torch.no_grad():
        found = replica(x)[-1]
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor.mul_(2)
        torch.testing.assert_close(found, backbone(x)[-1], atol=1e-12 * found.abs().max().item(), rtol=1e-10)
    assert not torch.allclose(found, expected)


def replicate(module: nn.Module, change) -> nn.Module:
    """Returns a replica as `nn.parallel.replicate` makes it, with other values in place of another device."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        setattr(replica, name, None if child is None else replicate(child, change))
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        setattr(replica, name, None if tensor is None else change(tensor))
    return replica


def test_lora_on_convolutions():
    """It had no effect, or differed by 2.6 after merging."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    backbone = randomize(Backbone("test_resnet").eval())
    expected = backbone(images(1, 3, 64, 96))[-1]
    convs = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    names = [name for name in convs if "conv2" in name or "downsample" in name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(backbone, peft.LoraConfig(target_modules=names, r=2))
    torch.testing.assert_close(model(images(1, 3, 64, 96))[-1], expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted = model(images(1, 3, 64, 96))[-1]
    assert (adapted - expected).abs().max() > 0.1
    adapted.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lora_A" in n and "layer1" not in n)
    with torch.no_grad():
        model(images(1, 3, 64, 96))
        merged = model.merge_and_unload()(images(1, 3, 64, 96))[-1]
    torch.testing.assert_close(merged, adapted.detach(), atol=1e-3, rtol=1e-3)
