"""The page under load: many clients at once, each sending one picture after another, for a bounded time.

    python benchmarks/app_load.py --clients 20 --seconds 120
    python benchmarks/app_load.py --url http://127.0.0.1:7860 --pid 1234 --clients 4 --seconds 5

Without --url it starts `detr-panoptic app` itself, on loopback, and ends it. Every picture is sent once alone before,
and each answer is compared with that one, all of it: segments, maps and pictures. Memory is the server's resident set,
twice a second; its slope is fitted to the second half, when caches are full.
"""

import argparse
import asyncio
import io
import json
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

API = "/gradio_api"
BUSY = 503
PATIENCE = 120  # seconds for one request
PAUSE = 0.2  # seconds of a client after "busy"
SIZES = ((256, 256), (320, 224), (180, 320), (512, 512))  # (width, height)
SETTINGS = (("panoptic", 0.85), ("panoptic", 0.5), ("instance", 0.7), ("semantic", 0.85))
MASK_THRESHOLDS = (0.5, 0.8)


class BusyError(Exception):
    """The page asked to try again."""


@dataclass
class Tally:
    """What happened.

    Args:
        seconds: of each request that was answered.
        errors: number by kind.
        different: answers unlike the sequential ones.
        memory: (seconds since the start, bytes of the server).
    """

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    different: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)


def main() -> int:
    """Print what happened; 1 if there was an error but "busy", or an answer unlike the sequential one."""
    arguments = _arguments()
    if arguments.url:
        tally = asyncio.run(measure(arguments.url, arguments.pid, arguments))
    else:
        with started_server(arguments) as (url, pid):
            tally = asyncio.run(measure(url, pid, arguments))
    report = summary(tally, arguments)
    print(json.dumps(report, indent=1))
    return int(bool(tally.different or set(tally.errors) - {"busy"} or not tally.seconds))


async def measure(url: str, pid: int | None, arguments: argparse.Namespace) -> Tally:
    """First every picture alone, then all clients at once."""
    if arguments.files:
        pictures = [file.read_bytes() for file in arguments.files]
    else:
        pictures = [_picture(seed, SIZES[seed % len(SIZES)]) for seed in range(arguments.pictures)]
    tally = Tally()
    limits = httpx.Limits(max_connections=4 * arguments.clients + 4)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits, trust_env=False) as client:
        cases = [(picture, *settings) for picture in pictures for settings in SETTINGS]
        expected = [await ask(client, *case) for case in cases]
        end = time.monotonic() + arguments.seconds
        watch = asyncio.create_task(_watch_memory(pid, tally, end))
        await asyncio.gather(
            *(_visit(client, number, cases, expected, tally, end) for number in range(arguments.clients))
        )
        await watch
    return tally


async def ask(client: httpx.AsyncClient, picture: bytes, task: str, threshold: float) -> str:
    """What the page answers, as its own scripts would ask.

    Raises:
        BusyError: it wants to be asked later.
        httpx.HTTPError: it has another trouble.
    """
    upload = await client.post(f"{API}/upload", files={"files": ("picture.png", picture, "image/png")})
    if upload.status_code == BUSY:
        raise BusyError
    path = upload.raise_for_status().json()[0]
    session = secrets.token_hex(6)
    file = {"path": path, "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}
    question = {"data": [file, task, threshold, *MASK_THRESHOLDS], "fn_index": 0, "session_hash": session}
    joined = await client.post(f"{API}/queue/join", json=question)
    if joined.status_code == BUSY:
        raise BusyError
    joined.raise_for_status()
    async with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line.removeprefix("data:"))
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise httpx.HTTPError(f"the page reports {message['output']}")
                return message["output"]["data"][0]
    raise httpx.HTTPError("the page ended the stream without an answer")


async def _visit(
    client: httpx.AsyncClient, number: int, cases: list, expected: list[str], tally: Tally, end: float
) -> None:
    """One client, from its own place in the list on."""
    turn = number
    while time.monotonic() < end:
        case = turn % len(cases)
        started = time.monotonic()
        try:
            answer = await ask(client, *cases[case])
        except BusyError:
            tally.errors["busy"] += 1
            await asyncio.sleep(PAUSE)
            continue
        except (httpx.HTTPError, ValueError, KeyError) as error:
            tally.errors[f"{type(error).__name__}: {error}"[:120]] += 1
            await asyncio.sleep(PAUSE)
            continue
        tally.seconds.append(time.monotonic() - started)
        tally.different += answer != expected[case]
        turn += 1


async def _watch_memory(pid: int | None, tally: Tally, end: float) -> None:
    if pid is None:
        return
    process, started = psutil.Process(pid), time.monotonic()
    while time.monotonic() < end:
        tally.memory.append((time.monotonic() - started, process.memory_info().rss))
        await asyncio.sleep(0.5)


def summary(tally: Tally, arguments: argparse.Namespace) -> dict:
    """The numbers to report."""
    report: dict = {
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "answers": len(tally.seconds),
        "answers_per_second": round(len(tally.seconds) / arguments.seconds, 2),
        "different_from_sequential": tally.different,
        "errors": dict(tally.errors),
    }
    if tally.seconds:
        report["latency_seconds"] = {
            "median": round(statistics.median(tally.seconds), 2),
            "95 %": round(float(np.percentile(tally.seconds, 95)), 2),
            "longest": round(max(tally.seconds), 2),
        }
    if len(tally.memory) > 3:
        times, sizes = np.array(tally.memory).T
        half = len(times) // 2
        slope = np.polyfit(times[half:], sizes[half:], 1)[0]
        report["memory_mb"] = {
            "start": round(sizes[0] / 1e6),
            "middle": round(sizes[half] / 1e6),
            "end": round(sizes[-1] / 1e6),
            "slope per minute, second half": round(60 * slope / 1e6, 2),
        }
    return report


@contextmanager
def started_server(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """The address and the process of a server of its own."""
    command = [sys.executable, "-m", "detr_panoptic.cli", "app", "--port", "0", "--queue", str(arguments.queue)]
    if arguments.model:
        command += ["--model", arguments.model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if not found:
            raise SystemExit("The server did not start.")
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait(30)


def _picture(seed: int, size: tuple[int, int]) -> bytes:
    """A generated scene as a PNG file."""
    from detr_panoptic.scenes import make_scene

    stream = io.BytesIO()
    make_scene(90_000_000 + seed, height=size[1], width=size[0])["image"].save(stream, "PNG")
    return stream.getvalue()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a page that is served; only a loopback address is taken")
    parser.add_argument("--pid", type=int, help="of its process, whose memory is watched")
    parser.add_argument("--model", help="of the server that is started (default: the one that ships)")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120, help="at most 600")
    parser.add_argument("--pictures", type=int, default=8, help="generated ones, each with four settings")
    parser.add_argument("--files", type=Path, nargs="+", help="these instead of generated pictures")
    parser.add_argument("--queue", type=int, default=20, help="of the server that is started")
    arguments = parser.parse_args()
    if arguments.url and not re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])(:|/|$)", arguments.url):
        parser.error("--url must be a loopback address: this is no tool to burden other machines with")
    if not 0 < arguments.seconds <= 600 or not 0 < arguments.clients <= 100:
        parser.error("--seconds must be up to 600, --clients up to 100")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
