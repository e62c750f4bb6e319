"""The page over real connections: its answers, and requests that it must refuse."""

import errno
import gc
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from detr_panoptic import Predictor, explain
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Prediction
from detr_panoptic.scenes import make_scene
from detr_panoptic.segment_ids import rgb_to_ids
from tests.inference.test_video import write_clip

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


@contextmanager
def serving(model) -> Iterator[httpx.Client]:
    """A client of the page of a model."""
    from detr_panoptic.app import launch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Gradio makes event loops that nobody closes
        page = launch(model, max_file_size="1mb", max_pixels=1_000_000, block=False)
        gc.collect()
    try:
        with httpx.Client(base_url=page.local_url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def client(predictor, cache) -> Iterator[httpx.Client]:
    del cache  # only has to be there before the page
    with serving(predictor) as client:
        yield client


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
    """The message that ends a request: `success`, in `output` the `data` or an `error`, and in `logs` the warnings."""
    ask(client, name, data, **extra).raise_for_status()
    logs = []
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": "test"}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "log":
                logs.append(message["log"])
            if message.get("msg") == "process_completed":
                return {**message, "logs": logs}
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
    message = answer(client, "segment", [upload(client, scene.read_bytes(), scene.name), task, 0.5, False])
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
    data = [upload(client, scene.read_bytes()), "panoptic", 0.5, False]
    message = answer(client, "explain", data, event_data={"index": 1, "value": ""})
    sheet = Image.open(io.BytesIO(fetched(client, message["output"]["data"][0]))).convert("RGB")
    expected = explain(predictor, scene, threshold=0.5, segments=[2]).draw()
    assert sheet.size == expected.size
    assert np.abs(np.asarray(sheet).astype(int) - np.asarray(expected)).mean() < 6  # WebP, and another title
    missing = answer(client, "explain", data, event_data={"index": 99, "value": ""})
    assert "`segments`" in missing["output"]["error"]
    assert (
        "semantic"
        in answer(client, "explain", [data[0], "semantic", 0.5, False], event_data={"index": 0, "value": ""})[
            "output"
        ]["error"]
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Eight frames of a camera that turns to the right."""
    scene = make_scene(11, height=128, width=256)["image"]
    pictures = [scene.crop((6 * k, 0, 6 * k + 128, 128)) for k in range(8)]
    return write_clip(tmp_path_factory.mktemp("video") / "clip.mp4", pictures)


def files_of(client: httpx.Client, message: dict) -> tuple[list[bytes], list[str], zipfile.ZipFile]:
    """What the gallery shows and says, and the ZIP file."""
    gallery, archive = message["output"]["data"]
    shown = [fetched(client, entry.get("image") or entry["video"]) for entry in gallery]
    return shown, [e["caption"] for e in gallery], zipfile.ZipFile(io.BytesIO(fetched(client, archive)))


def test_several_images_and_a_video_have_one_result_each(client, cache, predictor, scene, clip):
    contents = [scene.read_bytes(), b"not an image", scene.read_bytes(), clip.read_bytes()]
    names = ["scene.png", "odd.png", "scene.png", "scene.MP4"]
    uploads = [upload(client, *pair) for pair in zip(contents, names, strict=True)]
    before = set(cache.rglob("*.*"))
    message = answer(client, "segment_files", [uploads, "panoptic", 0.5, False])
    assert message["success"], message
    shown, captions, archive = files_of(client, message)
    expected = predictor(scene, threshold=0.5)
    assert captions[:2] == [f"scene.png: {len(expected.segments)} segments, 320x224 pixels"] * 2
    assert captions[2].startswith("scene_3.MP4: 8 frames")
    assert message["logs"] == ["odd.png is not an image of a format that can be read."]
    for name, picture in zip(("scene", "scene_2"), shown[:2], strict=True):
        assert np.array_equal(rgb_to_ids(Image.open(archive.open(f"{name}.png"))), expected.segmentation)
        assert archive.read(f"{name}_overlay.png") == picture
        assert json.loads(archive.read(f"{name}.json"))["image"] == "scene.png"
    assert archive.read("scene_3.mp4") == shown[2]
    assert b"ftyp" in shown[2][:12]
    frames = [name for name in archive.namelist() if name.startswith("scene_3/") and name.endswith(".json")]
    assert len(frames) == 8
    first = next(iter(predictor.video(clip, threshold=0.5)))[1]
    assert np.array_equal(rgb_to_ids(Image.open(archive.open("scene_3/000000.png"))), first.segmentation)
    # Gradio deletes what it has shown, so nothing else may remain.
    assert {path.name for path in set(cache.rglob("*.*")) - before} == {
        *("scene_overlay.png", "scene_2_overlay.png", "scene_3.mp4", "segments.zip")
    }


@pytest.mark.parametrize("name", ["segment", "segment_files"])
def test_large_images_are_cut_into_tiles(client, predictor, scene, tmp_path, name):
    file = tmp_path / "wide.png"
    make_scene(77_000_003, height=96, width=1100)["image"].save(file)
    image = upload(client, file.read_bytes(), "wide.png")
    data = [[image] if name == "segment_files" else image, "panoptic", 0.5, True]
    message = answer(client, name, data)
    if name == "segment_files":
        ids = files_of(client, message)[2].open("wide.png")
    else:
        ids = io.BytesIO(
            fetched(client, next(f for f in message["output"]["data"][3] if f["path"].endswith("wide.png")))
        )
    expected, whole = predictor(file, threshold=0.5, tile=1024), predictor(file, threshold=0.5)
    assert np.array_equal(rgb_to_ids(Image.open(ids)), expected.segmentation)
    assert not np.array_equal(whole.segmentation, expected.segmentation)
    asked = answer(client, "explain", [image, *data[1:]], event_data={"index": 0, "value": ""})
    assert "not cut into tiles" in asked["output"]["error"]
    small = upload(client, scene.read_bytes())
    assert answer(client, "explain", [small, *data[1:]], event_data={"index": 0, "value": ""})["success"]


def test_a_long_video_is_sampled_and_cut(client, clip, monkeypatch):
    monkeypatch.setattr("detr_panoptic.app.uploads.MAX_FRAMES", 3)
    uploads = [upload(client, clip.read_bytes(), "clip.mp4")]
    archive = files_of(client, answer(client, "segment_files", [uploads, "semantic", 0.5, False]))[2]
    assert sorted(name for name in archive.namelist() if name.endswith(".json")) == [
        f"clip/00000{number}.json" for number in (0, 3, 6)
    ]


def test_a_video_is_not_read_on_and_on_because_its_header_says_so(client, clip, monkeypatch):
    monkeypatch.setattr("detr_panoptic.app.uploads.MAX_FRAMES", 3)
    monkeypatch.setattr("detr_panoptic.app.uploads.MAX_EVERY", 2, raising=False)
    uploads = [upload(client, clip.read_bytes(), "clip.mp4")]
    message = answer(client, "segment_files", [uploads, "semantic", 0.5, False])
    names = [name for name in files_of(client, message)[2].namelist() if name.endswith(".json")]
    assert sorted(names) == [f"clip/00000{number}.json" for number in (0, 2, 4)]
    assert message["logs"] == ["clip.mp4: only its first 6 frames are read"]


def test_files_whose_results_cannot_be_written_are_left_out(client, cache, scene, clip, tmp_path, monkeypatch):
    with av.open(str(tmp_path / "thin.mov"), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1, 64, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (1, 64)))))
        container.mux(stream.encode())
    save = Prediction.save

    def save_to_a_full_disk(self, folder, stem=None, **options):
        file = save(self, folder, stem, **options)
        if stem == "full":
            raise av.error.ExternalError(1, "Generic error in an external library")
        if stem == "000003":
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return file

    monkeypatch.setattr(Prediction, "save", save_to_a_full_disk)
    files = {"full.png": scene, "thin.mov": tmp_path / "thin.mov", "clip.mp4": clip, "fully.png": scene}
    uploads = [upload(client, file.read_bytes(), name) for name, file in files.items()]
    message = answer(client, "segment_files", [uploads, "panoptic", 0.5, False])
    assert message["success"], message
    archive = files_of(client, message)[2]
    names = {name for name in archive.namelist() if not name.startswith("thin/")}
    assert names == {"fully.json", "fully.png", "fully_overlay.png", "thin.mp4"}
    assert [log.partition(" ")[0].rstrip(":") for log in message["logs"]] == ["full.png", "clip.mp4"]
    assert "No space left on device" in message["logs"][1]
    assert not any(str(folder) in log for log in message["logs"] for folder in (cache, tempfile.gettempdir()))


def test_too_many_files_are_refused(client, scene):
    image = upload(client, scene.read_bytes())
    message = answer(client, "segment_files", [[image] * 21, "panoptic", 0.5, False])
    assert message["output"]["error"] == "At most 20 files at once, got 21."
    assert answer(client, "segment_files", [[], "panoptic", 0.5, False])["output"]["data"] == [[], None]


def test_videos_that_are_none_get_a_message_without_paths(client, cache, tmp_path):
    large = write_clip(tmp_path / "large.mp4", [Image.new("RGB", (1002, 1000))])
    for content, part in (
        (b"no video", "Cannot read the video 'odd.mp4'"),
        (b"ffconcat version 1.0\nfile odd.mp4\n", "Cannot read the video 'odd.mp4'"),
        (large.read_bytes(), "odd.mp4 has more than 1,000,000 pixels"),
    ):
        message = answer(client, "segment_files", [[upload(client, content, "odd.mp4")], "panoptic", 0.5, False])
        assert part in message["output"]["error"]
        assert str(cache) not in message["output"]["error"]


def test_without_the_libraries_of_videos_the_page_says_so(client, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    message = answer(client, "segment_files", [[upload(client, clip.read_bytes(), "a.mp4")], "panoptic", 0.5, False])
    assert "pip install detr-panoptic[video]" in message["output"]["error"]


def test_tuned_thresholds_are_shown_and_used_until_the_slider_is_moved(cache, scene, tmp_path):
    del cache
    shutil.copytree(BUNDLED, tmp_path / "tuned")
    file = tmp_path / "tuned" / "preprocessor_config.json"
    names = Predictor.from_pretrained(BUNDLED).categories.names
    own = [0.99 if label % 2 else 0.5 for label in range(len(names))]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threshold": own}))
    predictor = Predictor.from_pretrained(tmp_path / "tuned")
    with serving(str(tmp_path / "tuned")) as client:
        components = client.get("/config").json()["components"]
        (slider,) = [c["props"] for c in components if c["type"] == "slider"]
        shown = [c["props"]["value"] for c in components if c["type"] == "dataframe"]
        assert [[*map(list, zip(names, own, strict=True))]] == [value["data"] for value in shown if value["data"]]
        assert "tuned" in slider["info"]
        for threshold, expected in (
            (slider["value"], predictor(scene)),
            (0.5, predictor(scene, threshold=0.5)),
        ):
            message = answer(client, "segment", [upload(client, scene.read_bytes()), "panoptic", threshold, False])
            labels = [row[0].split()[0] for row in message["output"]["data"][2]["data"]]
            assert labels == [segment.label for segment in expected.segments]
    assert len(predictor(scene).segments) < len(predictor(scene, threshold=0.5).segments)


def test_an_example_is_a_picture_of_the_page(client):
    (examples,) = [c for c in client.get("/config").json()["components"] if c["type"] == "dataset"]
    assert len(examples["props"]["samples"]) == 4


@pytest.mark.parametrize(
    ("setting", "part"),
    [(["nothing", 0.5], "`task`"), (["panoptic", 7], "`threshold`"), (["panoptic", "x"], "`threshold`")],
)
def test_wrong_settings_get_a_message(client, scene, setting, part):
    message = answer(client, "segment", [upload(client, scene.read_bytes()), *setting, False])
    assert part in message["output"]["error"]


def test_without_an_image_there_is_nothing(client):
    assert answer(client, "segment", [None, "panoptic", 0.5, False])["output"]["data"][:2] == [None, None]


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


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["segment", "explain", "segment_files"])
def test_no_file_of_the_server_is_read_or_copied(client, cache, tmp_path, place, name):
    """Gradio looks for files in every input, and serves what it copies."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    for path in (str(secret), "pyproject.toml", "/etc/passwd"):
        data: list = [None, "panoptic", 0.5, False]
        file = {"path": path, "meta": META}
        data[place] = [file] if name == "segment_files" and place == 0 else file
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


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["segment", "segment_files"])
def test_no_address_is_fetched(client, own_server, place, name):
    address, requests = own_server
    for path in (address, "https://example.com/picture.png", "HTTP://127.0.0.1/x"):
        data: list = [None, "panoptic", 0.5, False]
        file = {"path": path, "meta": META}
        data[place] = [file] if name == "segment_files" and place == 0 else file
        assert ask(client, name, data).status_code == 403
        for way in ("run", "call", "api"):
            assert client.post(f"{API}/{way}/{name}", json={"data": data}).status_code in (403, 404)
        nested = {"data": [[{"x": data[place]}], "panoptic", 0.5, False]}
        assert client.post(f"{API}/run/{name}", json=nested).status_code == 403
    picture = {"path": "x.png", "url": address, "meta": META}
    pictures = [picture] if name == "segment_files" else picture
    assert answer(client, name, [pictures, "panoptic", 0.5, False])["success"] is False
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
    message = answer(client, "segment", [upload(client, content, "odd.png"), "panoptic", 0.5, False])
    assert part in message["output"]["error"]
    assert "odd.png" in message["output"]["error"]
    assert str(cache) not in message["output"]["error"]


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
