"""Write the model card of the bundled checkpoint: model_card.md, and README.md beside the weights.

python scripts/make_model_card.py             # from the numbers of the last measurement
python scripts/make_model_card.py --measure   # measure again first: 500 scenes, about seven minutes on one CPU core

The numbers are those of `detr_panoptic.evaluate` with its defaults, stored in metrics.json beside the weights.
"""

import argparse
import json
import sys
from pathlib import Path

from detr_panoptic import DetrPanopticForSegmentation, Evaluation, PanopticData, evaluate
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.scenes import SCENE_CATEGORIES, UNSEEN_SEED, scenes_dataset
from detr_panoptic.sharing import CardFacts, MeasuredQuality, build_card

CARDS = (Path(__file__).parents[1] / "model_card.md", BUNDLED / "README.md")
METRICS = BUNDLED / "metrics.json"
SCENES = 500
USAGE = """
from detr_panoptic import Predictor
from detr_panoptic.checkpoints import BUNDLED

prediction = Predictor.from_pretrained(BUNDLED)("scene.png")
prediction.draw().save("overlay.png")
"""
DATA = {
    "training": "6 000 generated scenes of 192x192 pixels and 35 400 of 256x256 (detr_panoptic.scenes). A program "
    "painted them: no photographs, no people, nothing collected.",
    "evaluation": f"{SCENES} other generated scenes of 256x256 pixels.",
}
RECIPE = (
    "configs/scenes.yaml      192 pixels, backbone pretrained on ImageNet, one CPU core",
    "configs/scenes_256.yaml  256 pixels, one CPU core",
    "configs/scenes_320.yaml  256 pixels, enlarged to 320, one H200 GPU and one CPU core",
    "scripts/ship_checkpoint.py  half precision",
)


def measure() -> Evaluation:
    """Evaluates the bundled checkpoint on scenes that it was not trained on."""
    scenes = PanopticData(scenes_dataset(SCENES, seed=UNSEEN_SEED), SCENE_CATEGORIES)
    return evaluate(BUNDLED, scenes)


def make_card() -> str:
    """Returns the text of the card."""
    model = DetrPanopticForSegmentation.from_pretrained(BUNDLED)
    quality = MeasuredQuality.of(METRICS, dataset="generated scenes")
    facts = CardFacts(name="detr-panoptic-scenes", usage=USAGE, data=DATA, recipe=RECIPE, quality=quality)
    return str(build_card(model, facts))


def main() -> int:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure again first")
    if parser.parse_args().measure:
        evaluation = measure()
        print(evaluation)
        METRICS.write_text(json.dumps(evaluation.metrics, indent=1) + "\n", encoding="utf-8")
    for path in CARDS:
        path.write_text(make_card(), encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
