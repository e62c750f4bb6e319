"""Ray Data, with the code of docs/scale.md: a worker that dies loses and doubles nothing."""

import json
import pickle
import re
from pathlib import Path

import pytest

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Predictor
from detr_panoptic.scenes import make_scene, scenes_dataset

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
COUNT = 12
# What the page does, and the first of the two workers kills itself in its second batch, once.
DIES = """
class Mortal(Segmenter):
    def __call__(self, batch):
        import os, pathlib

        with open("calls", "a") as file:
            file.write("x")
        if os.path.getsize("calls") == 3:
            os._exit(1)
        return super().__call__(batch)
"""


def test_a_predictor_can_be_pickled():
    predictor = Predictor.from_pretrained(BUNDLED, device="cpu")
    copy = pickle.loads(pickle.dumps(predictor))
    image = make_scene(3, height=96, width=128)["image"]
    assert (copy(image).segmentation == predictor(image).segmentation).all()


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_that_dies_loses_and_doubles_nothing(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    import pyarrow.dataset

    (tmp_path / "holiday").mkdir()
    (tmp_path / "my_model").symlink_to(BUNDLED)
    for number, scene in enumerate(scenes_dataset(COUNT, seed=5, height=96, width=128)):
        scene["image"].save(tmp_path / "holiday" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1]
    code = code.replace("\n\nimages =", f"\n{DIES}\n\nimages =").replace(
        "(Segmenter, batch_size=8", "(Mortal, batch_size=2"
    )
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    finally:
        ray.shutdown()
    assert (tmp_path / "calls").stat().st_size > COUNT // 2  # a batch was computed again
    rows = pyarrow.dataset.dataset(tmp_path / "index").to_table().to_pylist()
    assert sorted(Path(row["path"]).stem for row in rows) == sorted(map(str, range(COUNT)))
    predictor = Predictor.from_pretrained(BUNDLED, device="cpu")
    for row in rows:
        stem = row["path"].strip("/").replace("/", "_")  # of the whole path: two folders may share a name
        content = json.loads((tmp_path / "segments" / f"{stem}.json").read_text())
        expected = predictor(row["path"])
        assert len(content["segments_info"]) == row["segments"] == len(expected.segments)
        assert [s["area"] for s in content["segments_info"]] == [s.area for s in expected.segments]
