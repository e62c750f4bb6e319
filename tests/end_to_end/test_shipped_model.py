"""The model that ships reaches what the documents say, on scenes that it has not seen."""

import pytest

from detr_panoptic.commands.demo import UNSEEN_SEED, load_shipped_model
from detr_panoptic.data import PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.scenes import SCENE_CATEGORIES
from detr_panoptic.scenes.dataset import scenes_dataset

SCENES = 500
SIDE = 256  # pixels
MODEL_SIDE = 320  # what the image processor makes of them
REACHED = {"overall": 0.721, "things": 0.563, "stuff": 0.931}  # docs/training.md
MARGIN = 0.02


@pytest.mark.slow
def test_the_shipped_model_reaches_its_pq_on_unseen_scenes():
    model, processor = load_shipped_model()
    assert processor.threshold == 0.85  # of the paper's evaluation
    assert dict(processor.size) == {"shortest_edge": MODEL_SIDE, "longest_edge": MODEL_SIDE}
    scenes = scenes_dataset(SCENES, seed=UNSEEN_SEED, height=SIDE, width=SIDE)
    data = PanopticData(scenes, SCENE_CATEGORIES)
    quality = evaluate((model, processor), data, average_precision=False, progress=False).quality
    for name, reached in REACHED.items():
        assert getattr(quality, name).pq > reached - MARGIN, (name, quality)
