"""Panoptic quality against what the official evaluator returned."""

import json
from pathlib import Path

from detr_panoptic.evaluation import evaluate_files

GOLDENS = Path(__file__).parents[1] / "goldens" / "panoptic_quality"


def test_quality_equals_the_official_evaluator_to_the_last_bit():
    expected = json.loads((GOLDENS / "expected.json").read_text())
    expected["per_class"] = {int(category_id): values for category_id, values in expected["per_class"].items()}
    assert evaluate_files(GOLDENS / "truth.json", GOLDENS / "prediction.json") == expected
