"""What stands before Gradio: it lets through what the page needs, and nothing else.

Gradio has routes that this page has no use for, some of which read files or fetch addresses that a request names:
every one of its inputs may be a file description, and a path or an address in it is copied into the folder that is
served. So routes are listed, bodies are bounded, and files named in them must be uploads.
"""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from .uploads import Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/gradio_api"
FILE = f"{API}/file="
READ = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(assets|static|svelte)/.*"
    rf"|{API}/(info|app_id|startup-events|theme\.css|upload_progress|heartbeat/\w+)/?"
)
UPLOAD, JOIN, LISTEN = f"{API}/upload", f"{API}/queue/join", f"{API}/queue/data"
WRITTEN = (UPLOAD, JOIN, f"{API}/cancel", f"{API}/reset")
MAX_BODY = 64 * 1024  # bytes, of anything but an upload; also what a form may add to its file
BODY_SECONDS = 10  # for such a body
BUSY = 503
UPLOADS_AT_ONCE = 8  # others wait, with their bytes still on their side
LISTENER_SECONDS = 3  # a page opens its stream right after it has asked
# Gradio needs inline scripts and `new Function`; what it must not do is load from or talk to another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]


class Refusal(Exception):  # noqa: N818  it is an answer, not an error of ours
    """An answer instead of Gradio's: a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        """Keep both."""
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Listeners:
    """Sessions whose answers somebody listens to. Without, Gradio would keep the answers."""

    def __init__(self) -> None:
        """Nobody."""
        self._streams: Counter[str] = Counter()

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """While a stream is open."""
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]

    async def wait_for(self, session: str | None) -> bool:
        """Whether somebody listens, at once or shortly."""
        for _ in range(10 * LISTENER_SECONDS):
            if session in self._streams:
                return True
            await asyncio.sleep(0.1)
        return False


class Guard:
    """An ASGI application around another.

    Args:
        application: Gradio's.
        uploads: the only files that may be named and served.
        listeners: are told who listens.
    """

    def __init__(self, application: Application, uploads: Uploads, listeners: Listeners) -> None:
        """Keep them."""
        self.application = application
        self.uploads = uploads
        self.listeners = listeners
        self._slots = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        answer = Answer(send)
        try:
            await self._answer(scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)

    async def _answer(self, scope: Message, receive: Receive, answer: "Answer") -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["method"] == "POST" and path in WRITTEN:
            await self._answer_post(path, scope, receive, answer)
        elif scope["method"] not in ("GET", "HEAD"):
            raise Refusal(405, "This page does not do that.")
        elif path.startswith(FILE):
            if not self.uploads.holds(path.removeprefix(FILE)):
                raise Refusal(404, "There is no such file.")
            await self.application(scope, receive, answer)
        elif path == LISTEN:
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
            with self.listeners.listening(session):
                await self.application(scope, receive, answer)
        elif READ.fullmatch(path):
            await self.application(scope, receive, answer)
        else:
            raise Refusal(404, "There is no such page.")

    async def _answer_post(self, path: str, scope: Message, receive: Receive, answer: "Answer") -> None:
        if path == UPLOAD:
            most = self.uploads.limits.max_upload_bytes
            sentence = f"The file is too large; this page takes at most {most / 1e6:g} MB."
            async with self._slots:
                self.uploads.tidy()
                body = Body(scope, receive, answer, most + MAX_BODY, self.uploads.limits.max_seconds, sentence)
                await body.pass_on(self.application)
            return
        body = Body(scope, receive, answer, MAX_BODY, BODY_SECONDS, "The request is too large.")
        content = await body.whole()
        if path == JOIN:
            self._check_files(content)
            answer.when_busy = Refusal(BUSY, "Too many people are waiting here. Please try again in a moment.")
        await self.application(scope, _replay(content, receive), answer)
        if answer.refusal:
            raise answer.refusal

    def _check_files(self, content: bytes) -> None:
        """Refuse a request that names a file that is no upload."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "The request is no JSON.") from error
        for value in _dictionaries(body):
            if value.get("is_stream") or ("path" in value and not self.uploads.holds(value["path"])):
                raise Refusal(400, "The picture is no longer here. Please choose it again.")


class Answer:
    """The way back, with headers of ours, of which a refusal can still take the place until it has begun.

    Args:
        send: of the server.
    """

    def __init__(self, send: Send) -> None:
        """Nothing has been sent."""
        self._send = send
        self.begun = False
        self.refusal: Refusal | None = None
        self.when_busy: Refusal | None = None
        """Instead of Gradio's words when the queue is full."""

    async def __call__(self, message: Message) -> None:
        """Send a message of Gradio's, unless the request is refused."""
        if message["type"] == "http.response.start" and message["status"] == BUSY:
            self.refusal = self.refusal or self.when_busy
        if self.refusal and not self.begun:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a sentence instead."""
        if self.begun:
            return
        self.begun = True
        content = json.dumps({"detail": refusal.sentence}, ensure_ascii=False).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *HEADERS]
        if refusal.status in (408, 413):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})


class Body:
    """The body of a request, bounded in bytes and in time.

    Args:
        scope: of the request.
        receive: of the server.
        answer: of the request.
        most: bytes.
        seconds: from now until its end.
        sentence: when it is too large.
    """

    def __init__(
        self, scope: Message, receive: Receive, answer: Answer, most: int, seconds: float, sentence: str
    ) -> None:
        """Refuse a body that says itself that it is too large."""
        self._scope = scope
        self._receive = receive
        self._answer = answer
        self._most = most
        self._sentence = sentence
        self._end = time.monotonic() + seconds
        self._received = 0
        self._complete = False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise Refusal(413, sentence)

    async def whole(self) -> bytes:
        """All of it."""
        parts = []
        while not self._complete:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The request ended early.")
            parts.append(message.get("body", b""))
        return b"".join(parts)

    async def pass_on(self, application: Application) -> None:
        """Let an application read it."""
        try:
            await application(self._scope, self.receive, self._answer)
        except Exception:
            if self._answer.refusal is None:
                raise
        if self._answer.refusal:
            await self._answer.refuse(self._answer.refusal)

    async def receive(self) -> Message:
        """The next part; a body beyond its bounds looks as if the other side had left."""
        if self._complete:
            return await self._receive()
        try:
            return await self._next()
        except Refusal as refusal:
            self._answer.refusal = refusal
            return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise Refusal(408, "The upload took too long.") from error
        self._received += len(message.get("body", b""))
        if self._received > self._most:
            raise Refusal(413, self._sentence)
        self._complete = not message.get("more_body", False)
        return message


def _replay(content: bytes, receive: Receive) -> Receive:
    """A body that has been read, to be read once more; then what the server has to say."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def replayed() -> Message:
        for message in messages:
            return message
        return await receive()

    return replayed


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
