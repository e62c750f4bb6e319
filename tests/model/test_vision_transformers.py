"""Vision transformers as backbones: a pyramid of the last map, at any size, saved and trained like any other."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812  the field's name for it

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.backbone import Backbone
from detr_panoptic.checkpoints.backbone_weights import load_backbone_weights
from detr_panoptic.exporting import GraphOptions, export
from detr_panoptic.training.optimization import build_optimizer, freeze
from detr_panoptic.training.settings import ModelSettings, OptimizationSettings
from tests.conftest import build_tiny
from tests.model.test_backbone import replicate

DINOV3 = "vit_small_patch16_dinov3"  # rotary positions in buffers that no checkpoint has


def predict(model, pixel_values, pixel_mask=None):
    with torch.no_grad():
        return model.eval()(pixel_values, pixel_mask, mask_queries="all")


@pytest.fixture
def vit() -> DetrPanopticForSegmentation:
    return build_tiny(backbone="test_vit")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("test_vit", 64),
        ("vit_tiny_patch16_224", 192),
        (DINOV3, 384),
        ("vit_small_patch14_dinov2", 384),  # built with patches of 16
        ("eva02_tiny_patch14_224", 192),
        ("vit_base_patch32_clip_224.laion2b", 768),
        ("vit_little_patch16_reg4_gap_256", 320),  # no class token
    ],
)
def test_four_maps_of_the_strides_of_a_resnet(name, width):
    with torch.device("meta"):
        backbone = Backbone(name)
        maps = backbone(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in maps] == backbone.channels == [width // 4, width // 2, width, width]
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@torch.no_grad()
def test_the_map_of_stride_16_is_timm_s_after_its_norm():
    backbone = Backbone("test_vit").eval()
    images = torch.randn(2, 3, 64, 96)
    (expected,) = backbone.body.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    found = backbone(images)
    torch.testing.assert_close(found[2], expected)
    torch.testing.assert_close(found[3], F.max_pool2d(expected, 2))


@pytest.mark.parametrize("name", ["test_vit", DINOV3])
def test_odd_sizes_are_those_of_the_padded_canvas(name, tiny_batch):
    model = build_tiny(backbone=name)
    images, mask = tiny_batch["pixel_values"], tiny_batch["pixel_mask"]
    found = predict(model, images, mask)
    expected = predict(model, *(F.pad(values, (0, 31, 0, 31)) for values in (images, mask)))
    assert found.pred_masks.shape[2:] == (17, 25)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks[..., :17, :25])
    assert torch.equal(found.image_sizes, expected.image_sizes)


@pytest.mark.parametrize(
    "name", ["test_vit", DINOV3, pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_saved_and_loaded_gives_the_same_bits(name, tmp_path, tiny_batch):
    """Buffers that checkpoints leave out were uninitialized memory; Swin indexes a table with them."""
    model = build_tiny(backbone=name)
    expected = predict(model, tiny_batch["pixel_values"])
    model.save_pretrained(tmp_path)
    junk = [torch.full((size,), torch.nan) for size in (4, 8, 16, 32, 64) * 50]
    del junk  # so that memory that nobody fills is found
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    for name, value in predict(loaded, tiny_batch["pixel_values"]).items():
        assert torch.equal(value, expected[name]), name
    half = DetrPanopticForSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(
        predict(half, tiny_batch["pixel_values"]).logits,
        predict(model.to(torch.bfloat16), tiny_batch["pixel_values"]).logits,
        atol=0,
        rtol=0,
    )


def test_in_place_of_another_backbone_it_is_initialized_as_timm_does_it(tmp_path, tiny_batch):
    build_tiny().save_pretrained(tmp_path)
    model = DetrPanopticForSegmentation.from_pretrained(tmp_path, backbone=DINOV3, ignore_mismatched_sizes=True)
    expected = timm.create_model(DINOV3).state_dict()
    for name, value in model.model.backbone.body.state_dict().items():
        torch.testing.assert_close(value.mean(), expected[name].mean(), atol=0.01, rtol=0, msg=name)
        torch.testing.assert_close(value.std(), expected[name].std(), atol=0.004, rtol=0, msg=name)
    assert predict(model, tiny_batch["pixel_values"]).pred_masks.isfinite().all()


# ------ training


def test_every_parameter_gets_a_gradient(vit, tiny_batch):
    vit.train()(**tiny_batch).loss.backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert vit.model.backbone.body.cls_token.grad.abs().sum() > 0


def test_gradient_checkpointing_recomputes_the_blocks(vit, tiny_batch):
    calls, gradients = [], []
    vit.model.backbone.body.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        vit.zero_grad()
        vit.train()(**tiny_batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in vit.named_parameters()})
        vit.activation_checkpointing_enable()
    torch.testing.assert_close(*gradients)
    assert len(calls) == 3
    vit.activation_checkpointing_disable()
    assert not vit.model.backbone.body.grad_checkpointing


def test_the_pyramid_learns_at_the_rate_of_the_transformer(vit):
    settings = OptimizationSettings(learning_rate=1e-3, backbone_learning_rate=1e-5)
    rates = {id(p): group["lr"] for group in build_optimizer(vit, settings).param_groups for p in group["params"]}
    backbone = vit.model.backbone
    assert {rates[id(p)] for p in backbone.body.parameters()} == {1e-5}
    assert {rates[id(p)] for p in backbone.pyramid.parameters()} == {1e-3}
    freeze(vit, ModelSettings(freeze_backbone=True))
    assert not any(p.requires_grad for p in backbone.body.parameters())
    assert all(p.requires_grad for p in backbone.pyramid.parameters())


def test_weights_of_another_patch_size_are_resampled(tmp_path):
    """DINOv2 with patches of 16 sees an image as with patches of 14 one of 7/8 of the size."""
    name = "vit_small_patch14_dinov2"
    torch.manual_seed(0)
    source: Any = timm.create_model(name, img_size=112).eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    backbone = Backbone(name).eval()
    load_backbone_weights(backbone, name, str(tmp_path / "weights.safetensors"))
    large = F.interpolate(torch.randn(1, 3, 5, 5), size=128, mode="bicubic")
    small = F.interpolate(large, size=112, mode="bilinear", antialias=True)
    with torch.no_grad():
        maps = torch.stack([backbone(large)[2].flatten(), source.forward_features(small)[:, 1:].mT.flatten()])
    assert torch.corrcoef(maps)[0, 1] > 0.999


# ------ habits


def test_adapters_offloading_and_replicas(vit, tiny_batch):
    accelerate, peft = pytest.importorskip("accelerate"), pytest.importorskip("peft")
    images = tiny_batch["pixel_values"]
    expected = predict(vit, images).pred_masks
    offloaded = accelerate.cpu_offload(copy.deepcopy(vit), execution_device=torch.device("cpu"))
    torch.testing.assert_close(predict(offloaded, images).pred_masks, expected)
    replica = replicate(vit, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    torch.testing.assert_close(predict(replica, images).pred_masks.float(), expected, atol=1e-4, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(vit, peft.LoraConfig(target_modules=r".*body.*qkv", r=2))
    model.train()(**tiny_batch).loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def test_it_compiles_as_one_graph_and_exports(vit, tiny_batch):
    images = tiny_batch["pixel_values"], tiny_batch["pixel_mask"]
    with torch.no_grad():
        expected = vit.eval()(*images).pred_masks
        found = torch.compile(vit, backend="eager", fullgraph=True)(*images).pred_masks
        program = torch.export.export(vit, images, strict=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(program.module()(*images)["pred_masks"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", {}, "at any image size"),  # two tokens that timm reads apart
        ("beit_base_patch16_224", {}, "strides"),
        ("test_vit", {"dilation": True}, "that can be dilated"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, reason):
    with pytest.raises(ValueError, match=f"`backbone` must .* {reason}.*'{name}'"), torch.device("meta"):
        Backbone(name, **options)


def test_dinov3_is_exported_for_one_size():
    with torch.device("meta"):
        model = build_tiny(backbone=DINOV3)
    processor = DetrPanopticImageProcessor.for_model(model.config)
    with pytest.raises(ValueError, match=f"`dynamic` needs traceable positions, got '{DINOV3}'"):
        GraphOptions(dynamic=True).resolved(model, processor)
    assert GraphOptions(size=(64, 96)).resolved(model, processor).mask_queries == 5


def test_transformers_detr_has_no_pyramid(vit, tmp_path):
    processor = DetrPanopticImageProcessor.for_model(vit.config)
    with pytest.raises(ValueError, match="transformers"):
        export((vit, processor), tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()
