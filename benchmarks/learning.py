"""How fast PQ rises: transformers' DetrForSegmentation and this package on the same generated scenes.

    python benchmarks/learning.py --steps 400 --side 128 --output outputs/learning
    python benchmarks/learning.py --transfer outputs/scenes --steps 200 --output outputs/transfer

All contestants have the same first weights (through the converter), backbone, scenes in the same order, optimizer,
schedule and steps; what differs is named in the table. PQ is measured with the paper's thresholds, on scenes that
nobody trains on, by the same code. The time is that of training alone, without making or measuring scenes.

transformers replaces the batch norms of a timm backbone by its own, which for `tf_efficientnet_lite0` loses the
activation and the epsilon. Here it gets this package's backbone instead, so that the maps of both are the same bits.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import DetrConfig, DetrForSegmentation

from cases import describe_run, markdown_table
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.categories import Categories
from detr_panoptic.convert import convert_state_dict
from detr_panoptic.data import SCENE_CATEGORIES, PanopticCollator
from detr_panoptic.data.augmentation import RandomAugmentation
from detr_panoptic.data.scenes import scenes_dataset
from detr_panoptic.evaluation import evaluate_model
from detr_panoptic.evaluation.panoptic_quality import panoptic_quality
from detr_panoptic.training.aids import attach_training_aids
from detr_panoptic.training.arguments import OptimizationArguments
from detr_panoptic.training.backbone_weights import EFFICIENTNET_LITE0, load_backbone_weights
from detr_panoptic.training.calibration import calibrate
from detr_panoptic.training.optimization import build_optimizer, build_schedule

BACKBONE = "tf_efficientnet_lite0"
CALIBRATION_IMAGES = 8
HELD_OUT_SEED = 55_000_000  # added to the seed of the scenes: no scene is in both
PARTS = {"pq": "All", "pq_things": "Things", "pq_stuff": "Stuff"}
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
        self.scenes = make(arguments.scenes, seed=seed, height=side, width=side)
        self.held_out = make(arguments.held_out, seed=seed + HELD_OUT_SEED, height=side, width=side)

    def processor(self, model: DetrPanopticForSegmentation) -> DetrPanopticImageProcessor:
        """Of the model, at the size of the scenes."""
        size = {"shortest_edge": self.arguments.side, "longest_edge": self.arguments.side}
        return DetrPanopticImageProcessor.for_model(model.config, size=size, **model.model.backbone.image_statistics)

    def batches(self, processor: DetrPanopticImageProcessor) -> Iterator[dict[str, Any]]:
        """As many batches as there are steps, the same for all."""
        side, size = self.arguments.side, self.arguments.batch
        flip = RandomAugmentation((side,), max_size=side + 1, crop_probability=0.0, crop_scales=(1,))
        collator = PanopticCollator(processor, flip, seed=self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        for epoch in range(self.arguments.steps * size // len(self.scenes) + 1):
            order += torch.randperm(len(self.scenes), generator=generator).tolist()
            collator.set_epoch(epoch)
            while len(order) >= size:
                chosen, order = order[:size], order[size:]
                yield dict(collator([self.scenes[i] for i in chosen]))

    def quality(self, model: Any, processor: DetrPanopticImageProcessor) -> dict[str, float]:
        """PQ on the held-out scenes."""
        stats = evaluate_model(model, processor, self.held_out, self.categories)
        result = panoptic_quality(stats, category_ids=self.categories.category_ids, is_thing=self.categories.is_thing)
        return {name: result[part]["pq"] for name, part in PARTS.items()}

    def run(self, name: str, model: nn.Module, ours: DetrPanopticForSegmentation) -> list[Point]:
        """Trains a contestant and measures it now and then; `ours` says what the processor has to know."""
        settings = self.arguments
        optimization = OptimizationArguments(
            learning_rate=settings.rate,
            backbone_learning_rate=settings.rate / 2,
            max_grad_norm=5.0,
            schedule="cosine",
            warmup_steps=50,
        )
        processor = self.processor(ours)
        optimizer = build_optimizer(model.train(), optimization)
        schedule = build_schedule(optimizer, optimization, total_steps=settings.steps)
        points, seconds = [], 0.0
        for step, batch in zip(range(1, settings.steps + 1), self.batches(processor), strict=False):
            started = time.perf_counter()
            model(**{key: batch[key] for key in ("pixel_values", "pixel_mask", "labels")}).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            seconds += time.perf_counter() - started
            if step % settings.measure_every == 0 or step == settings.steps:
                found = self.quality(model, processor)
                epoch = step * settings.batch / len(self.scenes)
                points.append(Point(name, self.seed, step, epoch, seconds, **found))
                write_point(points[-1], settings.output)
        return points


def main() -> None:
    """Trains all contestants, writes points, a picture and a table."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(describe_run("cpu"))
    points: list[Point] = []
    for seed in arguments.seeds:
        if arguments.transfer is None:
            trial = Trial(arguments, SCENE_CATEGORIES, seed)
            makers = contestants(trial)
        else:
            trial = Trial(arguments, coarse_categories(), seed)
            makers = transfer_contestants(trial, arguments.transfer)
        for name, (model, ours) in makers:
            if not arguments.only or name in arguments.only:
                points += trial.run(name, model, ours)
    draw(points, arguments.output / "learning.png")
    print(table(points))


def contestants(trial: Trial) -> Iterator[tuple[str, tuple[nn.Module, DetrPanopticForSegmentation]]]:
    """The model to train and one of ours with its configuration, by name, one at a time."""
    theirs, ours = same_models(trial.categories, trial.seed)
    yield "transformers", (theirs, ours)
    yield "paper's recipe", (ours, ours)
    _, ours = same_models(trial.categories, trial.seed)
    _calibrate(ours, trial)
    yield "calibrated", (ours, ours)
    _, ours = same_models(trial.categories, trial.seed)
    _calibrate(ours, trial)
    attach_training_aids(ours)
    yield "calibrated, with aids", (ours, ours)


def transfer_contestants(
    trial: Trial, source: Path
) -> Iterator[tuple[str, tuple[nn.Module, DetrPanopticForSegmentation]]]:
    """A model that knows other classes, fine-tuned, and a new one."""
    labels = _labels(trial.categories)
    for aids in (False, True):
        tuned = DetrPanopticForSegmentation.from_pretrained(source, **labels, ignore_mismatched_sizes=True)
        if aids:
            attach_training_aids(tuned)
        yield f"fine-tuned{', with aids' if aids else ''}", (tuned, tuned)
    _, ours = same_models(trial.categories, trial.seed)
    _calibrate(ours, trial)
    attach_training_aids(ours)
    yield "from the backbone, calibrated, with aids", (ours, ours)


def same_models(categories: Categories, seed: int) -> tuple[DetrForSegmentation, DetrPanopticForSegmentation]:
    """Transformers' model and ours with the same weights, the backbone's pretrained on ImageNet."""
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
    ours = DetrPanopticForSegmentation.from_converted(converted, **labels)
    load_backbone_weights(ours.model.backbone, BACKBONE, EFFICIENTNET_LITE0)
    body = copy.deepcopy(ours.model.backbone.body)
    theirs.detr.model.backbone.model = body  # the stem and the first stage are frozen in it, as in the paper
    return theirs, ours


def coarse_categories() -> Categories:
    """The classes of the transfer."""
    is_thing = tuple(SCENE_CATEGORIES.is_thing[SCENE_CATEGORIES.names.index(names[0])] for names in COARSE.values())
    return Categories(names=tuple(COARSE), is_thing=is_thing, category_ids=tuple(range(1, len(COARSE) + 1)))


def coarse_scenes(count: int, **options: int) -> Dataset:
    """Scenes with the classes of the transfer; stuff that has become one class is one segment."""
    label_of = {
        SCENE_CATEGORIES.names.index(name): label for label, names in enumerate(COARSE.values()) for name in names
    }

    def relabel(record: dict[str, Any]) -> dict[str, Any]:
        segments = [{**segment, "label_id": label_of[segment["label_id"]]} for segment in record["segments_info"]]
        return merge_stuff(record, segments)

    return scenes_dataset(count, **options).map(relabel)


def merge_stuff(record: dict[str, Any], segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with segments of one stuff class merged into the first of them."""
    from PIL import Image

    from detr_panoptic.data.records import measure_segments
    from detr_panoptic.segment_ids import ids_to_rgb, rgb_to_ids

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


def draw(points: Sequence[Point], path: Path) -> None:
    """PQ against epochs and against time: all classes solid, things dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(p.contestant for p in points))}
    for axis, unit, label in zip(axes, ("epoch", "seconds"), ("epochs", "seconds of training"), strict=True):
        for (name, seed), line in _lines(points).items():
            for part, style in (("pq", "-"), ("pq_things", "--")):
                shown = name if part == "pq" and seed == line[0].seed == points[0].seed else None
                x, y = [getattr(p, unit) for p in line], [100 * getattr(p, part) for p in line]
                axis.plot(x, y, style, color=colors[name], label=shown, marker=".")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PQ on held-out scenes (dashed: things)")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(points: Sequence[Point]) -> str:
    """The last point of each contestant, the mean over seeds."""
    rows = []
    for name in dict.fromkeys(p.contestant for p in points):
        last = [line[-1] for (other, _), line in _lines(points).items() if other == name]

        def mean(field: str, of: Sequence[Point] = tuple(last)) -> float:
            return sum(getattr(p, field) for p in of) / len(of)

        quality = [f"{100 * mean(part):.1f}" for part in PARTS]
        rows.append([name, str(last[0].step), f"{mean('seconds') / last[0].step:.2f}", *quality])
    return markdown_table(["", "steps", "seconds per step", "PQ", "things", "stuff"], rows)


def _lines(points: Sequence[Point]) -> dict[tuple[str, int], list[Point]]:
    lines: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        lines.setdefault((point.contestant, point.seed), []).append(point)
    return lines


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
    parser.add_argument("--transfer", type=Path, metavar="FOLDER", help="fine-tune this model on other classes")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    return parser.parse_args()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
