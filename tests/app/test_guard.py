"""What strangers can ask of the page, over real connections: its own results, within bounds, and nothing else."""

import json
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
from PIL import Image

from .conftest import HOSTILE, LIMITS, page_of, serving

API = "/gradio_api"
FILE_DATA = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def client(page):
    with httpx.Client(base_url=page, timeout=60, trust_env=False) as client:
        yield client


def upload(client: httpx.Client, content: bytes, name: str = "picture.png") -> httpx.Response:
    return client.post(f"{API}/upload", files={"files": (name, content)})


def upload_head(address: str, *, length: int) -> bytes:
    """The answer to an upload that announces so many bytes, and of which a few come."""
    host, port = address.removeprefix("http://").strip("/").split(":")
    head = (
        f"POST {API}/upload HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
        f"content-length: {length}\r\n\r\n--x\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode())
        return b"".join(iter(lambda: connection.recv(10_000), b""))


def join(client: httpx.Client, data: list, session: str) -> httpx.Response:
    return client.post(f"{API}/queue/join", json={"data": data, "fn_index": 0, "session_hash": session})


def answer_of(client: httpx.Client, data: list, session: str) -> str:
    assert join(client, data, session).status_code == 200
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                assert message["success"], message
                return message["output"]["data"][0]
    raise AssertionError("no answer")


def file_of(client: httpx.Client, content: bytes, name: str = "picture.png") -> dict:
    return {"path": upload(client, content).raise_for_status().json()[0], "orig_name": name, "meta": FILE_DATA}


def segments_in(answer: str) -> dict:
    from html.parser import HTMLParser

    class Finder(HTMLParser):
        data = None

        def handle_starttag(self, _, attrs):
            self.data = self.data or dict(attrs).get("data-page")

    finder = Finder()
    finder.feed(answer)
    return json.loads(finder.data)


def test_the_page_and_its_parts_are_there(client):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.get("/config").json()["analytics_enabled"] is False
    assert client.get("/theme.css").status_code == 200
    assert "fonts.googleapis" not in client.get("/theme.css").text


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=/etc/passwd",
        f"{API}/file=pyproject.toml",
        f"{API}/file=../../../etc/passwd",
        f"{API}/file=%2e%2e/%2e%2e/etc/passwd",
        f"{API}/file=",
        f"{API}/file=http://127.0.0.1:1/",
        f"{API}/file/etc/passwd",
        f"{API}/proxy=http://127.0.0.1:1/",
        f"{API}/deep_link?session_hash=1",
        f"{API}/runs",
        f"{API}/custom_component/1/client/component/style.css",
        f"{API}/stream/1/1/1/playlist.m3u8",
        f"{API}/openapi.json",
        "/monitoring",
        "/docs",
        "/static/../../../__init__.py",
        "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
        "/static//etc/passwd",
        "/.env",
    ],
)
def test_nothing_else_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize(
    "path", ["run/segment", "api/segment", "call/segment", "component_server", "process_recording"]
)
def test_the_other_ways_in_are_closed(client, path):
    assert client.post(f"{API}/{path}", json={"data": []}).status_code == 405
    assert client.put(f"{API}/upload").status_code == 405


@pytest.mark.parametrize("place", ["picture", "task", "threshold"])
@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.png", "pyproject.toml", None, 5, {"path": "x"}])
def test_no_file_of_the_server_can_be_named(client, page_folder, place, path):
    """Each would be copied to where it can be fetched: Gradio looks for files in any input."""
    before = sorted(page_folder.rglob("*"))
    data = {"picture": None, "task": "panoptic", "threshold": 0.5}
    data[place] = {"path": path, "meta": FILE_DATA}
    answer = join(client, [*data.values(), 0.5, 0.8], "naming")
    assert answer.status_code == 400
    assert "choose it again" in answer.json()["detail"]
    assert sorted(page_folder.rglob("*")) == before


def test_gradio_itself_would_refuse_as_well(tmp_path, page_folder):
    """Without the guard: the second lock holds alone."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    session = "inside"
    with (
        page_of(lambda *_: None, LIMITS, page_folder) as guard,
        serving(guard.application) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=30) as client,
    ):
        file = {"path": str(secret), "meta": FILE_DATA}
        assert join(client, [file, "panoptic", 0.5], session).status_code == 200
        with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            text = "".join(stream.iter_lines())
    assert '"success":false' in text.replace(" ", "")
    assert not list(page_folder.rglob("secret.txt"))


def test_what_was_uploaded_is_served_as_data(client):
    path = upload(client, b"<script>alert(1)</script>", "page.html").json()[0]
    answer = client.get(f"{API}/file={path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(client, page_folder):
    before = sorted(page_folder.rglob("*"))
    answer = upload_head(str(client.base_url), length=50_000_000)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"at most 1 MB" in answer
    assert sorted(page_folder.rglob("*")) == before


def test_a_file_that_grows_too_large_is_cut(client, page_folder):
    def endless():
        yield b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        answer = client.post(f"{API}/upload", headers=headers, content=endless())
        assert answer.status_code == 413
    except httpx.TransportError:  # the connection was closed while this side still wrote
        pass
    assert max((path.stat().st_size for path in page_folder.rglob("*") if path.is_file()), default=0) < 1_100_000


def test_a_request_that_is_too_large_or_no_json_is_refused(client):
    assert client.post(f"{API}/queue/join", content=bytes(70_000)).status_code == 413
    undeclared = client.post(f"{API}/queue/join", content=iter([bytes(40_000)] * 2))
    assert undeclared.status_code == 413
    assert client.post(f"{API}/queue/join", content=b"{").status_code == 400
    assert client.post(f"{API}/queue/join", content=b"[" * 60_000).status_code == 400


def test_an_upload_that_takes_too_long_is_ended(page_folder):
    with page_of(lambda *_: None, replace(LIMITS, max_seconds=1), page_folder) as guard, serving(guard) as address:
        started = time.monotonic()
        answer = upload_head(address, length=1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 15


def test_settings_that_the_page_does_not_offer_get_a_sentence(client, tiny_picture):
    file = file_of(client, tiny_picture.read_bytes())
    for number, settings in enumerate((["x", 0.5], [[], 0.5], ["panoptic", 7], ["panoptic", "1"], ["panoptic", None])):
        answer = answer_of(client, [file, *settings, 0.5, 0.8], f"odd{number}")
        assert 'role="alert"' in answer
        assert "Traceback" not in answer


def test_names_stay_texts(hostile_page, tiny_picture):
    with httpx.Client(base_url=hostile_page, timeout=60, trust_env=False) as client:
        file = file_of(client, tiny_picture.read_bytes(), name=HOSTILE)
        answer = answer_of(client, [file, "panoptic", 0.3, 0.5, 0.8], "names")
    assert "<img src=x" not in answer
    assert not set("${}`@") & set(answer)  # what Gradio's templates look at
    data = segments_in(answer)
    assert data["segments"]
    assert all(text.startswith(HOSTILE) for text in data["segments"])


def test_a_full_queue_says_so_and_recovers(page_folder, tiny_picture):
    gate = threading.Event()

    def slow(*_):
        gate.wait(30)
        from detr_panoptic.app.answers import Result

        return Result("<p>done</p>", {}, [])

    with (
        page_of(slow, replace(LIMITS, queue=1), page_folder) as guard,
        serving(guard) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        file = file_of(client, tiny_picture.read_bytes())
        answers = {}

        def visit(session):
            answers[session] = answer_of(client, [file, "panoptic", 0.5], session)

        threads = [threading.Thread(target=visit, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
            time.sleep(1)  # the first is worked on, the second waits
        refused = join(client, [file, "panoptic", 0.5], "third")
        assert refused.status_code == 503
        assert refused.json()["detail"] == "Too many people are waiting here. Please try again in a moment."
        gate.set()
        for thread in threads:
            thread.join(20)
        assert all("<p>done</p>" in answers[name] for name in ("first", "second"))
        assert "done" in answer_of(client, [file, "panoptic", 0.5], "fourth")


@pytest.mark.filterwarnings("ignore:coroutine")
def test_time_runs_out_and_errors_are_sentences(page_folder, tiny_picture, caplog):
    def segment(_, __, settings, check_time):
        if settings.task == "semantic":
            raise RuntimeError("a secret of the server")
        while True:
            time.sleep(0.05)
            check_time()

    with (
        page_of(segment, replace(LIMITS, max_seconds=0.5), page_folder) as guard,
        serving(guard) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        file = file_of(client, tiny_picture.read_bytes())
        assert "took longer than 0.5 seconds" in answer_of(client, [file, "panoptic", 0.5], "slow")
        broken = answer_of(client, [file, "semantic", 0.5], "broken")
    assert "server's log" in broken.replace("&#x27;", "'")
    assert "secret" not in broken
    assert "a secret of the server" in caplog.text


def test_nobody_is_answered_who_does_not_listen(page_folder, tiny_picture, monkeypatch):
    monkeypatch.setattr("detr_panoptic.app.guard.LISTENER_SECONDS", 1)
    asked = []

    def segment(name, *_):
        asked.append(name)
        raise RuntimeError

    with (
        page_of(segment, LIMITS, page_folder) as guard,
        serving(guard) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        file = file_of(client, tiny_picture.read_bytes())
        assert join(client, [file, "panoptic", 0.5], "deaf").status_code == 200
        time.sleep(2)
        assert not asked
        answer_of(client, [file, "panoptic", 0.5], "hearing")
        assert len(asked) == 1


def test_answers_are_those_of_the_command_line(client, scene, shipped):
    """The same segments and the same map as `predict` writes."""
    import base64
    import io

    import numpy as np

    from detr_panoptic.inference.old_prediction import describe_segments, read_image, segment
    from detr_panoptic.segment_ids import rgb_to_ids

    file = file_of(client, scene.read_bytes(), scene.name)
    for task, threshold in (("panoptic", 0.5), ("instance", 0.5), ("semantic", 0.5)):
        data = segments_in(answer_of(client, [file, task, threshold, 0.5, 0.8], f"equal{task}"))
        ids, listed = ({**entry, "content": base64.b64decode(entry["content"])} for entry in data["files"])
        (expected,) = segment([read_image(scene)], *shipped, task=task, threshold=threshold)
        expected_ids = expected["segmentation"].numpy()
        assert np.array_equal(rgb_to_ids(Image.open(io.BytesIO(ids["content"]))), expected_ids)
        content = json.loads(listed["content"])
        described = describe_segments(expected_ids, expected["segments_info"], shipped[0].config)
        kept = [{key: entry[key] for key in described[0]} for entry in content["segments_info"]]
        for ours, theirs in zip(kept, described, strict=True):
            assert ours == {**theirs, "score": pytest.approx(theirs["score"], abs=1e-5)} if theirs["score"] else theirs
        assert content["image"] == scene.name
        assert ("attention" in data) == (task != "semantic")
