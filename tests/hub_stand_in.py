"""A local stand-in for the Hub: it answers the requests that huggingface_hub makes to upload and load a repository.

It uses the Git LFS protocol, as the library does without hf_xet. The library, the connection and the bytes are real.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN, READ_TOKEN = "hf_may_write", "hf_may_read"
USER = "somebody"
MAIN = "main"
LARGE_SUFFIXES = (".safetensors", ".png")  # transferred as large files


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {MAIN: {}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Contents, received requests, and failures to produce."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """How many requests to cut in the middle, by the beginning of their line."""
    broken: dict[str, int] = field(default_factory=dict)
    """Statuses to answer with, by the beginning of a request's line."""
    received: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of complete requests, by their line."""

    def files(self, repository: str, branch: str = MAIN) -> dict[str, bytes]:
        return self.repositories[repository].branches[branch]


class Answer(Exception):  # noqa: N818  an answer, not an error
    def __init__(self, status: int, body: object = None, **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("GET", f"/api/models/{NAME}", "info"),
    ("GET", f"/api/models/{NAME}/revision/(.+)", "info"),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)(?:/(.*))?", "tree"),
    ("POST", f"/api/models/{NAME}/branch/(.+)", "make_branch"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", "preupload"),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", "large_file_batch"),
    ("PUT", "/large/(.+)", "put_large_file"),
    ("POST", "/verify", "verify"),
    ("POST", f"/api/models/{NAME}/commit/(.+)", "commit"),
    ("HEAD|GET", f"/{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def repository_of(hub, name):
    if name not in hub.repositories:
        raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
    return hub.repositories[name]


def branch_of(hub, name, revision):
    branches = repository_of(hub, name).branches
    for branch, files in branches.items():
        if revision in (branch, commit_of(files)):
            return files
    raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")


def commit_of(files):
    return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        for start, times in self.hub.cut.items():
            if line.startswith(start) and times:
                self.hub.cut[start] -= 1
                self.rfile.read(min(4096, int(self.headers.get("Content-Length", 0)) // 2))
                self.close_connection = True
                self.connection.close()
                return
        self.body = self.read_body()
        try:
            for start, status in self.hub.broken.items():
                if line.startswith(start):
                    raise Answer(status, {"error": "as the test wants it"})
            self.hub.received[line] += 1
            self.answer()
        except Answer as answer:
            self.send(answer)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815  the server looks for these names

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, answer: Answer) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | answer.headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self) -> None:
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, self.path)
            if found and self.command in method.split("|"):
                getattr(self, answer)(*found.groups())
        raise Answer(404, {"error": "no such page"}, X_Error_Message=f"{self.command} {self.path} is unknown here")

    def may(self, *tokens: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            raise Answer(401, {"error": "Invalid"}, X_Error_Message="Invalid credentials in Authorization header")
        if token not in tokens:
            raise Answer(403, {"error": "Forbidden"}, X_Error_Message="You don't have the rights")

    def whoami(self):
        self.may(TOKEN, READ_TOKEN)
        raise Answer(200, {"type": "user", "name": USER, "orgs": []})

    def create(self):
        self.may(TOKEN)
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not name.startswith(f"{USER}/"):
            raise Answer(403, {"error": "Forbidden"}, X_Error_Message="You don't have the rights")
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            raise Answer(409, {**url, "error": "You already created this model repo"})
        private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.hub.repositories[name] = Repository(private)
        raise Answer(200, url)

    def info(self, name, revision=MAIN):
        files = branch_of(self.hub, name, revision or MAIN)
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.hub.repositories[name].private
        raise Answer(200, {"id": name, "sha": commit_of(files), "private": private, "siblings": siblings})

    def tree(self, name, revision, folder=""):
        files = branch_of(self.hub, name, revision)
        raise Answer(
            200,
            [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in sorted(files.items())
                if path.startswith(folder or "")
            ],
        )

    def make_branch(self, name, branch):
        self.may(TOKEN)
        branches = repository_of(self.hub, name).branches
        if branch in branches:
            raise Answer(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches[MAIN])
        raise Answer(200, {})

    def validate(self):
        text = json.loads(self.body)["content"]
        raise Answer(200 if text.startswith("---\n") else 400, {"errors": [], "warnings": []})

    def preupload(self, name, revision):
        self.may(TOKEN)
        files = branch_of(self.hub, name, revision)
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            is_large = path.endswith(LARGE_SUFFIXES)
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if path in files:
                content = files[path]
                header = b"" if is_large else f"blob {len(content)}\0".encode()
                answer["oid"] = (hashlib.sha256 if is_large else hashlib.sha1)(header + content).hexdigest()
            answers.append(answer)
        raise Answer(200, {"files": answers})

    def large_file_batch(self, name):
        self.may(TOKEN)
        repository_of(self.hub, name)
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.large_files:
                wanted["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/large/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/verify"},
                }
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def put_large_file(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400, {"error": "not what was announced"})
        self.hub.large_files[oid] = self.body
        raise Answer(200, {})

    def verify(self):
        wanted = json.loads(self.body)
        arrived = len(self.hub.large_files.get(wanted["oid"], b"")) == wanted["size"]
        raise Answer(200 if arrived else 404, {})

    def commit(self, name, revision):
        self.may(TOKEN)
        files = branch_of(self.hub, name, revision)
        changed = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.repositories[name].messages.append(value["summary"])
            elif line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            else:
                changed[value["path"]] = self.hub.large_files[value["oid"]]
        files.update(changed)
        oid = commit_of(files)
        raise Answer(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name, revision, path):
        repository = repository_of(self.hub, name)
        if repository.private:
            self.may(TOKEN, READ_TOKEN)
        files = branch_of(self.hub, name, revision)
        sha = commit_of(files)
        if path not in files:
            raise Answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        raise Answer(200, files[path], ETag=etag, X_Repo_Commit=sha)


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Runs the stand-in on a free port."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub})) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def library_talks_to_stand_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Makes huggingface_hub in this process use the stand-in, without waiting between attempts."""
    with hub_stand_in() as hub:
        files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        settings: Any = {"ENDPOINT": hub.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": files}
        settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache)}
        for name, value in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it caches the address
        clock = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
        clock.sleep = lambda _: None
        monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
