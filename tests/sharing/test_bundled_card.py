"""The card of the bundled checkpoint, and the numbers in it."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_model_card.py"))
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


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.promise
def test_the_bundled_checkpoint_reaches_the_numbers_of_its_card():
    evaluation = SCRIPT["measure"]()
    for group, stored in METRICS["panoptic_quality"].items():
        assert evaluation.metrics["panoptic_quality"][group]["pq"] == pytest.approx(stored["pq"], abs=2e-3), group
    assert evaluation.ap["mask"]["ap"] == pytest.approx(METRICS["average_precision"]["mask"]["ap"], abs=2e-3)
