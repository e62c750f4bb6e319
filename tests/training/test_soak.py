"""A short soak: nothing that an image or an update needs is held after it. The long one: benchmarks/soak.py."""

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.inference import PredictionFolder, Predictor
from detr_panoptic.training.reports import RunLog
from tests.conftest import photo
from tests.fault_injection import in_own_process
from tests.training.runs import run

IMAGES, UPDATES = 90, 60
EVERY = 6  # images or updates, from one look to the next
WARM_UP = 24  # of them: buffers find their sizes, and readers fill their queues
BOUND = 256 * 2**10  # bytes of resident memory per image; the noise of the allocator is a third of it
LEAK = 2**20  # bytes


class Held(NamedTuple):
    """What a process holds."""

    files: int
    threads: int
    tensors: int
    """Of torch, and pictures of Pillow."""
    memory: int
    """Bytes, resident."""


def look() -> Held:
    process = psutil.Process()
    gc.collect()
    tensors = sum(isinstance(thing, torch.Tensor | Image.Image) for thing in gc.get_objects())
    return Held(process.num_fds(), process.num_threads(), tensors, process.memory_info().rss)


@contextmanager
def looked_at(owner: type, name: str, leak: Callable[[], object] | None) -> Iterator[list[Held]]:
    """Looks at the process before a method is called, which is once for each image or update, and leaks there."""
    method, count, seen, leaked = getattr(owner, name), itertools.count(), [], []

    def looking(*arguments, **options):
        if next(count) % EVERY == 0:
            seen.append(look())
        if leak is not None:
            leaked.append(leak())
        return method(*arguments, **options)

    setattr(owner, name, looking)
    yield seen
    setattr(owner, name, method)


def grown(seen: list[Held]) -> set[str]:
    """What there is more of in the end."""
    steady = np.array(seen[WARM_UP // EVERY :], dtype=float)
    half = len(steady) // 2
    more = {
        name
        for column, name in enumerate(Held._fields[:-1])
        if steady[half:, column].max() > steady[:half, column].max()
    }
    slope = np.polyfit(EVERY * np.arange(len(steady)), steady[:, -1], 1)[0]
    return more | ({"memory"} if slope > BOUND else set())


def predict(folder: Path, model: Path, leak: Callable[[], object] | None) -> set[str]:
    processor = DetrPanopticImageProcessor.from_pretrained(model)
    predictor = Predictor(DetrPanopticForSegmentation.from_pretrained(model), processor)
    with looked_at(PredictionFolder, "write", leak) as seen:
        predictor.predict(folder / "images", folder / "out", progress=False)
    assert len(seen) == IMAGES / EVERY
    return grown(seen)


def train(folder: Path, model: Path, leak: Callable[[], object] | None) -> set[str]:  # noqa: ARG001  one signature
    with looked_at(RunLog, "losses", leak) as seen:
        run(folder / "run", epochs=20, evaluate_every=5)  # 3 updates an epoch
    assert len(seen) == UPDATES / EVERY
    return grown(seen)


def leaked_things() -> list[object]:
    return [Path("/dev/null").open(), torch.zeros(1), b"x" * LEAK]


def soak(work: Callable[..., set[str]], folder: Path, model: Path, leak: Callable[[], object] | None) -> None:
    assert work(folder, model, leak) == (set() if leak is None else {"files", "tensors", "memory"})


@pytest.mark.slow
@pytest.mark.parametrize("leak", [None, leaked_things])
@pytest.mark.parametrize("work", [predict, train])
def test_nothing_grows_and_what_would_is_seen(tmp_path, model_folder, work, leak):
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        photo((71, 53), seed=number).save(tmp_path / "images" / f"{number:03d}.{('png', 'jpg')[number % 2]}")
    in_own_process(soak, work, tmp_path, model_folder, leak)
