"""Adapters: peft's own classes, and transformers' integration of them."""

import copy
import json
from typing import Any

import pytest
import torch
import transformers.integrations.peft as integration
from transformers import DetrConfig, DetrForSegmentation

from detr_panoptic import DetrPanopticForSegmentation
from tests.conftest import build_tiny
from tests.model.test_backbone import randomize

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ["q_proj", "v_proj"]
HEADS = ["class_head", "box_head", "mask_head"]


@pytest.fixture
def base():
    model = build_tiny().eval()
    randomize(model.model.backbone.body)
    return model


def masks_of(model, batch):
    with torch.no_grad():
        return model.eval()(batch["pixel_values"], batch["pixel_mask"], mask_queries="all").pred_masks


def train(model, batch, *, steps=2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def check(model, base, batch, folder):
    """Trains an adapter; it has an effect, and is the same after saving and after merging."""
    before = masks_of(base, batch)
    torch.testing.assert_close(masks_of(model, batch), before, atol=1e-4, rtol=1e-4)
    train(model, batch)
    adapted = masks_of(model, batch)
    assert (adapted - before).abs().max() > 1e-2
    model.save_pretrained(folder / "adapter")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "adapter")
    assert torch.equal(masks_of(loaded, batch), adapted)
    merged = model.merge_and_unload()
    torch.testing.assert_close(masks_of(merged, batch), adapted, atol=1e-3, rtol=1e-3)
    assert type(merged) is DetrPanopticForSegmentation
    merged.save_pretrained(folder / "merged")
    again = DetrPanopticForSegmentation.from_pretrained(folder / "merged")
    assert torch.equal(masks_of(again, batch), masks_of(merged, batch))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ATTENTION, "modules_to_save": HEADS},
        {"target_modules": "all-linear"},
        {"target_modules": r".*mask_head.*(conv|adapter|predictor)"},  # had no effect once
        {"target_modules": r".*backbone.*conv2", "bias": "lora_only"},
        {"target_modules": ATTENTION, "use_dora": True, "modules_to_save": ["mask_head"]},
    ],
    ids=["attention and heads", "all-linear", "mask head", "backbone", "DoRA"],
)
def test_an_adapter_is_trained_saved_merged_and_loaded(base, tiny_batch, options, tmp_path):
    check(peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, **options)), base, tiny_batch, tmp_path)


def test_only_the_adapter_and_the_heads_are_trained(base, tiny_batch):
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=HEADS)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)
    model.train()(**tiny_batch).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trained)


def test_an_adapter_is_loaded_with_its_base(base, tiny_batch, tmp_path):
    """`from_pretrained` of transformers reads the folder of an adapter, and the base that it names."""
    base.save_pretrained(tmp_path / "base")
    named = DetrPanopticForSegmentation.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["class_head", "mask_head"])
    model = peft.get_peft_model(named, config)
    train(model, tiny_batch)
    model.save_pretrained(tmp_path / "adapter")
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path / "adapter")
    assert torch.equal(masks_of(loaded, tiny_batch), masks_of(model, tiny_batch))
    # peft imports no class of a package that it does not know, unless it is named.
    allowed = ["detr_panoptic.modeling_detr_panoptic"]
    loaded = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=allowed)
    assert torch.equal(masks_of(loaded, tiny_batch), masks_of(model, tiny_batch))


def test_an_adapter_of_transformers_detr_names_it(tiny_batch, tmp_path):
    """`base_model_name_or_path` was "None"; and transformers would give such an adapter a model of random weights."""
    sizes: Any = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"backbone": "test_resnet", "d_model": 64, "num_queries": 5, "num_labels": 3}
    DetrForSegmentation(DetrConfig(**sizes)).save_pretrained(tmp_path / "theirs")
    base = DetrPanopticForSegmentation.from_pretrained(tmp_path / "theirs")
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, target_modules=ATTENTION))
    train(model, tiny_batch)
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"adapter of a checkpoint of transformers: load it as peft\.PeftModel"):
        DetrPanopticForSegmentation.from_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(masks_of(loaded, tiny_batch), masks_of(model, tiny_batch))


def test_adapters_of_transformers_own_integration(base, tiny_batch, tmp_path, monkeypatch):
    # transformers 5.24 asks for peft 0.22, which has not been released; what it uses is in 0.21, too.
    monkeypatch.setattr(integration, "check_peft_version", lambda **_: None)
    before = masks_of(base, tiny_batch)
    model = copy.deepcopy(base)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["mask_head"]))
    train(model, tiny_batch)
    adapted = masks_of(model, tiny_batch)
    assert not torch.equal(adapted, before)
    model.save_pretrained(tmp_path)
    model.disable_adapters()
    assert torch.equal(masks_of(model, tiny_batch), before)
    fresh = copy.deepcopy(base)
    fresh.load_adapter(str(tmp_path))
    assert torch.equal(masks_of(fresh, tiny_batch), adapted)
