"""The model that ships reaches what the documents say, on scenes that it has not seen."""

import pytest

from detr_panoptic.commands.demo import UNSEEN_SEED, load_shipped_model
from detr_panoptic.evaluation import evaluate_model
from detr_panoptic.evaluation.panoptic_quality import panoptic_quality
from detr_panoptic.scenes import SCENE_CATEGORIES
from detr_panoptic.scenes.dataset import scenes_dataset

SCENES = 500
SIDE = 256  # pixels
MODEL_SIDE = 320  # what the image processor makes of them
REACHED = {"All": 0.721, "Things": 0.563, "Stuff": 0.931}  # docs/training.md
MARGIN = 0.02


@pytest.mark.slow
def test_the_shipped_model_reaches_its_pq_on_unseen_scenes():
    model, processor = load_shipped_model()
    assert processor.threshold == 0.85  # of the paper's evaluation
    assert dict(processor.size) == {"shortest_edge": MODEL_SIDE, "longest_edge": MODEL_SIDE}
    scenes = scenes_dataset(SCENES, seed=UNSEEN_SEED, height=SIDE, width=SIDE)
    stats = evaluate_model(model, processor, scenes, SCENE_CATEGORIES)
    found = panoptic_quality(stats, category_ids=SCENE_CATEGORIES.category_ids, is_thing=SCENE_CATEGORIES.is_thing)
    for name, reached in REACHED.items():
        assert found[name]["pq"] > reached - MARGIN, (name, found[name])
