"""The bundled checkpoint reaches the documented PQ on scenes that it was not trained on."""

import pytest

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.inference import load
from detr_panoptic.scenes import SCENE_CATEGORIES, UNSEEN_SEED
from detr_panoptic.scenes.dataset import scenes_dataset

SCENES = 500
SIDE = 256  # pixels
MODEL_SIDE = 320  # what the image processor makes of them
REACHED = {"overall": 0.721, "things": 0.563, "stuff": 0.931}  # docs/training.md
MARGIN = 0.02


@pytest.mark.slow
@pytest.mark.promise
def test_the_bundled_checkpoint_reaches_its_pq_on_unseen_scenes():
    model, processor = load(BUNDLED, device="cpu")
    assert processor.threshold == 0.85  # of the paper's evaluation
    assert dict(processor.size) == {"shortest_edge": MODEL_SIDE, "longest_edge": MODEL_SIDE}
    scenes = scenes_dataset(SCENES, seed=UNSEEN_SEED, height=SIDE, width=SIDE)
    data = PanopticData(scenes, SCENE_CATEGORIES)
    quality = evaluate((model, processor), data, average_precision=False, progress=False).quality
    for name, reached in REACHED.items():
        assert getattr(quality, name).pq > reached - MARGIN, (name, quality)
