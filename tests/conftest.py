"""What several tests share: the tiny model, a padded batch of it, and where real photographs are."""

import os
from pathlib import Path

import pytest
import torch

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network, and none shall wait for it


def build_tiny(*, seed: int = 0, **overrides) -> DetrPanopticForSegmentation:
    """A tiny model with weights that are the same every time."""
    settings = {
        "backbone": "test_resnet",
        "hidden_size": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_heads": 4,
        "ffn_dim": 48,
        "num_queries": 5,
        "num_labels": 3,
        "stuff_label_ids": [2],
        "dropout": 0.0,
    }
    torch.manual_seed(seed)
    return DetrPanopticForSegmentation(DetrPanopticConfig(**(settings | overrides)))


@pytest.fixture
def tiny_model() -> DetrPanopticForSegmentation:
    return build_tiny().eval()


@pytest.fixture
def tiny_batch() -> dict:
    """Two images of 65x97 and 49x64 on one canvas, with three targets and one."""
    generator = torch.Generator().manual_seed(1)
    pixel_mask = torch.zeros(2, 65, 97, dtype=torch.int64)
    pixel_mask[0], pixel_mask[1, :49, :64] = 1, 1
    pixel_values = torch.randn(2, 3, 65, 97, generator=generator) * pixel_mask[:, None]
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": tiny_labels(generator)}


def tiny_labels(generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    labels = []
    for count, (height, width) in ((3, (65, 97)), (1, (49, 64))):
        owner = torch.randint(count + 1, (height // 8 + 1, width // 8 + 1), generator=generator)
        owner = owner.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width]
        labels.append(
            {
                "class_labels": torch.randint(3, (count,), generator=generator),
                "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.1,
                "masks": torch.stack([owner == i for i in range(count)]),
            }
        )
    return labels


@pytest.fixture(scope="session")
def coco_folder() -> Path:
    """A folder with real photographs in COCO panoptic layout; tests that want it skip without."""
    folder = os.environ.get("DETR_PANOPTIC_COCO")
    if folder is None:
        pytest.skip("DETR_PANOPTIC_COCO names no folder with COCO panoptic photographs")
    return Path(folder) / "coco_panoptic_100"
