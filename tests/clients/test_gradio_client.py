"""A program that calls the page through `gradio_client`, as the page's API describes it."""

import gc
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_panoptic import Predictor
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.scenes import make_scene
from detr_panoptic.segment_ids import rgb_to_ids

pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def client(predictor, tmp_path_factory):
    from detr_panoptic.app import launch

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        warnings.simplefilter("ignore", ResourceWarning)  # Gradio makes event loops that nobody closes
        page = launch(predictor, block=False)
        folder = tmp_path_factory.mktemp("downloads")
        client = gradio_client.Client(page.local_url, verbose=False, download_files=str(folder))
        yield client
        client.close()
        page.close(verbose=False)
        gc.collect()


@pytest.fixture
def scene(tmp_path):
    file = tmp_path / "scene.png"
    make_scene(77_000_003, height=128, width=160)["image"].save(file)
    return file


def test_the_api_names_what_comes_back(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/segment", "/segment_files"]
    parameters = [[p["parameter_name"] for p in endpoint["parameters"]] for endpoint in endpoints.values()]
    assert parameters == [[first, "task", "threshold", "tiles"] for first in ("image", "uploads")]
    returns = [[r["label"].split()[0] for r in endpoint["returns"]] for endpoint in endpoints.values()]
    assert returns == [["Segments", "Attention", "Scores", "Segment"], ["Results", "Segment"]]


@pytest.mark.parametrize("options", [{"task": "instance", "threshold": 0.5}, {}])
def test_segments_and_files(client, predictor, scene, options):
    picture = gradio_client.handle_file(str(scene))
    segments, attention, table, files = client.predict(image=picture, api_name="/segment", **options)
    task = options.get("task", "panoptic")
    expected = predictor(scene, task=task, threshold=options.get("threshold"))
    assert len(segments["annotations"]) == len(table["data"]) == len(expected.segments) >= 1
    assert attention is None
    ids = next(f for f in files if f.endswith(".png") and not f.endswith("_overlay.png"))
    assert np.array_equal(rgb_to_ids(Image.open(ids)), expected.segmentation)
    listed = json.loads(Path(next(f for f in files if f.endswith(".json"))).read_text())
    assert [s["label"] for s in listed["segments_info"]] == [s.label for s in expected.segments]


def test_jobs_and_errors(client, scene):
    picture = gradio_client.handle_file(str(scene))
    results, archive = client.predict(uploads=[picture, picture], api_name="/segment_files")
    assert [result["caption"].split(":")[0] for result in results] == ["scene.png"] * 2
    assert Path(archive).suffix == ".zip"
    jobs = [client.submit(picture, "panoptic", 0.5, False, api_name="/segment") for _ in range(2)]
    assert len({len(job.result()[0]["annotations"]) for job in jobs}) == 1
    with pytest.raises(gradio_client.exceptions.AppError, match="`task` must be panoptic, instance or semantic"):
        client.predict(picture, "nothing", 0.5, False, api_name="/segment")
    with pytest.raises(Exception, match="403 Forbidden"):  # addresses are not fetched (docs/app.md)
        client.predict(gradio_client.handle_file("https://example.com/a.png"), api_name="/segment")
