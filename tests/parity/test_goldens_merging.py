"""The paper's merging against what the reference returned."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr_panoptic.panoptic_merging import ImageSizes
from tests.merging import merge_paper

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = json.loads((GOLDENS / "panoptic_merging.json").read_text())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_maps_and_segments_equal_the_reference(case):
    expected, tensors = CASES[case], load_file(GOLDENS / "panoptic_merging.safetensors")
    processed, target = tuple(expected["processed_size"]), tuple(expected["target_size"])
    result = merge_paper(
        tensors[f"{case}.logits"],
        tensors[f"{case}.masks"],
        ImageSizes(processed, processed, target),
        threshold=expected["threshold"],
        stuff_label_ids=expected["stuff_labels"],
    )
    # The reference counts from 0 and has no void.
    void_or_shifted = tensors[f"{case}.ids"] + bool(expected["segments_info"])
    assert torch.equal(result["segmentation"], void_or_shifted.int())
    assert [(s["id"], s["label_id"], s["area"], s["was_fused"]) for s in result["segments_info"]] == [
        (s["id"] + 1, s["category_id"], s["area"], not s["isthing"]) for s in expected["segments_info"]
    ]
