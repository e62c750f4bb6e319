"""Whether memory, open files and threads grow while the program works: prediction over many images, a long training.

    python benchmarks/soak.py
    python benchmarks/soak.py --runs train --steps 500

The program runs as a user starts it, in a process of its own, and is looked at from outside, its data workers
included. A line is fitted to what it held after so many images or updates, without the first tenth, in which buffers
find their sizes. Neighboring samples resemble each other, so the fit is to means of blocks; the interval is that of
Student's t.

A run fails if even the lower end of the interval of memory lies above the bound of its table, or if more files or
threads are open at the end than before: those do not waver.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image
from scipy import stats

from cases import describe_run, markdown_table
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.scenes import make_scene

SIDE = 64  # pixels; of the shorter side
SIZES = ((64, 64), (64, 80), (64, 96))  # (height, width): buffers of changing sizes are what fragments memory
CROPS = 10  # images out of one scene
BLOCKS = 10
WARM_UP = 0.1  # of a run
INTERVAL = 0.25  # seconds between samples
BOUNDS = {"predict": 1024, "train": 4096}  # bytes per image and per update: less than one image of 64x64, 12288
CONFIDENCE = 0.95
TRAINING = {
    "recipe": "none", "data": "scenes", "limit": 50, "short-side": SIDE, "long-side": 96,
    "augmentation": "flip", "workers": 1,
    "backbone": "test_resnet", "hidden-size": 32, "num-heads": 4, "encoder-layers": 1, "decoder-layers": 2,
    "ffn-dim": 32, "num-queries": 12, "batch-size": 1, "ema-decay": 0.9,
    "evaluate-every": 10, "checkpoint-every": 100, "log-every": 5,
}  # fmt: skip


class Sample(NamedTuple):
    """What the processes of a run hold together."""

    done: int
    """Images or updates."""
    memory: int
    """Bytes, resident."""
    files: int
    threads: int


class Slope(NamedTuple):
    """Growth per image or update, and half the width of its interval."""

    value: float
    margin: float


def main() -> int:
    """Prints a table for each run; 1 if something grew."""
    arguments = _arguments()
    print(describe_run("cpu"))
    is_flat = True
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.runs:
            count = arguments.images if name == "predict" else arguments.steps
            command, progress = {"predict": predict, "train": train}[name](Path(work), count)
            started = time.perf_counter()
            samples = watch([sys.executable, "-m", "detr_panoptic.commands", *command], progress)
            seconds = time.perf_counter() - started
            if arguments.samples is not None:
                lines = [json.dumps({"run": name, **sample._asdict()}) + "\n" for sample in samples]
                with arguments.samples.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            unit = "images" if name == "predict" else "updates"
            print(f"\n### {name}: {samples[-1].done} {unit}, {seconds:.0f} s, {len(samples)} samples\n")
            rows, all_flat = verdicts(samples, BOUNDS[name])
            print(markdown_table(["", "after the warm-up", "at the end", "per 1000", "bound", "verdict"], rows))
            is_flat &= all_flat
    return 0 if is_flat else 1


def predict(work: Path, count: int) -> tuple[list[str], Callable[[], int]]:
    """The words of a prediction over so many new image files, and what tells how many are done."""
    model, output = work / "model", work / "predictions"
    DetrPanopticForSegmentation.from_pretrained(BUNDLED).save_pretrained(model)
    size = {"shortest_edge": SIDE, "longest_edge": 96}
    DetrPanopticImageProcessor.from_pretrained(BUNDLED, size=size).save_pretrained(model)
    (work / "images").mkdir()
    for number, picture in enumerate(generated_images(count)):
        picture.save(work / "images" / f"{number:06d}.{('png', 'jpg')[number % 2]}")
    words = ["predict", work / "images", "--model", model, "--device", "cpu"]
    return [*map(str, words), "--output", str(output)], FileCounter(output)


def train(work: Path, count: int) -> tuple[list[str], Callable[[], int]]:
    """The words of a training of so many updates, and what tells how many are done."""
    output = work / "run"
    settings = TRAINING | {"max-steps": count, "epochs": -(-count // int(str(TRAINING["limit"])))}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    lines = LineCounter(output / "metrics.jsonl", key="step")
    return ["train", "--output", str(output), *words], lines


def generated_images(count: int) -> Iterator[Image.Image]:
    """Parts of generated scenes, of several sizes."""
    for number in range(count):
        if number % CROPS == 0:
            scene = make_scene(number, height=2 * SIDE, width=3 * SIDE)["image"]
        height, width = SIZES[number % len(SIZES)]
        left, top = (7 * number) % (scene.width - width), (5 * number) % (scene.height - height)
        yield scene.crop((left, top, left + width, top + height))


class FileCounter:
    """Counts the result files of a prediction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        """How many."""
        return len(list(self.folder.glob("*.json")))


class LineCounter:
    """Lines of a file that grows, read once each; with a key, its value in the last line.

    Args:
        path: may not exist yet.
        key: of the objects that the lines hold.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        """Nothing is read yet."""
        self.path, self.key = path, key
        self._offset = self._count = 0

    def __call__(self) -> int:
        """How many."""
        if not self.path.exists():
            return self._count
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            lines = [line for line in stream if line.endswith(b"\n")]
        self._offset += sum(map(len, lines))
        if self.key is None:
            self._count += len(lines)
        elif lines:
            self._count = json.loads(lines[-1])[self.key]
        return self._count


def watch(command: Sequence[str], progress: Callable[[], int], *, interval: float = INTERVAL) -> list[Sample]:
    """Runs a command and looks at it until it ends; only while it does what `progress` counts.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    samples: list[Sample] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            done = progress()
            if done and (not samples or done > samples[-1].done):
                sample = look(watched, done)
                samples += [] if sample is None else [sample]
            time.sleep(interval)
        assert process.stderr is not None  # noqa: S101  for mypy
        errors = process.stderr.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
    return samples


def look(process: psutil.Process, done: int) -> Sample | None:
    """What a process and its children hold now; None if one of them is gone meanwhile."""
    try:
        family = [process, *process.children(recursive=True)]
        memory = sum(member.memory_info().rss for member in family)
        # Not `open_files`, which leaves out sockets, pipes and devices.
        files, threads = sum(member.num_fds() for member in family), sum(member.num_threads() for member in family)
    except psutil.NoSuchProcess:
        return None
    return Sample(done, memory, files, threads)


def steady(samples: Sequence[Sample]) -> list[Sample]:
    """Without the warm-up."""
    return [sample for sample in samples if sample.done >= WARM_UP * samples[-1].done]


def slope(samples: Sequence[Sample], what: str) -> Slope:
    """A line through the means of blocks of samples.

    Raises:
        ValueError: there are too few samples.
    """
    if len(samples) < BLOCKS:
        raise ValueError(f"`samples` must be at least {BLOCKS} after the warm-up, got {len(samples)}: run longer.")
    blocks = np.array_split(np.array([(sample.done, getattr(sample, what)) for sample in samples], float), BLOCKS)
    means = np.array([block.mean(0) for block in blocks])
    fit = stats.linregress(means[:, 0], means[:, 1])
    stderr = np.nan_to_num(fit.stderr)  # of what never changes
    return Slope(float(fit.slope), float(stats.t.ppf((1 + CONFIDENCE) / 2, BLOCKS - 2) * stderr))


def verdicts(samples: Sequence[Sample], bound: float) -> tuple[list[list[str]], bool]:
    """Rows of a table, and whether nothing grows.

    Args:
        samples: of a whole run.
        bound: bytes per image or update that memory may grow by.
    """
    samples = steady(samples)
    quarter = max(1, len(samples) // 4)
    rows, all_flat = [], True
    for what, unit, scale in (("memory", " MiB", 2**20), ("files", "", 1), ("threads", "", 1)):
        values = [getattr(sample, what) / scale for sample in samples]
        first, last = values[:quarter], values[-quarter:]
        growth = slope(samples, what)
        if what == "memory":
            is_flat = growth.value - growth.margin <= bound
            limit = f"{1000 * bound / scale:.2f}{unit}"
        else:
            is_flat, limit = max(last) <= max(first), "0"
        per_1000 = f"{1000 * growth.value / scale:+.3f} ± {1000 * growth.margin / scale:.3f}{unit}"
        shown = [f"{np.median(some):.{1 if unit else 0}f}{unit}" for some in (first, last)]
        rows.append([what, *shown, per_1000, limit, "flat" if is_flat else "grows"])
        all_flat &= is_flat
    return rows, all_flat


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=("predict", "train"), default=["predict", "train"])
    parser.add_argument("--images", type=int, default=10_000, help="of the prediction (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2_000, help="updates of the training (default: %(default)s)")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="append every sample to this file, as JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
