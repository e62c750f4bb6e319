"""The card of the bundled checkpoint, and the numbers in it."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.checkpoints import BUNDLED

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_model_card.py"))
REACHED = {"all": 0.721, "things": 0.563, "stuff": 0.931}
MARGIN = 0.02
METRICS = json.loads(SCRIPT["METRICS"].read_text())


@pytest.mark.parametrize("path", SCRIPT["CARDS"], ids=lambda path: path.name)
def test_the_card_is_current(path):
    assert path.read_text(encoding="utf-8") == SCRIPT["make_card"](), "run scripts/make_model_card.py"


def test_its_numbers_are_those_that_evaluate_measured():
    text = (ROOT / "model_card.md").read_text(encoding="utf-8")
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    stated = {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}
    measured = {group: round(100 * row["pq"], 2) for group, row in METRICS["panoptic_quality"].items()}
    assert list(stated.values()) == list(measured.values())
    assert f"{METRICS['images']} images, threshold {METRICS['settings']['threshold']}" in text
    assert METRICS["images"] == SCRIPT["SCENES"]


def test_its_numbers_are_those_of_the_documents():
    """A weaker checkpoint does not pass because its card says so."""
    assert METRICS["images"] == 500
    for group, pq in REACHED.items():
        assert METRICS["panoptic_quality"][group]["pq"] > pq - MARGIN, group
    processor = DetrPanopticImageProcessor.from_pretrained(BUNDLED)
    assert processor.threshold == 0.85  # of the paper's evaluation
    assert dict(processor.size) == {"shortest_edge": 320, "longest_edge": 320}


@pytest.mark.slow
@pytest.mark.promise
def test_the_bundled_checkpoint_reaches_the_numbers_of_its_card():
    evaluation = SCRIPT["measure"]()
    for group, stored in METRICS["panoptic_quality"].items():
        assert evaluation.metrics["panoptic_quality"][group]["pq"] == pytest.approx(stored["pq"], abs=2e-3), group
    assert evaluation.ap["mask"]["ap"] == pytest.approx(METRICS["average_precision"]["mask"]["ap"], abs=2e-3)
