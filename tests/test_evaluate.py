"""`evaluate`: the official numbers, whatever was interrupted, skipped or named differently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.cli import main
from detr_panoptic.commands.evaluate import label_map
from detr_panoptic.commands.frame import CommandError
from detr_panoptic.data import read_panoptic
from detr_panoptic.evaluation import evaluate_files, evaluate_model
from detr_panoptic.evaluation.panoptic_quality import panoptic_quality
from detr_panoptic.evaluation.report import markdown
from detr_panoptic.segment_ids import ids_to_rgb, rgb_to_ids

from .conftest import CATEGORY_IDS, NAMES, photo

COUNT = 6
UNCLOSED = "ignore::pytest.PytestUnraisableExceptionWarning"  # `datasets` leaves a broken picture's file open
# Neither the order nor the ids of the model's labels.
CATEGORIES = {"sky-other-merged": 4, "person": 77, "boat": 21}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory, model_folder) -> Path:
    """Photos whose annotations the model finds in part: its own predictions, moved, and some of another class."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    for index in range(COUNT):
        photo((71 if index % 2 else 53, 53), seed=index).save(folder / "images" / f"{index + 1}.png")
    predicted = folder / "predicted"
    assert (
        run("predict", folder / "images", "--model", model_folder, "--output", predicted, "--to", "coco-panoptic") == 0
    )
    contents = json.loads((predicted / "panoptic.json").read_text())
    name_of = {category["id"]: category["name"] for category in contents["categories"]}
    assert [name_of[category_id] for category_id in CATEGORY_IDS] == list(NAMES)
    (folder / "panoptic").mkdir()
    for number, entry in enumerate(contents["annotations"]):
        ids = np.roll(read_map(predicted / "panoptic" / entry["file_name"]), 3 * number, axis=1)
        Image.fromarray(ids_to_rgb(ids)).save(folder / "panoptic" / entry["file_name"])
        for place, segment in enumerate(entry["segments_info"]):
            name = name_of[segment["category_id"]] if place != 1 else "person"
            segment["category_id"] = CATEGORIES[name]
            del segment["bbox"], segment["score"]
    for image in contents["images"]:
        image["file_name"] = Path(image["file_name"]).name
    contents["annotations"].reverse()
    contents["categories"] = [
        {"id": category_id, "name": name, "isthing": int(name != "sky-other-merged")}
        for name, category_id in CATEGORIES.items()
    ]
    (folder / "panoptic.json").write_text(json.dumps(contents))
    shutil.rmtree(predicted)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def read_map(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return rgb_to_ids(np.asarray(picture))


def evaluate(model, data, output, *words) -> int:
    return run("evaluate", "--model", model, "--data", data, "--output", output, *words)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, model_folder, data_folder) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "results"
    assert evaluate(model_folder, data_folder, folder) == 0
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_files_and_metrics_say_the_same_to_the_last_bit(data_folder, evaluated):
    official = evaluate_files(data_folder / "panoptic.json", evaluated / "panoptic.json")
    metrics = metrics_of(evaluated)
    assert metrics["images"] == COUNT
    assert metrics["panoptic_quality"] == {name.lower(): official[name] for name in ("All", "Things", "Stuff")}
    for row in metrics["per_class"]:
        assert row["category_id"] == CATEGORIES[row["name"]]
        assert {key: row[key] for key in ("pq", "sq", "rq")} == official["per_class"][row["category_id"]]
    assert 0.1 < metrics["panoptic_quality"]["all"]["pq"] < 0.9  # else the comparison would be of nothing
    assert all(row["tp"] and row["fp"] + row["fn"] for row in metrics["per_class"])


def test_training_measures_the_same(model_folder, data_folder, evaluated):
    """Training's way: the data in the model's labels."""
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    from detr_panoptic.inference.old_loading import model_categories

    data = read_panoptic(data_folder, categories=model_categories(model.config))
    stats = evaluate_model(model.eval(), processor, data.records, data.categories, batch_size=1)
    quality = panoptic_quality(stats, category_ids=data.categories.category_ids, is_thing=data.categories.is_thing)
    for name in ("All", "Things", "Stuff"):
        assert metrics_of(evaluated)["panoptic_quality"][name.lower()] == pytest.approx(quality[name], abs=1e-12)


def test_the_sheet_and_the_tables_are_written(evaluated):
    with Image.open(evaluated / "worst_and_best.png") as sheet:
        assert sheet.width > 3 * 71  # image, annotation and prediction
        assert sheet.height > COUNT * 53
    text = (evaluated / "metrics.md").read_text()
    assert f"{COUNT} images" in text
    for name in NAMES:
        assert f"| {name} |" in text


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, model_folder, data_folder, evaluated, kept):
    """As a kill leaves it: whole lines, a torn one, a map without its line, half a map."""
    folder = tmp_path / "results"
    shutil.copytree(evaluated, folder)
    for name in ("metrics.json", "metrics.md", "panoptic.json"):
        (folder / name).unlink()
    journal = folder / ".journal" / "00000.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:kept]) + lines[kept][:40])
    maps = [json.loads(line)["annotation"]["file_name"] for line in lines]
    for name in maps[kept + 1 :]:
        (folder / "panoptic" / name).unlink()
    untouched = [(folder / "panoptic" / name).stat().st_mtime_ns for name in maps[:kept]]
    assert evaluate(model_folder, data_folder, folder) == 0
    assert [(folder / "panoptic" / name).stat().st_mtime_ns for name in maps[:kept]] == untouched
    for name in ("metrics.json", "metrics.md", "panoptic.json", "worst_and_best.png"):
        assert (folder / name).read_bytes() == (evaluated / name).read_bytes(), name


def test_a_finished_run_has_nothing_left_to_do(tmp_path, model_folder, data_folder, evaluated, capsys):
    folder = tmp_path / "results"
    shutil.copytree(evaluated, folder)
    lines = (folder / ".journal" / "00000.jsonl").read_text()
    assert evaluate(model_folder, data_folder, folder) == 0
    assert "all of them by earlier runs" in capsys.readouterr().out
    assert (folder / ".journal" / "00000.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--threshold", "0.5"], "threshold"),
        (["--limit", "3"], "data"),
        (["--batch-size", "2"], "batch_size"),
        (["--average-precision", "box"], "average_precision"),
        (["--dtype", "bfloat16"], "dtype"),
    ],
)
def test_other_settings_do_not_mix_with_earlier_results(model_folder, data_folder, evaluated, capsys, words, name):
    before = (evaluated / "metrics.json").read_bytes()
    assert evaluate(model_folder, data_folder, evaluated, *words) == 2
    assert f"`{name}`" in capsys.readouterr().err
    assert (evaluated / "metrics.json").read_bytes() == before


def test_another_model_of_the_same_name_does_not_mix_either(tmp_path, model_folder, data_folder, evaluated, capsys):
    shutil.copytree(model_folder, tmp_path / "model")
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    with torch.no_grad():
        model.class_head.bias[0] += 1e-3
    model.save_pretrained(tmp_path / "model")
    assert evaluate(tmp_path / "model", data_folder, evaluated) == 2
    assert "`model`" in capsys.readouterr().err


@pytest.fixture
def broken_folder(tmp_path, data_folder) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(data_folder, folder)
    whole = (folder / "images" / "3.png").read_bytes()
    (folder / "images" / "3.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.filterwarnings(UNCLOSED)
def test_a_broken_image_stops_the_run_in_one_line(tmp_path, model_folder, broken_folder, capsys):
    assert evaluate(model_folder, broken_folder, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Image 3 (3.png)" in line
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("kind", ["images", "panoptic"])
def test_a_missing_file_is_skipped_and_listed(tmp_path, model_folder, data_folder, capsys, kind):
    shutil.copytree(data_folder, tmp_path / "data")
    missing = sorted((tmp_path / "data" / kind).iterdir())[1]
    missing.unlink()
    assert evaluate(model_folder, tmp_path / "data", tmp_path / "out", "--on-error", "skip") == 2
    assert str(missing) in capsys.readouterr().err
    (skipped,) = metrics_of(tmp_path / "out")["skipped"]
    assert "No such file" in skipped
    assert metrics_of(tmp_path / "out")["images"] == COUNT - 1


@pytest.mark.filterwarnings(UNCLOSED)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_skipped_image_is_listed_and_the_rest_is_measured(tmp_path, model_folder, broken_folder, capsys, batch_size):
    words = ("--batch-size", batch_size, "--on-error", "skip")
    assert evaluate(model_folder, broken_folder, tmp_path / "out", *words) == 2
    assert "Image 3 (3.png)" in capsys.readouterr().err
    (skipped,) = metrics_of(tmp_path / "out")["skipped"]
    assert skipped.startswith("Image 3 (3.png): ")
    assert "3.png" in (tmp_path / "out" / "metrics.md").read_text()
    truth = json.loads((broken_folder / "panoptic.json").read_text())
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] != 3]
    (broken_folder / "others.json").write_text(json.dumps(truth))
    official = evaluate_files(
        broken_folder / "others.json", tmp_path / "out" / "panoptic.json", broken_folder / "panoptic"
    )
    assert metrics_of(tmp_path / "out")["panoptic_quality"]["all"] == official["All"]
    # Mended, it is measured by the next run.
    photo((53, 53), seed=2).save(broken_folder / "images" / "3.png")
    assert evaluate(model_folder, broken_folder, tmp_path / "out", *words) == 0
    assert metrics_of(tmp_path / "out")["skipped"] == []
    assert metrics_of(tmp_path / "out")["images"] == COUNT
    lines = (tmp_path / "out" / ".journal" / "00000.jsonl").read_text().splitlines()
    assert len(lines) == COUNT + 1  # one for each image, and one for the failure


def test_batches_without_padding_give_the_numbers_of_single_images(tmp_path, model_folder, data_folder, evaluated):
    """The folder has three images of each of two sizes: sorted by shape, batches of three need no padding."""
    assert evaluate(model_folder, data_folder, tmp_path / "out", "--batch-size", 3) == 0
    alone, together = metrics_of(evaluated), metrics_of(tmp_path / "out")
    for group, values in alone["panoptic_quality"].items():
        assert together["panoptic_quality"][group] == pytest.approx(values, abs=2e-3)


def test_what_the_data_does_not_know_is_void(tmp_path, model_folder, data_folder):
    """The data of a model that knows more: its boats are in nobody's way, and in no file."""
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    contents = json.loads((folder / "panoptic.json").read_text())
    contents["categories"] = [category for category in contents["categories"] if category["name"] != "boat"]
    for entry in contents["annotations"]:
        boats = [s["id"] for s in entry["segments_info"] if s["category_id"] == CATEGORIES["boat"]]
        entry["segments_info"] = [s for s in entry["segments_info"] if s["id"] not in boats]
        ids = read_map(folder / "panoptic" / entry["file_name"])
        Image.fromarray(ids_to_rgb(np.where(np.isin(ids, boats), 0, ids))).save(
            folder / "panoptic" / entry["file_name"]
        )
    (folder / "panoptic.json").write_text(json.dumps(contents))
    assert evaluate(model_folder, folder, tmp_path / "out") == 0
    official = evaluate_files(folder / "panoptic.json", tmp_path / "out" / "panoptic.json")
    assert metrics_of(tmp_path / "out")["panoptic_quality"]["all"] == official["All"]
    assert metrics_of(tmp_path / "out")["panoptic_quality"]["all"]["n"] == 2


def test_classes_are_matched_by_name(data_folder):
    categories = read_panoptic(data_folder).categories
    assert label_map({0: "boat", 1: "zebra", 2: "sky-other-merged", 3: "person"}, categories) == {0: 2, 2: 0, 3: 1}
    with pytest.raises(CommandError, match="no class for 2 of the 3 classes of the data: 'person', 'boat'"):
        label_map({0: "LABEL_0", 1: "sky-other-merged"}, categories)


def test_names_cannot_break_the_tables():
    metrics = {
        "panoptic_quality": {"all": {"pq": 0.5, "sq": 0.5, "rq": 1.0, "n": 1}},
        "average_precision": {},
        "per_class": [
            {"name": "a|b<script>", "isthing": 1, "pq": 0.5, "sq": 0.5, "rq": 1.0, "tp": 1, "fp": 0, "fn": 0}
        ],
        "images": 1,
        "skipped": ["x|\n<y>: broken"],
        "settings": {},
    }
    text = markdown(metrics)
    assert "| a\\|b&lt;script> | thing | 50.0 |" in text
    assert "- x\\| &lt;y>: broken" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--batch-size", "0"], "at least 1"),
        (["--threshold", "1.5"], "from 0 to 1"),
        (["--workers", "-1"], "at least 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_costs_one_line(tmp_path, model_folder, data_folder, capsys, words, part):
    assert evaluate(model_folder, data_folder, tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
    assert not (tmp_path / "out").exists()
