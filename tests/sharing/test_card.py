"""`detr-panoptic push` up to the upload: what is checked, what is sent, what the card says."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.cli import main
from detr_panoptic.commands.demo import SHIPPED_MODEL
from detr_panoptic.model_card import MeasuredQuality, ModelFacts, build_card, complete_card, public_name
from detr_panoptic.sharing.hub_folder import left_out, write_hub_folder
from tests.conftest import NAMES

REPOSITORY = "somebody/some-model"
CODE = {"configuration_detr_panoptic.py", "modeling_detr_panoptic.py", "pipeline_detr_panoptic.py"}


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A model's folder as training leaves it, to be spoiled."""
    copy = tmp_path / "my_model"
    shutil.copytree(model_folder, copy)
    (copy / "checkpoints" / "step_7").mkdir(parents=True)
    (copy / "checkpoints" / "step_7" / "optimizer.bin").write_bytes(b"state")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "metrics.jsonl").write_text("{}\n")
    (copy / ".lock").touch()
    return copy


@pytest.fixture
def output(tmp_path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_what_is_sent_is_the_model_its_code_and_a_card(folder, output):
    write_hub_folder(output, folder, repository=REPOSITORY)
    names = {path.name for path in output.iterdir()}
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {name for name in names if not name.endswith(".py")} == files
    assert names >= CODE
    sent, there = load_file(output / "model.safetensors"), load_file(folder / "model.safetensors")
    assert sent.keys() == there.keys()
    assert all(torch.equal(sent[name], there[name]) for name in there)
    assert left_out(folder, output) == ["checkpoints/", "metrics.jsonl", "pytorch_model.bin"]


def test_half_precision_stays_as_it_is(output):
    write_hub_folder(output, SHIPPED_MODEL, repository=REPOSITORY)
    sent, there = load_file(output / "model.safetensors"), load_file(SHIPPED_MODEL / "model.safetensors")
    assert all(torch.equal(sent[name], there[name]) and sent[name].dtype == torch.float16 for name in there)
    card = card_of(output)
    assert "Things (8): house, tree" in card.text
    assert "Stuff (6): sky" in card.text
    for title in ("Data", "Recipe"):
        assert f"## {title}\n\nNot recorded." in card.text
    assert "## Panoptic quality\n\nNot measured." in card.text
    assert f'model="{REPOSITORY}"' in card.text


def test_the_card_places_the_model_on_the_hub(folder, output):
    write_hub_folder(output, folder, repository=REPOSITORY)
    metadata = yaml.safe_load((output / "README.md").read_text().split("---\n")[1])
    assert metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"
    assert metadata["metrics"] == ["panoptic_quality"]
    assert {"panoptic-segmentation", "detr"} <= set(metadata["tags"])


QUALITY = MeasuredQuality(
    dataset="coco val2017",
    hub_dataset="owner/coco",
    how="100 images",
    groups={"all": (0.437, 0.8, 0.53), "things": (0.5, 0.8, 0.6), "stuff": (0.3, 0.75, 0.4)},
    classes={"a|b<c": 0.1, "boat": 0.9},
)


def test_quality_is_in_the_metadata_and_in_tables():
    facts = ModelFacts(name="m", architecture="small", is_thing={"boat": True}, quality=QUALITY, datasets=("o/d",))
    card = ModelCard(str(build_card(facts)))  # as the Hub reads it
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["PQ"].metric_value == 43.7
    assert results["PQ of stuff"].metric_value == 30.0
    assert results["PQ"].dataset_type == "owner/coco"
    assert card.data.datasets == ["o/d"]
    assert "| all | 43.7 | 80.0 | 53.0 |" in card.text
    assert card.text.index("| boat | 90.0 |") < card.text.index("| a\\|b&lt;c | 10.0 |")


def test_what_somebody_wrote_stays_and_what_lacks_comes_in():
    metadata = "---\nlicense: cc-by-4.0\ntags: [mine]\n---\n"
    theirs = metadata + "\n# Mine\n\nWords.\n\n## Panoptic quality\n\nOld.\n\n## After\n\nX\n"
    card = complete_card(theirs, name="m", repository=REPOSITORY)
    assert (card.data.license, card.data.tags, card.data.pipeline_tag) == ("cc-by-4.0", ["mine"], "image-segmentation")
    assert "Old." in card.text
    measured = complete_card(theirs, name="m", repository=REPOSITORY, license_name="mit", quality=QUALITY)
    assert measured.data.license == "mit"
    assert "Old." not in measured.text
    assert measured.text.index("Words.") < measured.text.index("| all | 43.7 |") < measured.text.index("## After")
    assert measured.text.count("## Panoptic quality") == 1
    plain = complete_card("# No metadata\n", name="m", repository=REPOSITORY, quality=QUALITY)
    assert "| all | 43.7 |" in plain.text
    assert plain.data.license == "apache-2.0"


def test_pictures_of_the_card_come_along(folder, output):
    Image.new("RGB", (7, 5)).save(folder / "validation.png")
    Image.new("RGB", (7, 5)).save(folder / "other.png")
    (folder / "README.md").write_text(
        "# M\n\n![shown](validation.png) ![elsewhere](https://example.org/x.png)\n", encoding="utf-8"
    )
    write_hub_folder(output, folder, repository=REPOSITORY)
    assert {path.name for path in output.glob("*.png")} == {"validation.png"}


def test_the_numbers_of_evaluate_come_into_the_card(folder, output, tmp_path, capsys):
    evaluation = tmp_path / "evaluation"
    words = ["--data", "scenes", "--limit", "2", "--average-precision", "none", "--output", str(evaluation)]
    model = DetrPanopticForSegmentation.from_pretrained(SHIPPED_MODEL, dtype=torch.float32)
    model.save_pretrained(folder)
    DetrPanopticImageProcessor.from_pretrained(SHIPPED_MODEL).save_pretrained(folder)
    assert main(["evaluate", "--model", str(folder), *words]) == 0
    write_hub_folder(output, folder, repository=REPOSITORY, evaluation=evaluation)
    measured = json.loads((evaluation / "metrics.json").read_text())["panoptic_quality"]["all"]["pq"]
    (result,) = (result for result in card_of(output).data.eval_results if result.metric_name == "PQ")
    assert result.metric_value == round(100 * measured, 2)
    assert measured > 0.3
    assert "on scenes, 2 images, threshold 0.85" in card_of(output).text
    assert (output / "worst_and_best.png").is_file()

    model.class_head.bias.data += 0.01
    model.save_pretrained(folder)
    assert push(folder, "--evaluation", str(evaluation)) == 2
    assert "measured another model" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {"dtype": "torch.float32", "model": "x"}}'])
def test_numbers_that_are_none_are_refused(folder, tmp_path, capsys, text):
    (tmp_path / "metrics.json").write_text(text)
    assert push(folder, "--evaluation", str(tmp_path)) == 2
    assert "metrics.json is not what `evaluate` writes" in capsys.readouterr().err


def push(folder: Path, *words: str, repository: str = REPOSITORY) -> int:
    return main(["push", str(folder), repository, "--dry-run", *words])


def test_a_dry_run_shows_everything_and_writes_nothing(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert push(folder) == 0
    shown = capsys.readouterr().out
    for part in ("model.safetensors", "Stays here: checkpoints/", "pipeline_tag", "## Limits", "Nothing was sent"):
        assert part in shown
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_is_shown_of_a_folder_is_only_text(folder, capsys):
    (folder / "a\x1b[2Jb.log").touch()
    Image.new("RGB", (7, 5)).save(folder / "c\x1b[2J.png")
    (folder / "README.md").write_text("# M\n\n\x1b[2J ![x](c\x1b[2J.png)\n")
    assert push(folder) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert {r"a\x1b[2Jb.log", r"c\x1b[2J.png"} <= set(re.split(r", |\s+", shown))


def no_configuration(folder):
    (folder / "config.json").unlink()


def no_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def other_labels(folder):
    change_json(folder / "preprocessor_config.json", stuff_label_ids=[0])


def other_type(folder):
    change_json(folder / "config.json", model_type="detr")


def a_weight_less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["class_head.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def a_weight_that_is_none(folder):
    weights = load_file(folder / "model.safetensors")
    weights["class_head.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()


def a_home(folder):
    (folder / "README.md").write_text(f"# M\n\nTrained on {Path.home()}/data.\n")


def a_picture_that_is_none(folder):
    (folder / "README.md").write_text("# M\n\n![x](metrics.jsonl)\n")


def a_picture_elsewhere(folder):
    Image.new("RGB", (7, 5)).save(folder.parent / "secret.png")
    (folder / "README.md").write_text("# M\n\n![x](../secret.png)\n")


def a_picture_by_way_of_elsewhere(folder):
    Image.new("RGB", (7, 5)).save(folder / "validation.png")
    (folder / "README.md").write_text("# M\n\n![x](checkpoints/../../my_model/validation.png)\n")


def a_picture_that_is_a_link(folder):
    Image.new("RGB", (7, 5)).save(folder.parent / "secret.png")
    (folder / "validation.png").symlink_to(folder.parent / "secret.png")
    (folder / "README.md").write_text("# M\n\n![x](validation.png)\n")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (no_configuration, "no config.json"),
        (no_processor, "no preprocessor_config.json"),
        (other_labels, "disagree: `stuff_label_ids` is [2] in the first and [0] in the second"),
        (other_type, "detr-panoptic convert"),
        (a_weight_less, "lacks weights: class_head.bias."),
        (a_weight_that_is_none, "has weights that are not finite in torch.float32: class_head.bias."),
        (only_a_pickle, ""),
        (a_home, "README.md, line 14, names a folder of this machine"),
        (a_picture_that_is_none, "metrics.jsonl, which is no picture"),
        (a_picture_elsewhere, "outside"),
        (a_picture_by_way_of_elsewhere, "outside"),
        (a_picture_that_is_a_link, "outside"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_is_not_right_is_refused_in_one_line(folder, capsys, spoil, part):
    spoil(folder)
    assert push(folder) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert part in line


@pytest.mark.parametrize("name", ["a/b/c", "some body/model", "-x/y", "somebody/" + 100 * "x", ""])
def test_a_name_that_the_hub_refuses_costs_one_line(folder, capsys, name):
    assert main(["push", "--dry-run", "--", str(folder), name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "OWNER/NAME" in line


def test_names_for_strangers_hold_no_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "photos")) == "photos"
    assert public_name("../photos/") == "photos"
    assert public_name("owner/data") == "owner/data"
    (tmp_path / "owner" / "data").mkdir(parents=True)
    assert public_name("owner/data") == "data"  # a folder here


def test_names_of_classes_stay_text(folder, output):
    change_json(folder / "config.json", id2label={str(i): f"{name}<b>*|" for i, name in enumerate(NAMES)})
    change_json(folder / "config.json", label2id={f"{name}<b>*|": i for i, name in enumerate(NAMES)})
    write_hub_folder(output, folder, repository=REPOSITORY)
    assert "boat&lt;b>\\*\\|" in card_of(output).text
