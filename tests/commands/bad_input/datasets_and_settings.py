"""Datasets, configurations and options that are wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import read_panoptic
from tests.commands.bad_input.place import Case, Place
from tests.conftest import NAMES, build_tiny
from tests.data_folders import coco_panoptic

TRAINING = ("--recipe", "none", "--data", "my_data", "--short-side", 64, "--long-side", 64)
TINY = (*TRAINING, "--backbone", "test_resnet")


def rows(columns: dict[str, Any], features: dict[str, Any] | None = None, *options: object, name: str = "") -> Case:
    """A saved dataset of one row; pictures are made of names of colors."""

    def case(place: Place) -> str:
        made = {k: [picture(v) if isinstance(v, str) and k != "segments_info" else v] for k, v in columns.items()}
        types = None if features is None else Features(features)
        data = Dataset.from_dict(made, features=types)
        if name:
            data.to_parquet(place.folder / name)
            return place.program("data", "convert", name, "out", *options)
        data.save_to_disk(place.folder / "my_data", num_proc=None)
        return place.convert(*options)

    return case


def picture(color: str) -> PILImage.Image:
    return PILImage.new("RGB", (4, 3), color)


SEGMENTS = [{"id": 255, "category_id": 7}]
CATEGORIES = [{"id": 7, "name": "boat", "isthing": 1}]
PICTURES = {"image": Image(), "label": Image()}


def with_categories(case: Case, categories: Any = CATEGORIES) -> Case:
    """The same with `categories.json` beside the rows."""

    def changed(place: Place) -> str:
        place.write_json("categories.json", categories)
        convert, place.convert = place.convert, lambda *_: ""  # type: ignore[method-assign]
        case(place)
        place.write_json("my_data/categories.json", categories)
        return convert()

    return changed


def row(segments: Any, label: Any = "#ff0000") -> Case:
    kinds = {"id": Value("int64"), "category_id": Value("int64")}
    return with_categories(
        rows({"image": "teal", "label": label, "segments_info": segments}, {**PICTURES, "segments_info": List(kinds)})
    )


def foreign_path(place: Place) -> str:
    """Rows whose pictures are names of files of whoever reads them."""
    place.picture().save(place.folder / "secret.png")
    stored = {"path": str(place.folder / "secret.png"), "bytes": None}
    kinds = {"image": {"path": Value("string"), "bytes": Value("binary")}}
    columns = {"image": [stored], "label": [stored], "segments_info": [[{"id": 255, "category_id": 7}]]}
    types = {**kinds, "label": kinds["image"]}
    types["segments_info"] = List({"id": Value("int64"), "category_id": Value("int64")})
    data = Dataset.from_dict(columns, features=Features(types))
    for name in ("image", "label"):
        data = data.cast_column(name, Image())
    (place.folder / "my_data").mkdir()
    data.to_parquet(place.folder / "my_data" / "rows.parquet")
    place.write_json("my_data/categories.json", CATEGORIES)
    return place.convert()


def empty_folder(place: Place) -> str:
    (place.folder / "my_data").mkdir()
    return place.convert()


def no_annotations(place: Place) -> str:
    path = coco_panoptic(place.folder / "my_data") / "panoptic.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    return place.convert()


def good_data(*words: object) -> Case:
    """The program on a dataset that is good, `my_data`."""

    def case(place: Place) -> str:
        coco_panoptic(place.folder / "my_data")
        place.model()
        return place.program(*words)

    return case


def damaged_parquet(place: Place) -> str:
    (place.folder / "my_data.parquet").write_bytes(b"PAR1 not really")
    return place.program("data", "convert", "my_data.parquet", "out")


def other_classes(place: Place) -> str:
    coco_panoptic(place.folder / "my_data")
    return place.program("evaluate", "--model", place.model(), "--data", "my_data", "--output", "out")


DATASETS: dict[str, Case] = {
    "a name that is neither here nor on the Hub": lambda place: place.program("data", "convert", "my_dta", "out"),
    "an empty folder": empty_folder,
    "no annotated image": no_annotations,
    "a split that does not exist": good_data("data", "convert", "my_data", "out", "--split", "tset"),
    "a format that does not exist": good_data("data", "convert", "my_data", "out", "--format", "coco"),
    "another format than the data have": good_data("data", "convert", "my_data", "out", "--format", "cityscapes"),
    "`--limit 0`": good_data("data", "convert", "my_data", "out", "--limit", "0"),
    "an output folder that is not empty": good_data("data", "convert", "my_data", "my_data"),
    "rows: no column with a map": rows({"image": "teal", "segments_info": SEGMENTS}),
    "rows: no `segments_info`": rows({"image": "teal", "label": "red"}),
    "rows: nothing says what the categories are": rows({"image": "teal", "label": "red", "segments_info": SEGMENTS}),
    "rows: an unknown category": row([{"id": 255, "category_id": 99}]),
    "rows: a segment without `id`": row([{"id": None, "category_id": 7}]),
    "rows: a map of another size": row(SEGMENTS, label=PILImage.new("RGB", (9, 9), "red")),
    "rows: a map of floats": row(SEGMENTS, label=PILImage.new("F", (4, 3), 1.5)),
    "rows: categories that are texts": with_categories(
        rows({"image": "teal", "label": "red", "segments_info": [{"id": 255, "category_id": "boat"}]})
    ),
    "rows: `segments_info` that is a text": with_categories(
        rows({"image": "teal", "label": "red", "segments_info": "boat"})
    ),
    "rows: pictures that are texts": with_categories(rows({"image": 7, "label": "red", "segments_info": SEGMENTS})),
    "rows: pictures that are paths to files elsewhere": foreign_path,
    "a Parquet file that is damaged": damaged_parquet,
    "classes that the model does not have, in `evaluate`": other_classes,
}


def config_file(text: str | bytes) -> Case:
    """`train --config run.yaml`."""

    def case(place: Place) -> str:
        (place.folder / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return place.program("train", "--config", "run.yaml")

    return case


def laughs() -> str:
    """A few lines that would be 10 million texts."""
    lines = ["model:", "  - &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 7)]
    return "\n".join(lines)


def train(*options: object) -> Case:
    """`train` of a tiny model from scratch."""
    return good_data("train", *(TRAINING if "--backbone" in options else TINY), "--output", "run", *options)


def read_only_output(place: Place) -> str:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (place.folder / "closed").mkdir(mode=0o500)
    return place.program("predict", "photo.png", "--model", place.model(), "--output", "closed/results")


def output_below_a_file(place: Place) -> str:
    (place.folder / "out").write_text("a file")
    return place.program("predict", "photo.png", "--model", place.model(), "--output", "out/results")


def file_for_output(*words: object) -> Case:
    def case(place: Place) -> str:
        path = coco_panoptic(place.folder / "my_data") / "panoptic.json"
        contents = json.loads(path.read_text())
        for category, name in zip(contents["categories"], NAMES, strict=True):
            category["name"] = name  # those of the model
        path.write_text(json.dumps(contents))
        place.model()
        (place.folder / "out").write_text("a file")
        return place.program(*words)

    return case


def option(*words: object) -> Case:
    return lambda place: place.predict("photo.png", *words)


def missing_gpu(place: Place) -> str:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    return place.predict("photo.png", "--device", "cuda")


SETTINGS: dict[str, Case] = {
    "a misspelled key": config_file("learning_rte: 1"),
    "a misspelled section": config_file("optimisation: {epochs: 3}"),
    "a text for a number": config_file("learning_rate: fast"),
    "a number for a switch": config_file("dilation: 1"),
    "a fraction for a count": config_file("epochs: 2.5"),
    "a list for a number": config_file("epochs: [3]"),
    "a mapping for a text": config_file("model: {name: large}"),
    "a page that is a list": config_file("- model\n- data\n"),
    "an empty file": config_file(""),
    "YAML that is none": config_file("model: {a: ]"),
    "YAML with a tag of Python": config_file("model: !!python/object/apply:os.system ['touch touched']"),
    "YAML with aliases": config_file(laughs()),
    "YAML that is nested 2 000 times": config_file("model: " + "[" * 2000),
    "a file that is no text": config_file(b"\xff\xfe\x00"),
    "a configuration that is not there": lambda place: place.program("train", "--config", "gone.yaml"),
    "a recipe that does not exist": config_file("recipe: fintune"),
    "`train` without data": lambda place: place.program("train", "--output", "run"),
    "a learning rate of NaN": train("--learning-rate", "nan"),
    "an infinite learning rate": train("--learning-rate", "inf"),
    "a batch size of 0": train("--batch-size", "0"),
    "a moving average beyond 1": train("--ema-decay", "1.5"),
    "a schedule that does not exist": train("--schedule", "linear"),
    "a precision that does not exist": train("--mixed-precision", "fp8"),
    "a hidden size that the heads do not divide": train("--hidden-size", "48", "--num-heads", "5"),
    "a backbone that timm does not know": train("--backbone", "resnet51"),
    "a backbone to be fetched from somewhere": train("--backbone", "hf-hub:someone/something"),
    "weights of the backbone that are not there": train("--backbone-weights", "gone.pth"),
    "an option that does not exist": option("--treshold", "0.5"),
    "a threshold above 1": option("--threshold", "1.5"),
    "a threshold below 0": option("--threshold", "-0.1"),
    "a threshold that is NaN": option("--threshold", "nan"),
    "a threshold that is a text": option("--threshold", "high"),
    "a task that does not exist": option("--task", "polygons"),
    "a batch of 0 images": option("--batch-size", "0"),
    "a device that torch does not know": option("--device", "abacus"),
    "a GPU that is not there": missing_gpu,
    "a device that torch knows and was not built for": option("--device", "xla"),
    "a type of numbers that does not exist": option("--dtype", "float8"),
    "an output folder that is a file, in `predict`": file_for_output(
        "predict", "photo.png", "--model", "my_model", "--output", "out"
    ),
    "an output folder that is a file, in `evaluate`": file_for_output(
        "evaluate", "--data", "my_data", "--model", "my_model", "--output", "out"
    ),
    "an output folder that is a file, in `train`": file_for_output("train", *TINY, "--output", "out"),
    "an output folder that is a file, in `explain`": file_for_output(
        "explain", "photo.png", "--model", "my_model", "--output", "out"
    ),
    "an output folder that is a file, in `data check`": file_for_output("data", "check", "my_data", "--report", "out"),
    "an output folder inside one that is read-only": read_only_output,
    "an output folder inside a file": output_below_a_file,
    "a size of the graph that is none": good_data("export", "my_model", "out", "--size", "64"),
}


def call(make: Callable[[], Any]) -> Case:
    """A call in Python."""
    return lambda place: place.refused(make)


def processed(**options: Any) -> Any:
    outputs = DetrPanopticForSegmentation(DetrPanopticConfig(**tiny()))
    return DetrPanopticImageProcessor().post_process_panoptic_segmentation(outputs_of(outputs), **options)


def tiny() -> dict[str, Any]:
    return build_tiny().config.to_diff_dict()


@torch.no_grad()
def outputs_of(model: DetrPanopticForSegmentation) -> Any:
    return model.eval()(pixel_values=torch.zeros(2, 3, 32, 64))


def model_call(**inputs: Any) -> Case:
    return call(lambda: build_tiny()(**({"pixel_values": torch.zeros(1, 3, 32, 64)} | inputs)))


def target(**changes: Any) -> dict[str, Any]:
    """A target of one image, with changes; None leaves a part out."""
    parts = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} | changes
    return {name: value for name, value in parts.items() if value is not None}


LABELS: dict[str, Any] = {
    "boxes in pixels": [target(boxes=torch.tensor([[10.0, 20.0, 30.0, 40.0]]))],
    "boxes that are NaN": [target(boxes=torch.full((1, 4), float("nan")))],
    "a box of negative width": [target(boxes=torch.tensor([[0.5, 0.5, -0.2, 0.2]]))],
    "two boxes for one class": [target(boxes=torch.rand(2, 4))],
    "classes of one axis too many": [target(class_labels=torch.tensor([[0]]))],
    "classes that are fractions": [target(class_labels=torch.tensor([0.5]))],
    "classes in a list": [target(class_labels=[0])],
    "no boxes": [target(boxes=None)],
    "no classes": [target(class_labels=None)],
    "a class below zero": [target(class_labels=torch.tensor([-1]))],
    "a semantic map": torch.zeros(1, 32, 64, dtype=torch.int64),
    "one target that is not in a list": target(),
}


def arrays(image: Any, **options: Any) -> Case:
    return call(lambda: DetrPanopticImageProcessor()(image, return_tensors="pt", **options))


IN_PYTHON: dict[str, Case] = {
    "target sizes for one image of two": call(lambda: processed(target_sizes=[(32, 64)])),
    "a target size of three numbers": call(lambda: processed(target_sizes=[(32, 64, 3)] * 2)),
    "a target size of 0 pixels": call(lambda: processed(target_sizes=[(0, 64)] * 2)),
    "a threshold of 2": call(lambda: processed(threshold=2)),
    "a threshold of NaN": call(lambda: processed(threshold=float("nan"))),
    "no image": arrays([]),
    "an array of five channels": arrays(torch.zeros(5, 8, 8)),
    "an array without pixels": arrays(torch.zeros(3, 0, 8)),
    "an array of whole numbers beyond 255": arrays(torch.full((3, 8, 8), 300)),
    "a number for an image": arrays(7),
    "annotations for one image of two": arrays([torch.zeros(3, 8, 8)] * 2, annotations=[{}]),
    "`pixel_values` of two axes": model_call(pixel_values=torch.zeros(3, 3)),
    "a `pixel_mask` of another size": model_call(pixel_mask=torch.ones(1, 9, 9)),
    "labels for two images of one": model_call(labels=[{"class_labels": torch.tensor([0])}] * 2),
    "a class that the model does not have": model_call(
        labels=[{"class_labels": torch.tensor([3]), "boxes": torch.rand(1, 4)}]
    ),
    **{f"labels: {what}": model_call(labels=labels) for what, labels in LABELS.items()},
    "masks of another size than the image": model_call(labels=[target(masks=torch.ones(1, 16, 32).bool())]),
    "`mask_queries` that are more than there are": model_call(mask_queries=6),
    "an array with NaN": arrays(torch.full((3, 8, 8), float("nan"))),
    "a threshold for the preparation of images": arrays(torch.zeros(3, 8, 8), threshold=0.5),
    "a misspelled setting of the image processor": arrays(torch.zeros(3, 8, 8), do_resise=False),
    "a crop of the center": arrays(torch.zeros(3, 8, 8), do_center_crop=True),
    "`id2label` with a gap": call(lambda: DetrPanopticConfig(id2label={0: "boat", 2: "sea"})),
    "`id2label` that disagrees with `num_labels`": call(
        lambda: DetrPanopticConfig(id2label={0: "sea"}, num_labels=2)  # type: ignore[call-arg]
    ),
    "a misspelled field in `from_pretrained`": lambda place: place.refused(
        lambda: DetrPanopticForSegmentation.from_pretrained(place.model(), num_querys=50)
    ),
    "a configuration with a misspelled field": call(
        lambda: DetrPanopticConfig(num_querys=5)  # type: ignore[call-arg]
    ),
    "`limit` of -1": call(lambda: read_panoptic(Path("my_data"), limit=-1)),
}
