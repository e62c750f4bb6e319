"""The program: exit codes, one line per error, and files that agree with each other and with the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForSegmentation

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints.conversion import convert_files
from detr_panoptic.cli import COMMANDS, main
from detr_panoptic.commands.frame import explain
from detr_panoptic.commands.predict import MAX_LISTED_IMAGES, output_stems
from detr_panoptic.data import read_panoptic, segmentation_ids
from detr_panoptic.data.categories import Categories
from detr_panoptic.segment_ids import rgb_to_ids

from .conftest import CATEGORY_IDS, NAMES, photo


def write_photo(path: Path, *, size: tuple[int, int] = (71, 53), seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(size, seed=seed).save(path, **options)
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def read(folder: Path, stem: str) -> tuple[np.ndarray, dict]:
    ids = rgb_to_ids(pixels(folder / f"{stem}.png"))
    return ids, json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_map_list_and_overlay_agree(tmp_path, model_folder, task):
    photos = [write_photo(tmp_path / f"{i}.png", size=(71 + i, 53), seed=i) for i in range(3)]
    out = tmp_path / "out"
    assert run("predict", *photos, "--model", model_folder, "--output", out, "--task", task, "--batch-size", 2) == 0
    num_segments = 0
    for i in range(3):
        ids, content = read(out, str(i))
        assert content["image"] == f"{i}.png"
        assert content["segmentation"] == f"{i}.png"
        assert ids.shape == (content["height"], content["width"]) == (53, 71 + i)
        assert {entry["id"] for entry in content["segments_info"]} == set(np.unique(ids)) - {0}
        for entry in content["segments_info"]:
            num_segments += 1
            rows, columns = np.nonzero(ids == entry["id"])
            x, y, width, height = entry["bbox"]
            assert entry["area"] == len(rows)
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert entry["label"] == NAMES[entry["label_id"]]
            assert entry["category_id"] == CATEGORY_IDS[entry["label_id"]]
            assert entry["isthing"] == (entry["label_id"] != 2)
            assert (entry["score"] is None) == (task == "semantic")
        changed = (pixels(out / f"{i}_overlay.png") != pixels(photos[i])).any(-1)
        assert changed[ids != 0].mean() > 0.9
    assert num_segments > 0


def test_files_hold_what_the_model_and_its_processor_say(tmp_path, model_folder):
    path = write_photo(tmp_path / "photo.png")
    assert run("predict", path, "--model", model_folder, "--output", tmp_path, "--threshold", 0.4) == 0
    ids, content = read(tmp_path, "photo_2")  # the photograph keeps its name
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    with torch.inference_mode():
        outputs = model(**processor(pixels(path), return_tensors="pt"))
    (result,) = processor.post_process_panoptic_segmentation(outputs, 0.4, target_sizes=[(53, 71)])
    assert np.array_equal(ids, result["segmentation"].numpy())
    assert [entry["score"] for entry in content["segments_info"]] == [s["score"] for s in result["segments_info"]]


def test_the_semantic_map_counts_all_queries(tmp_path, model_folder):
    path = write_photo(tmp_path / "photo.png", size=(72, 53), seed=1)
    run("predict", path, "--model", model_folder, "--output", tmp_path / "out", "--task", "semantic")
    ids, content = read(tmp_path / "out", "photo")
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    with torch.inference_mode():
        outputs = model(**processor(pixels(path), return_tensors="pt"), mask_queries="all")
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(53, 72)])
    label_of = {entry["id"]: entry["label_id"] for entry in content["segments_info"]}
    assert np.array_equal(np.vectorize(label_of.get)(ids), expected.numpy())


def test_nothing_above_the_threshold_is_a_result_too(tmp_path, model_folder, capsys):
    path = write_photo(tmp_path / "photo.png")
    assert run("predict", path, "--model", model_folder, "--output", tmp_path / "out", "--threshold", 1) == 0
    ids, content = read(tmp_path / "out", "photo")
    assert content["segments_info"] == []
    assert not ids.any()
    assert np.array_equal(pixels(tmp_path / "out" / "photo_overlay.png"), pixels(path))
    assert "nothing above the threshold" in capsys.readouterr().out


def test_a_broken_image_does_not_stop_the_others(tmp_path, model_folder, capsys):
    for i in (1, 3):
        write_photo(tmp_path / "in" / f"{i}.jpg")
    whole = (tmp_path / "in" / "1.jpg").read_bytes()
    (tmp_path / "in" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert run("predict", tmp_path / "in", "--model", model_folder, "--output", out) == 2
    assert "2.jpg" in only_line(capsys.readouterr().err)
    assert sorted(path.name for path in out.glob("*.json")) == ["1.json", "3.json"]


def test_a_missing_image_does_not_stop_the_others(tmp_path, model_folder, capsys):
    path = write_photo(tmp_path / "photo.png")
    assert run("predict", tmp_path / "missing.jpg", path, "--model", model_folder, "--output", tmp_path / "out") == 2
    assert "missing.jpg" in only_line(capsys.readouterr().err)
    assert (tmp_path / "out" / "photo.json").is_file()


def test_a_folder_stands_for_the_images_right_inside(tmp_path, model_folder):
    photos = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "deep/c.png"):
        write_photo(photos / name)
    (photos / "notes.txt").write_text("no image")
    assert run("predict", photos, "--model", model_folder, "--output", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.json", "b.json"]


def test_an_image_is_segmented_upright(tmp_path, model_folder):
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees
    path = write_photo(tmp_path / "turned.jpg", size=(71, 53), exif=exif)
    assert run("predict", path, "--model", model_folder, "--output", tmp_path / "out") == 0
    ids, content = read(tmp_path / "out", "turned")
    assert (content["width"], content["height"]) == (53, 71)
    assert ids.shape == (71, 53)
    assert pixels(tmp_path / "out" / "turned_overlay.png").shape == (71, 53, 3)


def test_inputs_in_the_output_folder_are_kept(tmp_path, model_folder):
    path = write_photo(tmp_path / "photo.png")
    before = path.read_bytes()
    assert run("predict", path, "--model", model_folder, "--output", tmp_path) == 0
    assert path.read_bytes() == before
    assert (tmp_path / "photo_2.json").is_file()


def test_no_two_results_share_a_file():
    names = ["a/x.jpg", "b/x.png", "x_2.jpg", "x_overlay.jpg", "X.jpg"]
    stems = output_stems([Path(name) for name in names], Path("out"))
    assert stems[:2] == ["x", "x_2"]
    files = [f"{stem}{ending}".lower() for stem in stems for ending in ("_overlay.png", ".png", ".json")]
    assert len(set(files)) == len(files)


def test_the_table_says_how_many_images_it_leaves_out(tmp_path, model_folder, capsys):
    photos = [write_photo(tmp_path / f"photo{i:02d}.png", size=(33, 31)) for i in range(MAX_LISTED_IMAGES + 2)]
    assert run("predict", *photos, "--model", model_folder, "--output", tmp_path / "out", "--batch-size", 12) == 0
    text = capsys.readouterr().out
    assert "photo09.png" in text
    assert "photo10.png" not in text
    assert "2 more images" in text


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [write_photo(tmp_path / "in" / f"{i}.png", size=(71 + i, 53), seed=i) for i in range(4)]


def test_coco_format_holds_what_the_single_files_hold(tmp_path, model_folder, photos):
    words = ("predict", *photos, "--model", model_folder)
    assert run(*words, "--output", tmp_path / "files") == 0
    assert run(*words, "--output", tmp_path / "coco", "--to", "coco-panoptic") == 0
    contents = json.loads((tmp_path / "coco" / "panoptic.json").read_text())
    assert contents["categories"] == [
        {"id": i, "name": name, "isthing": int(name != NAMES[2])} for i, name in zip(CATEGORY_IDS, NAMES, strict=True)
    ]
    for index, (image, annotation) in enumerate(zip(contents["images"], contents["annotations"], strict=True)):
        assert image == {"id": index + 1, "file_name": str(photos[index]), "height": 53, "width": 71 + index}
        assert annotation["image_id"] == index + 1
        ids, single = read(tmp_path / "files", str(index))
        assert np.array_equal(rgb_to_ids(pixels(tmp_path / "coco" / "panoptic" / annotation["file_name"])), ids)
        for segment, expected in zip(annotation["segments_info"], single["segments_info"], strict=True):
            assert segment.pop("iscrowd") == 0
            assert segment == {key: expected[key] for key in segment}


def test_parquet_is_a_dataset_to_train_on(tmp_path, model_folder, photos):
    words = ("predict", *photos, "--model", model_folder)
    assert run(*words, "--output", tmp_path / "files") == 0
    assert run(*words, "--output", tmp_path / "parquet", "--to", "parquet") == 0
    assert sorted(path.name for path in (tmp_path / "parquet").iterdir()) == [".journal", "data"]
    data = read_panoptic(tmp_path / "parquet")
    assert data.categories == Categories(NAMES, (True, True, False), tuple(CATEGORY_IDS))
    for index, record in enumerate(data.records):
        assert np.array_equal(np.asarray(record["image"]), pixels(photos[index]))
        ids, single = read(tmp_path / "files", str(index))
        assert np.array_equal(segmentation_ids(record["segmentation"]), ids)
        found = [(segment["id"], segment["label_id"]) for segment in record["segments_info"]]
        assert found == [(segment["id"], segment["label_id"]) for segment in single["segments_info"]]
    # Predicted once more, from the dataset itself, and packed: the same again.
    words = ("predict", "--data", tmp_path / "parquet", "--model", model_folder, "--to", "parquet")
    assert run(*words, "--output", tmp_path / "again") == 0
    again = read_panoptic(tmp_path / "again").records
    assert list(again["image_id"]) == list(data.records["image_id"])
    assert [record["segmentation"] for record in again] == [record["segmentation"] for record in data.records]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves a file open
@pytest.mark.parametrize("to", ["files", "coco-panoptic", "parquet"])
def test_an_interrupted_prediction_goes_on(tmp_path, model_folder, photos, capsys, to):
    words = ("predict", tmp_path / "in", "--model", model_folder, "--to", to, "--on-error", "stop")
    assert run(*words, "--output", tmp_path / "alone") == 0
    whole = photos[2].read_bytes()
    photos[2].write_bytes(whole[:90])
    out = tmp_path / "out"
    assert run(*words, "--output", out) == 2
    assert "2.png" in only_line(capsys.readouterr().err)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(written) == (4 if to == "files" else 2)
    photos[2].write_bytes(whole)
    assert run(*words, "--output", out) == 0
    assert "2 of them by earlier runs" in capsys.readouterr().out
    if to != "parquet":  # which takes the maps away in the end
        assert {path: path.stat().st_mtime_ns for path in written} == written
    files = [
        path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file() and ".journal" not in path.parts
    ]
    assert files == [
        path.relative_to(tmp_path / "alone")
        for path in sorted((tmp_path / "alone").rglob("*"))
        if path.is_file() and ".journal" not in path.parts
    ]
    assert all((out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in files)


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path, model_folder, photos, capsys):
    words = ("predict", tmp_path / "in", "--model", model_folder, "--output", tmp_path / "out", "--on-error", "stop")
    whole = photos[2].read_bytes()
    photos[2].write_bytes(whole[:90])
    assert run(*words) == 2
    assert run(*words, "--threshold", 0.4) == 2
    assert "`threshold` None, expected 0.4" in capsys.readouterr().err
    photos[2].write_bytes(whole)
    assert run(*words) == 0
    assert run(*words, "--threshold", 0.4) == 0  # the first is finished: its files are written anew, as ever


def test_a_skipped_image_of_a_packed_dataset_can_be_added(tmp_path, model_folder, photos):
    words = ("predict", tmp_path / "in", "--model", model_folder, "--output", tmp_path / "out", "--to", "parquet")
    whole = photos[1].read_bytes()
    photos[1].write_bytes(whole[:90])
    assert run(*words) == 2
    assert list(read_panoptic(tmp_path / "out").records["image_id"]) == [1, 3, 4]
    photos[1].write_bytes(whole)
    assert run(*words) == 0
    assert list(read_panoptic(tmp_path / "out").records["image_id"]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "Name either"),
        (["photo.png", "--data", "scenes"], "Name either"),
        (["photo.png", "--limit", "3"], "--limit"),
    ],
)
def test_images_and_datasets_are_not_mixed(tmp_path, model_folder, capsys, words, part):
    assert run("predict", *words, "--model", model_folder, "--output", tmp_path / "out") == 2
    assert part in only_line(capsys.readouterr().err)


def test_without_a_model_it_is_the_published_one(tmp_path, capsys):
    """Which is not here, and there is no network: the line names it."""
    path = write_photo(tmp_path / "photo.png")
    assert run("predict", path, "--output", tmp_path / "out") == 2
    line = only_line(capsys.readouterr().err)
    assert "facebook/detr-resnet-50-panoptic" in line
    assert "could not be fetched" in line


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--treshold", "0.5"], "--treshold"),
        (["--threshold", "2"], "from 0 to 1"),
        (["--threshold", "0.5", "--task", "semantic"], "no meaning"),
        (["--task", "polygons"], "polygons"),
        (["--batch-size", "0"], "at least 1"),
        (["--device", "cuda:99"], "CUDA GPUs"),
        (["--device", "abacus"], "abacus"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--model", "nomodel"], "nomodel"),
        (["--model", "nobody/nothing"], "nobody/nothing"),
        (["--model", "{photo}"], "convert"),
        (["--model", "{folder}"], "config.json"),
        (["--output", "{photo}"], "is a file"),
        (["--output", "{folder}"], "input folder"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(tmp_path, model_folder, capsys, options, part):
    path = write_photo(tmp_path / "photo.png")
    words = [word.format(photo=path, folder=tmp_path) for word in options]
    assert run("predict", path, tmp_path, "--model", model_folder, "--output", tmp_path / "out", *words) == 2
    captured = capsys.readouterr()
    assert part in only_line(captured.err)
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_debug_shows_where_it_happened(tmp_path, capsys):
    path = write_photo(tmp_path / "photo.png")
    assert run("predict", path, "--model", tmp_path, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_without_images_is_reported(tmp_path, model_folder, capsys):
    assert run("predict", tmp_path, "--model", model_folder, "--output", tmp_path / "out") == 2
    assert "No images in" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (KeyError("name"), "KeyError: 'name'"),
        (RuntimeError(), "RuntimeError"),
        (FileNotFoundError(2, "No such file", "x.json"), "x.json: No such file"),
    ],
)
def test_errors_become_one_line(error, line):
    assert explain(error) == line


def test_every_command_explains_itself(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1]
        assert name in overview
        assert main([name, "--help"]) == 0
        page = capsys.readouterr().out
        assert f"detr-panoptic {name} " in page.split("examples:")[1]
        assert "(default: None)" not in page
        assert "(default: False)" not in page


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    assert "predict" in capsys.readouterr().err


def test_an_unknown_command_is_one_line(capsys):
    assert main(["divine"]) == 2
    assert "divine" in only_line(capsys.readouterr().err)


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory) -> Path:
    """A tiny DETR as transformers saves it, with a processor of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    sizes = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 1), ("ffn_dim", 48), ("attention_heads", 8))
    }
    config = DetrConfig(
        use_timm_backbone=True,
        backbone="resnet18",
        use_pretrained_backbone=False,
        backbone_config=None,
        d_model=128,
        num_queries=5,
        num_labels=3,
        **sizes,
    )
    DetrForSegmentation(config).save_pretrained(folder)
    processor = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 97}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_convert_writes_a_model_that_loads_with_the_same_weights(tmp_path, foreign_folder, capsys):
    assert run("convert", foreign_folder, tmp_path / "ours", "--dilation") == 0
    text = capsys.readouterr().out
    expected = convert_files(foreign_folder, dilation=True)
    for note in expected.notes:
        assert note in text
    model = DetrPanopticForSegmentation.from_pretrained(tmp_path / "ours")
    assert model.config.dilation
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.state_dict.items())
    processor = DetrPanopticImageProcessor.from_pretrained(tmp_path / "ours")
    assert processor.size["shortest_edge"] == 64


def test_a_converted_model_predicts(tmp_path, foreign_folder):
    path = write_photo(tmp_path / "photo.png")
    assert run("convert", foreign_folder, tmp_path / "ours") == 0
    assert run("predict", path, "--model", tmp_path / "ours", "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "photo.json").is_file()


@pytest.mark.parametrize(
    ("source", "output", "part"),
    [
        ("{foreign}", "{foreign}", "`output`"),
        ("{photo}", "{tmp}/ours", "photo.png"),
        ("{tmp}/detr.pth", "{tmp}/ours", "detr.pth"),
        ("weights/detr.pth", "{tmp}/ours", "weights/detr.pth"),
        ("{foreign}", "{photo}", "`output`"),
    ],
)
def test_convert_refuses_in_one_line(tmp_path, foreign_folder, capsys, source, output, part):
    names = {"photo": write_photo(tmp_path / "photo.png"), "foreign": foreign_folder, "tmp": tmp_path}
    assert run("convert", source.format(**names), output.format(**names)) == 2
    assert part in only_line(capsys.readouterr().err)
    assert not (tmp_path / "ours").exists()


def test_compact_without_unused_classes_is_refused(tmp_path, foreign_folder, capsys):
    assert run("convert", foreign_folder, tmp_path / "ours", "--compact") == 2
    assert "`compact`" in only_line(capsys.readouterr().err)
