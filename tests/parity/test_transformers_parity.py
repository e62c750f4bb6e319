"""A DETR that transformers made and saved gives the same numbers here: random weights, a padded batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, PreTrainedModel, ResNetConfig

from detr_panoptic.checkpoints.conversion import convert_files, convert_state_dict
from detr_panoptic.checkpoints.names import check_names
from detr_panoptic.configuration_detr_panoptic import DetrPanopticConfig
from detr_panoptic.modeling_detr_panoptic import DetrPanopticForSegmentation

NUM_LABELS = 5
NUM_QUERIES = 7


def foreign_model(architecture: type[PreTrainedModel], *, timm: bool, dilation: bool = False) -> PreTrainedModel:
    """A small DETR in eval mode whose every tensor, batch norm's statistics too, is random."""
    if timm:
        backbone: Any = {"backbone": "resnet26" if dilation else "resnet18"}
    else:
        stages: Any = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
        stages |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
        backbone = {"use_timm_backbone": False, "backbone_config": ResNetConfig(**stages)}
    backbone |= {"num_labels": NUM_LABELS}
    config = DetrConfig(
        d_model=128,  # the least with which transformers' mask head works: 8 channels at its end
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=16,
        decoder_attention_heads=16,
        num_queries=NUM_QUERIES,
        dilation=dilation,
        **backbone,
    )
    model = architecture(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(1 + 0.1 * noise.abs())
            elif tensor.ndim == 1:
                tensor.copy_(0.1 * noise)
            elif name.endswith("query_position_embeddings.weight"):
                tensor.copy_(2 * noise)
            else:
                tensor.copy_(noise * (1.5 / tensor[0].numel()) ** 0.5)
    return model


@pytest.fixture(scope="module")
def padded_batch() -> dict[str, Tensor]:
    pixel_values = torch.randn(2, 3, 101, 131, generator=torch.Generator().manual_seed(5))
    pixel_mask = torch.zeros(2, 101, 131, dtype=torch.long)
    for i, (height, width) in enumerate(((101, 90), (64, 131))):
        pixel_mask[i, :height, :width] = 1
    return {"pixel_values": pixel_values * pixel_mask[:, None], "pixel_mask": pixel_mask}


@pytest.mark.parametrize(
    ("timm", "dilation"), [(True, False), (True, True), (False, False)], ids=["timm", "timm-dc5", "own-resnet"]
)
@torch.no_grad()
def test_panoptic_model_gives_the_same_numbers(tmp_path: Path, padded_batch: dict[str, Tensor], timm, dilation):
    theirs = foreign_model(DetrForSegmentation, timm=timm, dilation=dilation)
    theirs.save_pretrained(tmp_path)
    ours = DetrPanopticForSegmentation.from_pretrained(tmp_path, mask_queries="all").eval()
    expected, output = theirs(**padded_batch), ours(**padded_batch)
    assert ours.config.num_heads == 16
    assert ours.config.dilation is dilation
    for name in ("logits", "pred_boxes", "pred_masks"):
        assert getattr(expected, name).std() > 0.01, name
        torch.testing.assert_close(getattr(output, name), getattr(expected, name), atol=1e-4, rtol=0, msg=name)


@torch.no_grad()
def test_detection_only_model_gives_the_same_detections(tmp_path: Path, padded_batch: dict[str, Tensor]):
    theirs = foreign_model(DetrForObjectDetection, timm=True)
    theirs.save_pretrained(tmp_path)
    converted = convert_files(tmp_path)
    ours = DetrPanopticForSegmentation(DetrPanopticConfig(**converted.config_kwargs)).eval()
    converted.check_fit(ours.state_dict())
    ours.load_state_dict(converted.state_dict, strict=False)
    expected, output = theirs(**padded_batch), ours(**padded_batch)
    assert converted.is_detection_only
    for name in ("logits", "pred_boxes"):
        torch.testing.assert_close(getattr(output, name), getattr(expected, name), atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("architecture", [DetrForSegmentation, DetrForObjectDetection])
@pytest.mark.parametrize("timm", [True, False])
def test_names_in_memory_and_in_files_mean_the_same(tmp_path: Path, architecture, timm):
    model = foreign_model(architecture, timm=timm)
    model.save_pretrained(tmp_path, max_shard_size="5MB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    from_files = convert_files(tmp_path)
    from_memory = convert_state_dict(model.state_dict(), model.config.to_dict())
    assert from_files.config_kwargs == from_memory.config_kwargs
    check_names(from_files.state_dict, from_memory.state_dict)
    for name, tensor in from_files.state_dict.items():
        assert torch.equal(tensor, from_memory.state_dict[name]), name
