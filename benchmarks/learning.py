"""How fast PQ rises: transformers' DetrForSegmentation and this package on the same generated scenes.

    python benchmarks/learning.py --steps 400 --side 128 --output outputs/learning
    python benchmarks/learning.py --steps 2000 --batch 16 --device cuda --processes 4 --workers 2
    python benchmarks/learning.py --transfer outputs/scenes --steps 200 --output outputs/transfer

All contestants have the same backbone, scenes in the same order, optimizer, schedule and steps; what differs is named
in the table. transformers draws the weights of a new DETR with a deviation of 0.02, the 40 queries too, which then are
nearly the same; the reference draws matrices after Xavier and queries with a deviation of 1, and so does this package.
A contestant of its own is transformers' model with those first weights: what is left is how they compute. PQ is
measured with the paper's thresholds, on scenes that nobody trains on, by the same code. The time is that of training
alone, without making or measuring scenes; on a CPU it is the time that the process had a core, so that other work on
the machine counts less. Runs that write to one folder, one after the other or at once, come into one picture, also
with different `--steps`.

transformers replaces the batch norms of a timm backbone by its own, which for `tf_efficientnet_lite0` loses the
activation and the epsilon. Here it gets this package's backbone instead, so that the maps of both are the same bits.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import DetrConfig, DetrForSegmentation

from cases import describe_run, markdown_table
from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints.backbone_weights import EFFICIENTNET_LITE0, load_backbone_weights
from detr_panoptic.checkpoints.conversion import convert_state_dict
from detr_panoptic.data import PanopticCollator
from detr_panoptic.data.augmentation import RandomAugmentation
from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.scenes import SCENE_CATEGORIES
from detr_panoptic.scenes.dataset import scenes_dataset
from detr_panoptic.training.aids import attach_training_aids
from detr_panoptic.training.model import calibrate
from detr_panoptic.training.optimization import build_schedule
from detr_panoptic.training.settings import OptimizationSettings

BACKBONE = "tf_efficientnet_lite0"
CALIBRATION_IMAGES = 8
HELD_OUT_SEED = 55_000_000  # added to the seed of the scenes: no scene is in both
PARTS = ("pq", "pq_things", "pq_stuff")
# The transfer's classes: other names, other borders. Two kinds of things become one, two kinds of stuff as well.
COARSE = {
    "building": ("house",),
    "plant": ("tree",),
    "animal": ("sheep", "bird"),
    "vehicle": ("car", "boat"),
    "round object": ("ball", "balloon"),
    "air": ("sky",),
    "rock": ("mountain",),
    "water": ("sea",),
    "ground": ("sand", "grass"),
    "street": ("road",),
}


@dataclass(frozen=True)
class Point:
    """What was measured after some steps of one contestant."""

    contestant: str
    seed: int
    steps: int
    """Of its schedule, all of them."""
    step: int
    epoch: float
    seconds: float
    pq: float
    pq_things: float
    pq_stuff: float


class Trial:
    """Scenes, schedule and measurement that all contestants share.

    Args:
        arguments: of the command line.
        categories: of the scenes.
        seed: of scenes, order and flips.
    """

    def __init__(self, arguments: argparse.Namespace, categories: Categories, seed: int) -> None:
        self.arguments, self.categories, self.seed = arguments, categories, seed
        side = arguments.side
        make = coarse_scenes if categories is not SCENE_CATEGORIES else scenes_dataset
        options = {"height": side, "width": side, "workers": arguments.scene_workers}
        self.scenes = make(arguments.scenes, seed=seed, **options)
        self.held_out = make(arguments.held_out, seed=seed + HELD_OUT_SEED, **options)

    def processor(self, model: DetrPanopticForSegmentation) -> DetrPanopticImageProcessor:
        """Of the model, at the size of the scenes."""
        size = {"shortest_edge": self.arguments.side, "longest_edge": self.arguments.side}
        return DetrPanopticImageProcessor.for_model(model.config, size=size, **model.model.backbone.image_statistics)

    def batches(self, processor: DetrPanopticImageProcessor) -> Iterator[dict[str, Any]]:
        """As many batches as there are steps, the same for all."""
        return islice(self._endless_batches(processor), self.arguments.steps)

    def _endless_batches(self, processor: DetrPanopticImageProcessor) -> Iterator[dict[str, Any]]:
        side = self.arguments.side
        flip = RandomAugmentation((side,), max_size=side + 1, crop_probability=0.0, crop_scales=(1,))
        collator = PanopticCollator(processor, flip, seed=self.seed)
        loader: DataLoader[Any] = DataLoader(
            self.scenes,
            batch_size=self.arguments.batch,
            shuffle=True,
            drop_last=True,
            collate_fn=collator,
            num_workers=self.arguments.workers,
            generator=torch.Generator().manual_seed(self.seed),
        )
        for epoch in count():
            collator.set_epoch(epoch)
            yield from loader

    @torch.no_grad()
    def quality(self, model: Any, processor: DetrPanopticImageProcessor) -> dict[str, float]:
        """PQ on the held-out scenes, of models of either kind."""
        quality = PanopticQuality(self.categories)
        model.eval()
        for record in self.held_out:
            outputs = model(**processor(record["image"], return_tensors="pt").to(model.device))
            sizes = [(record["image"].height, record["image"].width)]
            (found,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes)
            quality.update(record, {**found, "segmentation": found["segmentation"].cpu()})
        model.train()
        result = quality.compute()
        return {"pq": result.pq, "pq_things": result.things.pq, "pq_stuff": result.stuff.pq}

    def run(self, name: str, model: nn.Module, ours: DetrPanopticForSegmentation) -> list[Point]:
        """Trains a contestant and measures it now and then; `ours` says what the processor has to know."""
        settings = self.arguments
        optimization = OptimizationSettings(
            learning_rate=settings.rate,
            backbone_learning_rate=settings.rate / 2,
            max_grad_norm=5.0,
            schedule="cosine",
            warmup_steps=50,
        )
        processor = self.processor(ours)
        optimizer = optimizer_of(model.train(), optimization)
        schedule = build_schedule(optimizer, optimization, total_steps=settings.steps)
        points, seconds = [], 0.0
        clock = time.process_time if model.device.type == "cpu" else time.perf_counter
        for step, batch in enumerate(self.batches(processor), 1):
            inputs = to_device(batch, model.device)
            started = clock()
            model(**inputs).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += clock() - started
            if step % settings.measure_every == 0 or step == settings.steps:
                found = self.quality(model, processor)
                epoch = step * settings.batch / len(self.scenes)
                points.append(Point(name, self.seed, settings.steps, step, epoch, seconds, **found))
                write_point(points[-1], settings.output)
        return points


def optimizer_of(model: nn.Module, arguments: OptimizationSettings) -> AdamW:
    """AdamW with the package's two rates, for models of either kind."""
    rates = {True: arguments.backbone_learning_rate, False: arguments.learning_rate}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["backbone." in name].append(parameter)
    return AdamW(
        [{"params": own, "lr": rates[of_backbone]} for of_backbone, own in groups.items()],
        weight_decay=arguments.weight_decay,
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What both models take of a batch, on the device."""
    labels = [
        {key: value.to(device) for key, value in target.items() if isinstance(value, Tensor)}
        for target in batch["labels"]
    ]
    return {
        "pixel_values": batch["pixel_values"].to(device),
        "pixel_mask": batch["pixel_mask"].to(device),
        "labels": labels,
    }


Contestant = tuple[nn.Module, DetrPanopticForSegmentation]
"""The model to train, and one of ours with its configuration."""


def main() -> None:
    """Trains all contestants, writes points, a picture and a table."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.processes > 1:
        torch.set_num_threads(1)  # a fork of a process with threads may wait for them forever
    jobs = []
    for seed in arguments.seeds:
        if arguments.transfer is None:
            trial = Trial(arguments, SCENE_CATEGORIES, seed)
            makers = contestants(trial)
        else:
            trial = Trial(arguments, coarse_categories(), seed)
            makers = transfer_contestants(trial, arguments.transfer)
        jobs += [(trial, name, make) for name, make in makers.items() if not arguments.only or name in arguments.only]
    run_jobs(jobs, arguments.processes)
    points = read_points(arguments.output)
    draw(points, arguments.output / "learning.png")
    print(describe_run(arguments.device))
    print(table(points))


def run_jobs(jobs: Sequence[tuple[Trial, str, Callable[[], Contestant]]], processes: int) -> None:
    """Trains contestants, some at a time; each writes its points."""
    if processes == 1:
        for job in jobs:
            run_job(*job)
        return
    for first in range(0, len(jobs), processes):
        running = [get_context("fork").Process(target=run_job, args=job) for job in jobs[first : first + processes]]
        for process in running:
            process.start()
        for process in running:
            process.join()


def run_job(trial: Trial, name: str, make: Callable[[], Contestant]) -> None:
    """Trains one contestant."""
    model, ours = make()
    trial.run(name, model.to(trial.arguments.device), ours)


def contestants(trial: Trial) -> dict[str, Callable[[], Contestant]]:
    """What makes each contestant, by name."""
    return {
        "transformers": partial(transformers_with, trial),
        "transformers, first weights of the reference": partial(transformers_with, trial, same_weights=True),
        "paper's recipe": partial(ours_with, trial),
        "calibrated": partial(ours_with, trial, calibrated=True),
        "calibrated, with aids": partial(ours_with, trial, calibrated=True, aids=True),
    }


def transformers_with(trial: Trial, *, same_weights: bool = False) -> Contestant:
    """Transformers' model with its own first weights, or with ours."""
    theirs, ours = new_models(trial.categories, trial.seed)
    if same_weights:
        give_weights(theirs, ours)
    return theirs, ours


def ours_with(trial: Trial, *, calibrated: bool = False, aids: bool = False) -> Contestant:
    """Our model, and what helps it to learn."""
    _, ours = new_models(trial.categories, trial.seed)
    if calibrated:
        _calibrate(ours, trial)
    if aids:
        attach_training_aids(ours)
    return ours, ours


def transfer_contestants(trial: Trial, source: Path) -> dict[str, Callable[[], Contestant]]:
    """What makes a model that knows other classes and is fine-tuned, and a new one."""
    return {
        "fine-tuned": partial(tuned, trial, source),
        "fine-tuned, with aids": partial(tuned, trial, source, aids=True),
        "from the backbone, calibrated, with aids": partial(ours_with, trial, calibrated=True, aids=True),
    }


def tuned(trial: Trial, source: Path, *, aids: bool = False) -> Contestant:
    """The model of a folder with the classes of the trial."""
    model = DetrPanopticForSegmentation.from_pretrained(
        source, **_labels(trial.categories), ignore_mismatched_sizes=True, dtype=torch.float32
    )
    if aids:
        attach_training_aids(model)
    return model, model


def new_models(categories: Categories, seed: int) -> tuple[DetrForSegmentation, DetrPanopticForSegmentation]:
    """Transformers' model and ours of the same architecture, with the same backbone that was trained on ImageNet."""
    torch.manual_seed(seed)
    labels = _labels(categories)
    config = DetrConfig(
        backbone=BACKBONE,
        dilation=True,
        d_model=128,
        encoder_layers=2,
        decoder_layers=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        num_queries=40,
        dropout=0.0,
        auxiliary_loss=True,
        id2label=labels["id2label"],
        label2id=labels["label2id"],
    )
    theirs = DetrForSegmentation(config)
    converted = convert_state_dict(theirs.state_dict(), config.to_dict(), dilation=True)
    torch.manual_seed(seed)
    ours = DetrPanopticForSegmentation(DetrPanopticConfig(**(converted.config_kwargs | labels)))
    load_backbone_weights(ours.model.backbone, BACKBONE, EFFICIENTNET_LITE0)
    body = copy.deepcopy(ours.model.backbone.body)
    theirs.detr.model.backbone.model = body  # the stem and the first stage are frozen in it, as in the paper
    return theirs, ours


def give_weights(theirs: DetrForSegmentation, ours: DetrPanopticForSegmentation) -> None:
    """Sets transformers' weights, but for the backbone's, to ours.

    The converter goes the other way: it gets numbered weights, and where the numbers end up says where ours belong.
    """
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if ".backbone." not in name}
    flat = torch.cat([tensor.flatten() for tensor in weights.values()])
    sizes = [tensor.numel() for tensor in weights.values()]
    numbers = torch.arange(len(flat)).split(sizes)
    numbered = {name: own.view_as(weights[name]) for name, own in zip(weights, numbers, strict=True)}
    places = convert_state_dict(numbered, theirs.config.to_dict(), dilation=True).state_dict
    for name, tensor in ours.state_dict().items():
        if name in places:
            flat[places[name].flatten()] = tensor.flatten()
    given = {name: own.view_as(weights[name]) for name, own in zip(weights, flat.split(sizes), strict=True)}
    theirs.load_state_dict(given, strict=False)


def coarse_categories() -> Categories:
    """The classes of the transfer."""
    is_thing = tuple(SCENE_CATEGORIES.is_thing[SCENE_CATEGORIES.names.index(names[0])] for names in COARSE.values())
    return Categories(names=tuple(COARSE), is_thing=is_thing, category_ids=tuple(range(1, len(COARSE) + 1)))


def coarse_scenes(number: int, **options: int) -> Dataset:
    """Scenes with the classes of the transfer; stuff that has become one class is one segment."""
    label_of = {
        SCENE_CATEGORIES.names.index(name): label for label, names in enumerate(COARSE.values()) for name in names
    }

    def relabel(record: dict[str, Any]) -> dict[str, Any]:
        segments = [{**segment, "label_id": label_of[segment["label_id"]]} for segment in record["segments_info"]]
        return merge_stuff(record, segments)

    return scenes_dataset(number, **options).map(relabel)


def merge_stuff(record: dict[str, Any], segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with segments of one stuff class merged into the first of them."""
    from PIL import Image

    from detr_panoptic.data.records import ids_to_rgb, measure_segments
    from detr_panoptic.segment_ids import rgb_to_ids

    ids, first = rgb_to_ids(record["segmentation"]).copy(), {}
    is_thing = coarse_categories().is_thing
    kept = []
    for segment in segments:
        label = segment["label_id"]
        if is_thing[label] or label not in first:
            first.setdefault(label, segment["id"])
            kept.append({name: segment[name] for name in ("id", "label_id", "iscrowd")})
        else:
            ids[ids == segment["id"]] = first[label]
    return {"segmentation": Image.fromarray(ids_to_rgb(ids)), "segments_info": measure_segments(ids, kept)}


def write_point(point: Point, output: Path) -> None:
    """One line of text, one of JSON."""
    print(f"{point.contestant}: step {point.step}, {point.seconds:.0f} s, PQ {point.pq:.3f}", flush=True)
    with (output / "points.jsonl").open("a") as file:
        file.write(json.dumps(asdict(point)) + "\n")


def read_points(output: Path) -> list[Point]:
    """All points that were written into a folder, by this run and others."""
    lines = (output / "points.jsonl").read_text().splitlines()
    return sorted(
        (Point(**json.loads(line)) for line in lines), key=lambda point: (point.seed, point.steps, point.step)
    )


def draw(points: Sequence[Point], path: Path) -> None:
    """PQ against epochs and against time: all classes solid, things dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(_name(p) for p in points))}
    for axis, unit, label in zip(axes, ("epoch", "seconds"), ("epochs", "seconds of training"), strict=True):
        for (name, seed), line in _lines(points).items():
            for part, style in (("pq", "-"), ("pq_things", "--")):
                shown = name if part == "pq" and seed == points[0].seed else None
                x, y = [getattr(p, unit) for p in line], [100 * getattr(p, part) for p in line]
                axis.plot(x, y, style, color=colors[name], label=shown, marker=".")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PQ on held-out scenes (dashed: things)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(points: Sequence[Point]) -> str:
    """The last point of each contestant, the mean over seeds."""
    rows = []
    for name in dict.fromkeys(_name(p) for p in points):
        last = [line[-1] for (other, _), line in _lines(points).items() if other == name]

        def mean(field: str, of: Sequence[Point] = tuple(last)) -> float:
            return sum(getattr(p, field) for p in of) / len(of)

        quality = [f"{100 * mean(part):.1f}" for part in PARTS]
        rows.append([last[0].contestant, str(last[0].step), f"{mean('seconds') / last[0].step:.2f}", *quality])
    return markdown_table(["", "steps", "seconds per step", "PQ", "things", "stuff"], rows)


def _lines(points: Sequence[Point]) -> dict[tuple[str, int], list[Point]]:
    lines: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        lines.setdefault((_name(point), point.seed), []).append(point)
    return lines


def _name(point: Point) -> str:
    return f"{point.contestant}, {point.steps} updates"


def _calibrate(model: DetrPanopticForSegmentation, trial: Trial) -> None:
    collator = PanopticCollator(trial.processor(model))
    first: dict[str, Tensor] = dict(
        collator([trial.scenes[i] for i in range(min(CALIBRATION_IMAGES, len(trial.scenes)))])
    )
    calibrate(model, first["pixel_values"], first["pixel_mask"])


def _labels(categories: Categories) -> dict[str, Any]:
    return {
        "id2label": categories.id2label,
        "label2id": {name: label for label, name in categories.id2label.items()},
        "stuff_label_ids": categories.stuff_label_ids,
        "category_ids": list(categories.category_ids),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="updates of each contestant")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128, help="of the scenes, pixels")
    parser.add_argument(
        "--scenes", type=int, default=4000, help="that are trained on; 100 with --transfer is the case"
    )
    parser.add_argument("--held-out", type=int, default=100, help="scenes that are measured")
    parser.add_argument("--measure-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate; the backbone has half of it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants; all without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, of each contestant")
    parser.add_argument("--scene-workers", type=int, default=0, help="processes that make scenes")
    parser.add_argument("--processes", type=int, default=1, help="contestants that train at a time")
    parser.add_argument("--transfer", type=Path, metavar="FOLDER", help="fine-tune this model on other classes")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    return parser.parse_args()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
