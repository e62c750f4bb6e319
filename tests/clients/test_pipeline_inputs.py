"""What people pass to `pipeline("image-segmentation")`: datasets, generators, addresses, base64 text."""

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from tests.conftest import photo

COUNT = 5


@pytest.fixture(scope="module")
def segment(model_folder):
    return pipeline("image-segmentation", model=str(model_folder), threshold=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        photo((71 + 3 * i, 53), seed=i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return [str(folder / f"{i}.png") for i in range(COUNT)]


@pytest.fixture(scope="module")
def dataset(paths):
    return Dataset.from_dict({"image": paths, "number": range(COUNT)}).cast_column("image", Image())


def comparable(segments):
    return [(s["score"], s["label"], np.array(s["mask"]).tolist()) for s in segments]


@pytest.fixture(scope="module")
def expected(segment, paths):
    found = [comparable(segment(path)) for path in paths]
    assert all(found)
    return found


def test_a_column_of_a_dataset(segment, dataset, expected):
    rows = KeyDataset(dataset, "image")
    assert [comparable(found) for found in segment(rows)] == expected
    batched = list(segment(rows, batch_size=4))
    assert len(batched) == COUNT
    assert all(s["mask"].size == dataset[i]["image"].size for i, found in enumerate(batched) for s in found)
    assert [comparable(found) for found in segment(dataset["image"])] == expected


@pytest.mark.slow  # starts workers
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers(segment, dataset, expected):
    found = segment(KeyDataset(dataset, "image"), num_workers=2, batch_size=1)
    assert [comparable(segments) for segments in found] == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_generator_is_answered_as_it_goes(segment, dataset, expected, batch_size):
    asked = []

    def pictures():
        for row in dataset.to_iterable_dataset():
            asked.append(row["number"])
            yield row["image"]

    results = iter(segment(pictures(), batch_size=batch_size))
    first = next(results)
    assert len(asked) <= 2 * batch_size  # not the whole stream
    found = [first, *results]
    assert len(found) == COUNT
    if batch_size == 1:
        assert [comparable(segments) for segments in found] == expected


def test_paths_and_text(segment, folder, paths, expected):
    assert [comparable(found) for found in segment(paths)] == expected
    assert comparable(segment(folder / "0.png")) == expected[0]
    text = base64.b64encode((folder / "0.png").read_bytes()).decode()
    for picture in (text, f"data:image/png;base64,{text}"):
        assert comparable(segment(picture)) == expected[0]


def test_addresses(segment, folder, expected):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        found = segment([f"{address}/0.png", f"{address}/1.png"], timeout=30.0)
        assert [comparable(segments) for segments in found] == expected[:2]
        with pytest.raises(ValueError, match=r"absent\.png"):
            segment(f"{address}/absent.png")
    finally:
        server.shutdown()
        server.server_close()


def test_arrays_and_tensors(segment, dataset, expected):
    pixels = np.array(dataset[0]["image"])
    for picture in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert comparable(segment(picture)) == expected[0]


def test_subtasks_by_name(segment, dataset, model_folder):
    image = dataset[0]["image"]
    panoptic, instance, semantic = (segment(image, subtask=name) for name in ("panoptic", "instance", "semantic"))
    labels = [[s["label"] for s in found] for found in (panoptic, instance, semantic)]
    assert "sky-other-merged" not in labels[1]
    assert len(set(labels[2])) == len(labels[2])
    fixed = pipeline("image-segmentation", model=str(model_folder), subtask="semantic")
    assert comparable(fixed(image)) == comparable(semantic)
    with pytest.raises(ValueError, match="`subtask` must be panoptic, instance or semantic, got 'sem'"):
        segment(image, subtask="sem")


def test_a_saved_pipeline(segment, dataset, expected, tmp_path):
    segment.save_pretrained(tmp_path)
    again = pipeline("image-segmentation", model=str(tmp_path), threshold=0.0)
    assert comparable(again(dataset[0]["image"])) == expected[0]
