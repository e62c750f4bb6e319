"""The page over real connections: its answers, and requests that it must refuse."""

import gc
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from detr_panoptic import Predictor, explain
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.scenes import make_scene
from detr_panoptic.segment_ids import rgb_to_ids

gradio = pytest.importorskip("gradio")
API = "/gradio_api"
META = {"_type": "gradio.FileData"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """Gradio's folder."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def client(predictor, cache) -> Iterator[httpx.Client]:
    from detr_panoptic.app import launch

    del cache  # only has to be there before the page
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Gradio makes event loops that nobody closes
        page = launch(predictor, max_file_size="1mb", max_pixels=1_000_000, block=False)
        gc.collect()
    try:
        with httpx.Client(base_url=page.local_url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        page.close(verbose=False)


@pytest.fixture
def scene(tmp_path) -> Path:
    file = tmp_path / "scene.png"
    make_scene(77_000_003, height=224, width=320)["image"].save(file)
    return file


def upload(client: httpx.Client, content: bytes, name: str = "picture.png") -> dict:
    path = client.post(f"{API}/upload", files={"files": (name, content)}).raise_for_status().json()[0]
    return {"path": path, "orig_name": name, "meta": META}


def ask(client: httpx.Client, name: str, data: list, **extra) -> httpx.Response:
    ids = {entry["api_name"]: entry["id"] for entry in client.get("/config").json()["dependencies"]}
    body = {"data": data, "fn_index": ids[name], "session_hash": "test", **extra}
    return client.post(f"{API}/queue/join", json=body)


def answer(client: httpx.Client, name: str, data: list, **extra) -> dict:
    """The message that ends a request: `success`, and in `output` the `data` or an `error`."""
    ask(client, name, data, **extra).raise_for_status()
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": "test"}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def fetched(client: httpx.Client, file: dict) -> bytes:
    return client.get(httpx.URL(file["url"]).raw_path.decode()).raise_for_status().content


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header claims that size; it has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_segments_are_those_of_the_predictor(client, predictor, scene, task):
    message = answer(client, "segment", [upload(client, scene.read_bytes(), scene.name), task, 0.5])
    assert message["success"], message
    segments, attention, table, files = message["output"]["data"]
    expected = predictor(scene, task=task, threshold=None if task == "semantic" else 0.5)
    assert len(segments["annotations"]) == len(table["data"]) == len(expected.segments) >= 2
    for annotation, segment in zip(segments["annotations"], expected.segments, strict=True):
        assert annotation["label"].startswith(segment.label)
        drawn = np.asarray(Image.open(io.BytesIO(fetched(client, annotation["image"]))))[..., 3] > 0
        assert np.array_equal(drawn, expected.segmentation == segment.id)
    assert attention is None
    listed, ids, _ = sorted(files, key=lambda file: ("json" not in file["path"], file["path"]))
    assert np.array_equal(rgb_to_ids(Image.open(io.BytesIO(fetched(client, ids)))), expected.segmentation)
    content = json.loads(fetched(client, listed))
    assert content["image"] == "scene.png"
    assert [entry["area"] for entry in content["segments_info"]] == [s.area for s in expected.segments]


def test_a_selected_segment_shows_where_the_model_looked(client, predictor, scene):
    data = [upload(client, scene.read_bytes()), "panoptic", 0.5]
    message = answer(client, "explain", data, event_data={"index": 1, "value": ""})
    sheet = Image.open(io.BytesIO(fetched(client, message["output"]["data"][0]))).convert("RGB")
    expected = explain(predictor, scene, threshold=0.5, segments=[2]).draw()
    assert sheet.size == expected.size
    assert np.abs(np.asarray(sheet).astype(int) - np.asarray(expected)).mean() < 6  # WebP, and another title
    missing = answer(client, "explain", data, event_data={"index": 99, "value": ""})
    assert "`segments`" in missing["output"]["error"]
    assert (
        "semantic"
        in answer(client, "explain", [data[0], "semantic", 0.5], event_data={"index": 0, "value": ""})["output"][
            "error"
        ]
    )


def test_an_example_is_a_picture_of_the_page(client):
    (examples,) = [c for c in client.get("/config").json()["components"] if c["type"] == "dataset"]
    assert len(examples["props"]["samples"]) == 4


@pytest.mark.parametrize(
    ("setting", "part"),
    [(["nothing", 0.5], "`task`"), (["panoptic", 7], "`threshold`"), (["panoptic", "x"], "`threshold`")],
)
def test_wrong_settings_get_a_message(client, scene, setting, part):
    message = answer(client, "segment", [upload(client, scene.read_bytes()), *setting])
    assert part in message["output"]["error"]


def test_without_an_image_there_is_nothing(client):
    assert answer(client, "segment", [None, "panoptic", 0.5])["output"]["data"][:2] == [None, None]


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=/etc/passwd",
        f"{API}/file=pyproject.toml",
        f"{API}/file=%2e%2e/%2e%2e/etc/passwd",
        f"{API}/file/etc/passwd",
        f"{API}/file=file:///etc/passwd",
        f"{API}/file=http://127.0.0.1:1/",
        f"{API}/file=https://example.com/",
        f"{API}/proxy=http://127.0.0.1:1/",
        f"{API}/custom_component/1/client/component/style.css",
        "/static/%2e%2e/%2e%2e/%2e%2e/__init__.py",
        "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
        "/static//etc/passwd",
    ],
)
def test_no_file_of_the_server_and_no_address_is_served(client, path):
    response = client.get(path)
    assert response.status_code in (403, 404)
    assert "root:" not in response.text
    assert "import" not in response.text


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["segment", "explain"])
def test_no_file_of_the_server_is_read_or_copied(client, cache, tmp_path, place, name):
    """Gradio looks for files in every input, and serves what it copies."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    for path in (str(secret), "pyproject.toml", "/etc/passwd"):
        data = [None, "panoptic", 0.5]
        data[place] = {"path": path, "meta": META}
        assert answer(client, name, data, event_data={"index": 0, "value": ""})["success"] is False
        assert client.post(f"{API}/run/{name}", json={"data": data}).status_code >= 400
    assert not [path for path in cache.rglob("*") if path.name in ("secret.png", "pyproject.toml", "passwd")]


@pytest.fixture
def own_server() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and the requests that it got."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_address_is_fetched(client, own_server, place):
    address, requests = own_server
    for path in (address, "https://example.com/picture.png", "HTTP://127.0.0.1/x"):
        data = [None, "panoptic", 0.5]
        data[place] = {"path": path, "meta": META}
        assert ask(client, "segment", data).status_code == 403
        for way in ("run", "call", "api"):
            assert client.post(f"{API}/{way}/segment", json={"data": data}).status_code in (403, 404)
        nested = {"data": [[{"x": data[place]}], "panoptic", 0.5]}
        assert client.post(f"{API}/run/segment", json=nested).status_code == 403
    picture = {"path": "x.png", "url": address, "meta": META}
    assert answer(client, "segment", [picture, "panoptic", 0.5])["success"] is False
    assert requests == []


def test_a_request_that_is_not_json_is_refused(client):
    assert client.post(f"{API}/queue/join", content=b"{").status_code == 422


def test_a_file_that_is_too_large_is_refused(client, cache):
    response = client.post(f"{API}/upload", files={"files": ("large.png", bytes(1_100_000))})
    assert response.status_code == 413
    assert not list(cache.rglob("large.png"))


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (bomb(1001, 1000), "more than 1,000,000 pixels"),
        (bomb(10_000, 10_000), "more than 1,000,000 pixels"),
        (bomb(60_000, 60_000), "more than 1,000,000 pixels"),
        (bomb(9, 9), "truncated"),
        (b"not an image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would start Ghostscript
    ],
    ids=["limit", "large", "bomb", "hollow", "text", "postscript"],
)
def test_what_cannot_be_decoded_gets_a_message_without_paths(client, cache, content, part):
    message = answer(client, "segment", [upload(client, content, "odd.png"), "panoptic", 0.5])
    assert part in message["output"]["error"]
    assert "odd.png" in message["output"]["error"]
    assert str(cache) not in message["output"]["error"]


def test_limits_must_be_positive(predictor):
    from detr_panoptic.app import build_page

    with pytest.raises(ValueError, match="`max_pixels` must be positive, got 0"):
        build_page(predictor, max_pixels=0)


def test_the_space_is_described_and_needs_what_the_package_needs():
    space = ROOT / "space"
    _, front, _ = (space / "README.md").read_text().split("---\n", 2)
    description = yaml.safe_load(front)
    assert description["sdk"] == "gradio"
    assert (space / description["app_file"]).is_file()
    assert len(description["short_description"]) <= 60  # the Hub refuses more
    (needed,) = map(Requirement, (space / "requirements.txt").read_text().splitlines())
    assert (needed.name, needed.extras) == ("detr-panoptic", {"demo"})
    extra = re.search(r'^demo = \["(gradio[^"]*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert Requirement(extra[1]).specifier.contains(description["sdk_version"])


@pytest.mark.slow  # starts an interpreter and imports everything
def test_the_command_serves_the_page_and_deletes_uploads_when_it_ends(tmp_path):
    command = [sys.executable, "-m", "detr_panoptic.commands", "app"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            address = re.search(r"Open (http://\S+)", process.stdout.readline())[1]
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
                assert "gradio" in client.get("/").text
                file = Path(upload(client, b"x")["path"])
            assert file.is_relative_to(tmp_path)
            assert file.is_file()
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0
    assert not file.exists()
