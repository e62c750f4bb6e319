"""Single modules against numbers of facebookresearch/detr (tests/goldens/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr_panoptic.mask_head import MaskAttention, MaskHead
from detr_panoptic.transformer import sine_position_encoding
from tests.goldens.formula_weights import formula_input, formula_weight

GOLDENS = load_file(Path(__file__).parents[1] / "goldens" / "modules.safetensors")
MAPS = {
    "odd": [(7, 11), (13, 21), (26, 41), (51, 82)],
    "even": [(5, 6), (10, 12), (20, 24), (40, 48)],
}
HEAD_NAMES = {
    "blocks.0.conv": "lay1",
    "blocks.0.norm": "gn1",
    "blocks.1.conv": "lay2",
    "blocks.1.norm": "gn2",
    "predictor": "out_lay",
    **{f"stages.{i}.adapter": f"adapter{i + 1}" for i in range(3)},
    **{f"stages.{i}.conv": f"lay{i + 3}" for i in range(3)},
    **{f"stages.{i}.norm": f"gn{i + 3}" for i in range(3)},
}


def formula_tensor(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(formula_input(name, shape))


def load_formula_weights(module: torch.nn.Module, prefix: str, names: dict[str, str]) -> None:
    state = module.state_dict()
    for ours in state:
        layer, leaf = ours.rsplit(".", 1)
        state[ours] = torch.from_numpy(formula_weight(f"{prefix}.{names[layer]}.{leaf}", tuple(state[ours].shape)))
    module.load_state_dict(state)


def test_sine_position_encoding():
    encoded = sine_position_encoding(GOLDENS["position.pixel_mask"].bool(), 128)
    torch.testing.assert_close(encoded, GOLDENS["position.sine"], atol=1e-5, rtol=0)


def test_mask_attention():
    attention = MaskAttention(128, 8)
    load_formula_weights(attention, "bbox_attention", {"q_proj": "q_linear", "k_proj": "k_linear"})
    mask = GOLDENS["attention.pixel_mask"].bool()
    maps = attention(GOLDENS["attention.queries"], GOLDENS["attention.memory"].permute(0, 2, 3, 1), mask)
    torch.testing.assert_close(maps, GOLDENS["attention.maps"], atol=1e-6, rtol=0)
    torch.testing.assert_close(maps.sum((2, 3, 4)), torch.ones(2, 5))


@pytest.mark.parametrize("case", MAPS)
def test_mask_head(case):
    head = MaskHead(128, 8, (1024, 512, 256))
    load_formula_weights(head, "mask_head", HEAD_NAMES)
    (h, w), *skip_sizes = MAPS[case]
    scores = formula_tensor(f"mask_head.{case}.attention_scores", 2, 5, 8 * h * w)
    attention = (3 * scores).softmax(-1).view(10, 8, h, w)
    skips = [
        formula_tensor(f"mask_head.{case}.stride{stride}", 2, channels, *size)
        for stride, channels, size in zip((16, 8, 4), (1024, 512, 256), skip_sizes, strict=True)
    ]
    projected = formula_tensor(f"mask_head.{case}.projected", 2, 128, h, w)
    masks = head(projected, attention, torch.arange(2).repeat_interleave(5), skips)
    torch.testing.assert_close(masks, GOLDENS[f"mask_head.{case}.masks"].view_as(masks), atol=1e-4, rtol=0)
