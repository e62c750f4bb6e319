"""What a hundred photographs teach: PQ on those that are trained on and on others, over the epochs.

    python benchmarks/photographs.py FOLDER --output outputs/photographs --max-seconds 240 --at-once 4

FOLDER has COCO's panoptic layout (docs/data.md). One photograph in five, drawn by a fixed seed, is held out. Each
contestant is a run of `detr-panoptic train` with the settings of configs/photographs.yaml, the recipe `finetune-small`
as far as it applies: its start, COCO weights, has to be fetched. They start from a backbone trained on ImageNet, from
the model that ships (generated scenes, no photograph), or from that of `--model`. Further options are those of
`detr-panoptic train`: --short-side, --batch-size, --workers, --learning-rate, --mixed-precision … The device is
Accelerate's choice.

With `--max-seconds` each contestant times two epochs and then takes as many as fit, so that its schedule comes to its
end. Of the results, OUTPUT/points.jsonl, photographs.png and photographs.md are written anew all the time; a run that
was stopped goes on when it is started again, and one that is finished is only drawn.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cases import describe_run, markdown_table
from detr_panoptic.commands.demo import SHIPPED_MODEL
from detr_panoptic.data import find_coco_panoptic
from detr_panoptic.training.arguments import TrainingArguments, without_architecture
from detr_panoptic.training.options import add_training_options, read_training_arguments
from detr_panoptic.training.summary import read_metrics

CONFIG = Path(__file__).parents[1] / "configs" / "photographs.yaml"
AIDS = ", with aids"
MEASUREMENTS = 12  # of each contestant, at most
MEASURING_SHARE = 0.25  # of a contestant's time, at most
PILOT_EPOCHS = 2
MARGIN = 0.85  # of the time that is left: later epochs may be slower than the two that were timed
PAUSE = 15  # seconds between two looks at the runs
SPLITS = ("train", "held_out")
PARTS = {"": "PQ", "_things": "things", "_stuff": "stuff"}


def main() -> int:
    """Trains the contestants, or in a process of its own one of them."""
    parser = _parser()
    arguments, others = parser.parse_known_args()
    if not (arguments.folder / "panoptic.json").is_file():
        parser.error(f"FOLDER must hold images/, panoptic/ and panoptic.json, got {arguments.folder}")
    arguments.work = arguments.work or arguments.output / "runs"
    makers = contestants(arguments.model)
    names = arguments.only or list(makers)
    if unknown := set(names) - set(makers):
        parser.error(f"--only: there are {', '.join(makers)}, got {', '.join(unknown)}")
    chosen = {name: contestant_settings(arguments, others, name, makers[name]) for name in names}
    if arguments.contestant is not None:
        return train(chosen[arguments.contestant], until=arguments.until)
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = write_split(arguments)
    failed = run_all(arguments, chosen, facts)
    for name in failed:
        print(f"{name} failed; the end of {log_file(arguments, name)}:")
        print("\n".join(log_file(arguments, name).read_text().splitlines()[-5:]))
    return 1 if failed else 0


def contestants(model: Path | None) -> dict[str, dict[str, Any]]:
    """What each contestant changes in the section `model` of the settings."""
    if model is not None:
        return {model.name: {"model": str(model)}, model.name + AIDS: {"model": str(model), "aids": True}}
    return {
        "ImageNet backbone, not calibrated": {"calibrate": False},
        "ImageNet backbone": {},
        "ImageNet backbone" + AIDS: {"aids": True},
        "scenes model" + AIDS: {"model": str(SHIPPED_MODEL), "aids": True},
    }


def contestant_settings(
    arguments: argparse.Namespace, others: Sequence[str], name: str, changes: Mapping[str, Any]
) -> TrainingArguments:
    """The settings of one run."""
    parser = argparse.ArgumentParser(prog="photographs.py", allow_abbrev=False)
    add_training_options(parser)
    parsed = parser.parse_args(others)
    parsed.config = parsed.config or CONFIG
    settings = read_training_arguments(parsed)
    model = without_architecture(settings.model) if "model" in changes else settings.model
    workers = getattr(parsed, "workers", max(1, (os.cpu_count() or 1) // arguments.at_once))
    data = replace(
        settings.data,
        data=str(arguments.work / "data"),
        split=SPLITS[0],
        validation_split=SPLITS[1],
        workers=workers,
    )
    run = replace(
        settings.run,
        output=str(arguments.work / slug(name)),
        evaluate_training=len(draw_held_out(arguments)),
        keep_checkpoints=1,
    )
    return replace(settings, model=replace(model, **changes), data=data, run=run)


# ------ the photographs


def draw_held_out(arguments: argparse.Namespace) -> set[Any]:
    """Ids of the photographs that are measured only."""
    annotations = json.loads((arguments.folder / "panoptic.json").read_text())["annotations"][: arguments.images]
    ids = sorted(annotation["image_id"] for annotation in annotations)
    return set(random.Random(arguments.split_seed).sample(ids, max(1, len(ids) // 5)))


def write_split(arguments: argparse.Namespace) -> str:
    """Writes both parts in COCO's layout, with links to the pictures; returns what can be said of them."""
    paths = find_coco_panoptic(arguments.folder)
    contents = json.loads(paths.json_path.read_text())
    held_out = draw_held_out(arguments)
    parts: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for annotation in contents["annotations"][: arguments.images]:
        parts[SPLITS[annotation["image_id"] in held_out]].append(annotation)
    for name, annotations in parts.items():
        folder = arguments.work / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for link, target in (("images", paths.image_dir), ("panoptic", paths.segmentation_dir)):
            if not (folder / link).is_symlink():
                (folder / link).symlink_to(target.absolute())
        (folder / "panoptic.json").write_text(json.dumps({**contents, "annotations": annotations}))
    classes = {
        name: [segment["category_id"] for annotation in annotations for segment in annotation["segments_info"]]
        for name, annotations in parts.items()
    }
    learned, measured = (classes[name] for name in SPLITS)
    unseen = [category for category in measured if category not in learned]
    return (
        f"{len(parts['train'])} photographs are trained on ({len(learned)} segments of {len(set(learned))} classes), "
        f"{len(parts['held_out'])} held out ({len(measured)} segments of {len(set(measured))} classes). "
        f"{len(set(unseen))} of the latter classes ({len(unseen)} segments) are in no training image. "
        f"Training PQ is that of {len(parts['held_out'])} training images."
    )


# ------ the runs


def run_all(arguments: argparse.Namespace, chosen: Mapping[str, TrainingArguments], facts: str) -> list[str]:
    """Each contestant in its own process, some at once; returns those that failed."""
    end = None if arguments.max_seconds is None else time.time() + arguments.max_seconds
    waiting, failed, shown = list(chosen), [], 0.0
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.at_once:
            rounds = -(-len(waiting) // arguments.at_once)
            name = waiting.pop(0)
            until = None if end is None else time.time() + (end - time.time()) / rounds
            running[name] = start(arguments, name, until)
        time.sleep(1)
        for name, process in list(running.items()):
            if process.poll() is not None:
                failed += [name] if running.pop(name).returncode else []
        if time.time() - shown > PAUSE or not (waiting or running):
            shown = time.time()
            write_results(arguments, chosen, facts)
    print((arguments.output / "photographs.md").read_text())
    return failed


def start(arguments: argparse.Namespace, name: str, until: float | None) -> "subprocess.Popen[bytes]":
    """The process of a contestant: this program again, with the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
    command += [] if until is None else ["--until", str(until)]
    threads = max(1, (os.cpu_count() or 1) // arguments.at_once)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with log_file(arguments, name).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def train(settings: TrainingArguments, *, until: float | None) -> int:
    """One run, as long as it may take."""
    import logging

    from detr_panoptic.training.run import TrainingRun

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    chosen = Path(settings.run.output + "_epochs.json")  # a run that goes on must not choose anew
    if until is not None:
        if not chosen.is_file():
            chosen.write_text(json.dumps(epochs_that_fit(settings, until)))
        epochs, every = json.loads(chosen.read_text())
        settings = replace(
            settings,
            optimization=replace(settings.optimization, epochs=epochs),
            run=replace(settings.run, evaluate_every=every),
        )
    run = TrainingRun(settings)
    if until is not None:
        # As after a SIGTERM: should the estimate have been wrong, the run ends here, and can go on.
        timer = threading.Timer(max(0.0, until - time.time()), run.accelerator.set_trigger)
        timer.daemon = True
        timer.start()
    is_finished = run.start()
    print("finished" if is_finished else "stopped before the end: no time left")
    return 0


def epochs_that_fit(settings: TrainingArguments, until: float) -> tuple[int, int]:
    """How many epochs end before `until`, and how many lie between two measurements: from a run of two epochs."""
    from detr_panoptic.training.run import TrainingRun

    moments: list[float] = []

    class TimedRun(TrainingRun):
        """Notes when measurements begin and end."""

        def _evaluate(self, *state: Any) -> float:
            moments.append(time.time())
            quality = super()._evaluate(*state)
            moments.append(time.time())
            return quality

    pilot = replace(
        settings,
        optimization=replace(settings.optimization, epochs=PILOT_EPOCHS),
        run=replace(settings.run, output=settings.run.output + "_pilot", evaluate_every=1),
    )
    TimedRun(pilot).start(overwrite=True)
    shutil.rmtree(pilot.run.output)
    _, first_measured, trained, measured = moments  # the first epoch starts the workers too
    epoch, measuring = trained - first_measured, measured - trained
    left = MARGIN * (until - measured)
    measurements = min(max(1, int(MEASURING_SHARE * left / measuring)), MEASUREMENTS)
    epochs = int((left - measurements * measuring) / epoch)
    print(f"an epoch takes {epoch:.2f} s, measuring {measuring:.2f} s; {left:.0f} s left: {epochs} epochs", flush=True)
    epochs = min(max(1, epochs), settings.optimization.epochs)
    return epochs, -(-epochs // measurements)


def slug(name: str) -> str:
    """A name as a file's."""
    return name.lower().replace(",", "").replace(" ", "_")


def log_file(arguments: argparse.Namespace, name: str) -> Path:
    """Where a contestant's process writes."""
    return Path(arguments.output) / f"{slug(name)}.log"


# ------ the results


def write_results(arguments: argparse.Namespace, chosen: Mapping[str, TrainingArguments], facts: str) -> None:
    """The points of all runs so far, a picture and a table."""
    points = {
        name: [line for line in read_metrics(Path(settings.run.output)) if "pq" in line]
        for name, settings in chosen.items()
    }
    lines = [{"contestant": name, **point} for name, measured in points.items() for point in measured]
    (arguments.output / "points.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {name: measured for name, measured in points.items() if measured}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = [describe_run(device), facts, "", table(found)]
    (arguments.output / "photographs.md").write_text("\n".join(text))
    draw(found, arguments.output / "photographs.png")


def table(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The last measurement of each contestant, and the best on held-out photographs."""
    header = ["", "epochs", "updates"]
    header += [f"{where}: {part}" for where in ("training", "held out") for part in PARTS.values()]
    rows = []
    for name, measured in points.items():
        last = measured[-1]
        values = [100 * last[f"{prefix}pq{part}"] for prefix in ("training_", "") for part in PARTS]
        best = max(measured, key=lambda point: point["pq"])
        shown = [f"{value:.1f}" for value in values]
        shown.append(f"{100 * best['pq']:.1f} ({best['epoch']})")
        rows.append([name, str(last["epoch"]), str(last["step"]), *shown])
    return markdown_table([*header, "best held out (epoch)"], rows)


def draw(points: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """PQ over epochs: training images on the left, held-out ones on the right, things dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    titles = {"training_": "photographs that are trained on", "": "held-out photographs"}
    for axis, (prefix, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for i, (name, measured) in enumerate(points.items()):
            for part, style in (("", "-"), ("_things", "--")):
                epochs = [point["epoch"] for point in measured]
                quality = [100 * point[f"{prefix}pq{part}"] for point in measured]
                axis.plot(epochs, quality, style, color=f"C{i}", marker=".", label=name if part == "" else None)
        axis.set_title(title)
        axis.set_xlabel("epochs")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PQ (dashed: things)")
    if points:
        figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        epilog="Further options are those of `detr-panoptic train`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="with images/, panoptic/ and panoptic.json")
    parser.add_argument("--output", type=Path, default=Path("outputs/photographs"), help="of the results")
    parser.add_argument("--work", type=Path, help="of models and checkpoints, 200 MB each; else OUTPUT/runs")
    parser.add_argument("--max-seconds", type=float, help="of all contestants together; else the settings' epochs")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="contestants that train at the same time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants; all if not said")
    parser.add_argument("--model", type=Path, help="start from this model, without and with aids, and from no other")
    parser.add_argument("--images", type=int, metavar="N", help="take only the first photographs")
    parser.add_argument("--split-seed", type=int, default=0, help="other photographs are held out for another number")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # of a process that this program starts
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
