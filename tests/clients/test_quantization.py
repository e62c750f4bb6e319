"""Weights in int8, by torchao and by PyTorch's older way."""

import copy
from typing import Any

import pytest
import torch
from transformers import DetrConfig, DetrForSegmentation, TorchAoConfig, pipeline

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from tests.conftest import build_tiny, photo

torchao = pytest.importorskip("torchao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base():
    return build_tiny(hidden_size=64, ffn_dim=64).eval()


@pytest.fixture
def folder(base, tmp_path):
    base.save_pretrained(tmp_path / "base")
    processor = DetrPanopticImageProcessor.for_model(base.config, size={"shortest_edge": 64, "longest_edge": 97})
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def segment(model, batch):
    with torch.no_grad():
        return model(batch["pixel_values"], batch["pixel_mask"], mask_queries="all")


def is_int8(linear):
    weight = linear.weight() if callable(linear.weight) else linear.weight
    return "Int8Tensor" in type(weight).__name__ or weight.dtype == torch.qint8


def check(model, base, batch):
    """Every linear layer of the transformer has weights in int8, and predictions move by little."""
    linears = [model.model.encoder.layers[0].self_attn.q_proj, model.model.decoder.layers[1].linear2, model.class_head]
    assert all(map(is_int8, linears))
    found, expected = segment(model, batch), segment(base, batch)
    for name, tolerance in (("logits", 0.1), ("pred_boxes", 0.02), ("pred_masks", 0.05)):
        assert 0 < (found[name] - expected[name]).abs().max() < tolerance, name


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(base, tiny_batch, kind):
    model = copy.deepcopy(base)
    torchao.quantize_(model, getattr(torchao, kind)())
    check(model, base, tiny_batch)


def test_pytorchs_dynamic_quantization(base, tiny_batch):
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(base), {torch.nn.Linear}, dtype=torch.qint8)
    check(model, base, tiny_batch)


def test_transformers_quantizes_saves_and_loads(base, folder, tiny_batch, tmp_path):
    config = TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig())
    model = DetrPanopticForSegmentation.from_pretrained(folder, quantization_config=config)
    check(model, base, tiny_batch)
    model.save_pretrained(tmp_path / "int8")
    again = DetrPanopticForSegmentation.from_pretrained(tmp_path / "int8")
    check(again, base, tiny_batch)
    assert torch.equal(segment(again, tiny_batch).pred_masks, segment(model, tiny_batch).pred_masks)


def test_a_pipeline_of_quantized_weights(folder):
    config = TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig())
    built = pipeline("image-segmentation", model=str(folder), model_kwargs={"quantization_config": config})
    assert is_int8(built.model.class_head)
    assert len(built(photo((71, 53), seed=0), threshold=0.0)) > 0


def test_transformers_detr_is_quantized_too(tiny_batch, tmp_path):
    sizes: Any = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 3}
    sizes |= {"backbone": "test_resnet"}
    DetrForSegmentation(DetrConfig(**sizes)).save_pretrained(tmp_path)
    config = TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig())
    base = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    check(DetrPanopticForSegmentation.from_pretrained(tmp_path, quantization_config=config), base, tiny_batch)


def test_adapters_are_trained_on_quantized_weights(folder, tiny_batch):
    peft = pytest.importorskip("peft")
    config = TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig())
    model = DetrPanopticForSegmentation.from_pretrained(folder, quantization_config=config)
    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.train()(**tiny_batch).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and gradient is not None for name, gradient in trained.items())
