"""What several tests share: the tiny model, a padded batch of it, and where real photographs are."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings
from PIL import Image

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from tests.hub_stand_in import Hub, library_talks_to_stand_in

FUZZ_FACTOR = int(os.environ.get("DETR_PANOPTIC_FUZZ", "1"))
"""How many times as many examples the tests in fuzz/ try; above 1 at random, and else the same ones every time."""
settings.register_profile("suite", deadline=None, derandomize=FUZZ_FACTOR == 1, print_blob=True)
settings.load_profile("suite")
NAMES = ("boat", "person", "sky-other-merged")  # labels of `model_folder`
CATEGORY_IDS = [9, 1, 187]


def build_tiny(*, seed: int = 0, **overrides) -> DetrPanopticForSegmentation:
    """A tiny model with weights that are the same every time."""
    settings: Any = {
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


@pytest.fixture(autouse=True, scope="session")
def no_prepared_models(tmp_path_factory) -> Iterator[None]:
    """An empty cache of graphs: with the user's, `Predictor` might choose another runtime than PyTorch."""
    folder = str(tmp_path_factory.mktemp("assets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", folder)
        patch.setenv("HF_ASSETS_CACHE", folder)  # for processes that tests start
        yield


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


def photo(size: tuple[int, int], *, seed: int) -> Image.Image:
    """Smooth noise, which has regions; sizes are (width, height)."""
    small = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A saved tiny model whose random queries disagree, so that photos get several segments."""
    folder = tmp_path_factory.mktemp("model")
    model = build_tiny(
        num_queries=13,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
        category_ids=CATEGORY_IDS,
        threshold=0.3,
    )
    processor = DetrPanopticImageProcessor.for_model(model.config, size={"shortest_edge": 64, "longest_edge": 97})
    photos = [processor(photo((71 + i, 53), seed=i), return_tensors="pt") for i in range(3)]
    with torch.no_grad():
        model.model.query_embeddings.weight.mul_(30)
        model.class_head.weight.mul_(100)
        model.mask_head.predictor.weight.mul_(400)
        embeddings = torch.cat([model.eval().model(**inputs).last_hidden_state for inputs in photos], dim=1)
        # Centered, so that the queries choose different classes.
        model.class_head.bias.copy_(-model.class_head.weight @ embeddings[0].mean(0))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def coco_folder() -> Path:
    """A folder with real photographs in COCO panoptic layout; tests that want it skip without."""
    folder = os.environ.get("DETR_PANOPTIC_COCO")
    if folder is None:
        pytest.skip("DETR_PANOPTIC_COCO names no folder with COCO panoptic photographs")
    return Path(folder) / "coco_panoptic_100"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A stand-in of the Hub, to which huggingface_hub talks in this process."""
    with library_talks_to_stand_in(monkeypatch, tmp_path / "hub_cache") as hub:
        yield hub
