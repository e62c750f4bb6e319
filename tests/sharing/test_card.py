"""Model cards, and the files that `push` prepares."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data.hub_names import public_name
from detr_panoptic.sharing import CardFacts, MeasuredQuality, build_card, push, write_card
from detr_panoptic.sharing.card import complete_card
from detr_panoptic.sharing.pushing import write_repository
from tests.conftest import NAMES, build_tiny

REPOSITORY = "somebody/some-model"
FACTS = CardFacts(name="some-model", repository=REPOSITORY)
CODE = {"configuration_detr_panoptic.py", "modeling_detr_panoptic.py", "pipeline_detr_panoptic.py"}
QUALITY = MeasuredQuality(
    dataset="owner/coco val2017",
    how="100 images",
    groups={"all": (0.437, 0.8, 0.53), "things": (0.5, 0.8, 0.6), "stuff": (0.3, 0.75, 0.4)},
    classes={"a|b<c": 0.1, "boat": 0.9},
)


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A model's folder as training leaves it."""
    copy = tmp_path / "my_model"
    shutil.copytree(model_folder, copy)
    (copy / "checkpoints" / "step_7").mkdir(parents=True)
    (copy / "checkpoints" / "step_7" / "optimizer.bin").write_bytes(b"state")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "metrics.jsonl").write_text("{}\n")
    return copy


@pytest.fixture
def output(tmp_path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_a_repository_has_the_model_its_code_and_a_card(folder, output):
    write_repository(folder, output, FACTS)
    names = {path.name for path in output.iterdir()}
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {name for name in names if not name.endswith(".py")} == files
    assert names >= CODE
    sent, there = load_file(output / "model.safetensors"), load_file(folder / "model.safetensors")
    assert sent.keys() == there.keys()
    assert all(torch.equal(sent[name], there[name]) for name in there)
    metadata = yaml.safe_load((output / "README.md").read_text().split("---\n")[1])
    assert metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"
    assert {"panoptic-segmentation", "detr"} <= set(metadata["tags"])


def test_half_precision_is_kept_and_what_is_unknown_is_said(tmp_path, output):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("README.md"))
    write_repository(folder, output, FACTS)
    sent, there = load_file(output / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(sent[name], there[name]) and sent[name].dtype == torch.float16 for name in there)
    text = card_of(output).text
    assert "Things (8): house, tree" in text
    assert "Stuff (6): sky" in text
    assert text.count("Not recorded.") == 2
    assert "## Panoptic quality\n\nNot measured." in text
    assert f'model="{REPOSITORY}"' in text


def test_quality_is_in_the_metadata_and_in_tables():
    facts = CardFacts(name="m", quality=QUALITY, datasets=("o/d",))
    card: Any = ModelCard(str(build_card(build_tiny(), facts)))  # as the Hub reads it
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["PQ"].metric_value == 43.7
    assert results["PQ of stuff"].metric_value == 30.0
    assert results["PQ"].dataset_type == "owner/coco"
    assert card.data.datasets == ["o/d"]
    (row,) = [line for line in card.text.splitlines() if line.startswith("| all")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["all", "43.7", "80.0", "53.0"]
    assert card.text.index("| boat") < card.text.index("| a\\|b&lt;c")


def test_numbers_of_training_images_are_called_that_and_not_listed():
    facts = CardFacts(name="m", quality=MeasuredQuality(**vars(QUALITY) | {"on_training_images": True}))
    card: Any = ModelCard(str(build_card(build_tiny(), facts)))
    assert "training images" in card.text
    assert card.data.eval_results is None


def test_an_existing_card_is_kept_and_completed():
    metadata = "---\nlicense: cc-by-4.0\ntags: [mine]\n---\n"
    theirs = metadata + "\n# Mine\n\nWords.\n\n## Panoptic quality\n\nOld.\n\n## After\n\nX\n"
    card: Any = complete_card(theirs, FACTS)
    assert (card.data.license, card.data.tags, card.data.pipeline_tag) == ("cc-by-4.0", ["mine"], "image-segmentation")
    assert "Old." in card.text
    facts = CardFacts(name="m", quality=QUALITY)
    measured: Any = complete_card(theirs, facts, license_name="mit")
    assert measured.data.license == "mit"
    assert "Old." not in measured.text
    assert measured.text.index("Words.") < measured.text.index("43.7") < measured.text.index("## After")
    assert measured.text.count("## Panoptic quality") == 1
    plain: Any = complete_card("# No metadata\n", facts)
    assert "43.7" in plain.text
    assert plain.data.license == "apache-2.0"


def test_pictures_of_the_card_are_sent(folder, output):
    Image.new("RGB", (7, 5)).save(folder / "validation.png")
    Image.new("RGB", (7, 5)).save(folder / "other.png")
    (folder / "README.md").write_text("# M\n\n![shown](validation.png) ![elsewhere](https://example.org/x.png)\n")
    write_repository(folder, output, FACTS)
    assert {path.name for path in output.glob("*.png")} == {"validation.png"}


def test_a_picture_outside_the_folder_is_not_sent(folder, output):
    Image.new("RGB", (7, 5)).save(folder.parent / "secret.png")
    (folder / "README.md").write_text("# M\n\n![x](../secret.png)\n")
    with pytest.raises(ValueError, match="secret"):
        write_repository(folder, output, FACTS)


def test_names_of_classes_stay_text(folder):
    model = build_tiny(id2label={i: f"{name}<b>*|" for i, name in enumerate(NAMES)})
    assert "boat&lt;b>\\*\\|" in write_card(folder, model).read_text()
    assert "# my\\_model" in (folder / "README.md").read_text()


def test_a_dry_run_sends_nothing(folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pushed = push(folder, REPOSITORY, dry_run=True, license="mit")
    assert pushed.url is None
    assert "model.safetensors" in pushed.files
    assert "metrics.jsonl" not in pushed.files
    assert "license: mit" in pushed.card
    assert "Nothing was sent" in str(pushed)
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("name", ["a/b/c", "some body/model", "-x/y", "somebody/" + 100 * "x"])
def test_a_name_that_is_not_valid_is_refused(folder, name):
    with pytest.raises(ValueError, match=r"[Rr]epo id"):
        push(folder, name, dry_run=True)


@pytest.mark.parametrize("text", [None, "{", "[]", json.dumps({"settings": {}})])
def test_an_evaluation_that_is_none_is_refused(folder, tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="`evaluation` must be"):
        push(folder, REPOSITORY, dry_run=True, evaluation=tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without a config\.json"):
        push(tmp_path, REPOSITORY, dry_run=True)


def test_public_names_have_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "photos")) == "photos"
    assert public_name("../photos/") == "photos"
    assert public_name("owner/data", "val") == "owner/data val"
    (tmp_path / "owner" / "data").mkdir(parents=True)
    assert public_name("owner/data") == "data"  # a folder here
