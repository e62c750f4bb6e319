"""What the documents show works: their Python blocks run, their command lines are run or at least understood."""

import builtins
import logging
import os
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import create_autospec

import av
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig, DetrForSegmentation, DetrImageProcessor
from transformers.utils import logging as logging_of_transformers

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.commands import main
from detr_panoptic.commands.program import build_program
from detr_panoptic.data.writing import save_dataset, write_coco_panoptic_dataset
from detr_panoptic.scenes import make_scene, scenes_dataset
from detr_panoptic.scenes.dataset import SCENE_CATEGORIES
from tests.commands.more_habits import MORE_HABITS
from tests.conftest import build_tiny

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REPOSITORY = f"{yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['repo_url']}/blob/main/"
PUBLISHED = "facebook/detr-resnet-50-panoptic"
OPEN_ENDED = ("…", "$", "...")  # lines with a gap for the reader to fill


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    pattern = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    texts = {document: document.read_text() for document in DOCUMENTS}
    return [
        Block(document, text[: match.start()].count("\n") + 1, match[1], match[2])
        for document, text in texts.items()
        for match in pattern.finditer(text)
        if match[1] in languages
    ]


def python_blocks() -> list:
    """Every Python block; those that export a model or set up a `Trainer` are slow."""
    slow = (pytest.mark.slow, pytest.mark.promise)
    return [
        pytest.param(
            block, id=str(block), marks=slow if re.search(r"export\(|exported/|Trainer\(", block.text) else ()
        )
        for block in blocks("python")
        if block.document.name != "scale.md"  # tests/inference/test_ray.py runs it, and kills a worker
    ]


def commands() -> list:
    """Every line that calls the program or one of its scripts, as the words after `detr-panoptic`."""
    found = []
    for block in blocks("bash", ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|(?!\|)", line.partition("  #")[0]):
                words = shlex.split(part, comments=True)
                if any(gap in part for gap in OPEN_ENDED) or not words:
                    continue
                script = re.search(r"scripts/(\w+)\.py", part)
                if words[0] == "detr-panoptic":
                    found.append(pytest.param(words[1:], id=f"{block}: {' '.join(words[:3])}"))
                elif words[0] == "accelerate" and script:
                    rest = words[words.index(script[0]) + 1 :]
                    found.append(pytest.param([script[1], *rest], id=f"{block}: {script[0]}"))
    return found


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """What the examples name: a model, photographs, data in COCO's panoptic layout, a published checkpoint."""
    folder = tmp_path_factory.mktemp("shelf")
    classes: Any = {
        "id2label": SCENE_CATEGORIES.id2label,
        "label2id": {name: label for label, name in SCENE_CATEGORIES.id2label.items()},
        "stuff_label_ids": SCENE_CATEGORIES.stuff_label_ids,
        "category_ids": list(SCENE_CATEGORIES.category_ids),
    }
    # transformers needs a hidden size plus heads that 8 divides.
    model = build_tiny(num_labels=len(SCENE_CATEGORIES), num_heads=8, **classes)
    model.save_pretrained(folder / "my_model")
    size = {"shortest_edge": 64, "longest_edge": 96}
    DetrPanopticImageProcessor.for_model(model.config, size=size).save_pretrained(folder / "my_model")
    picture = make_scene(5, height=64, width=96)["image"]
    picture.save(folder / "photo.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = picture.size
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    (folder / "holiday").mkdir()
    picture.save(folder / "holiday" / "beach.jpg")
    for place in ("photos", "maps"):
        (folder / place).mkdir()
        picture.save(folder / place / "1.jpg")
        picture.save(folder / place / "1.png")
    scenes = scenes_dataset(3, height=64, width=96)
    for place in ("my_data", "my_data/train", "my_data/val", "my_data/held_out"):
        write_coco_panoptic_dataset(folder / place, scenes, SCENE_CATEGORIES)
    save_dataset(folder / "rows", scenes, SCENE_CATEGORIES)
    sizes: Any = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    sizes |= {"d_model": 64, "num_queries": 5, "num_labels": 250}
    DetrForSegmentation(DetrConfig(**sizes)).save_pretrained(folder / PUBLISHED)
    DetrImageProcessor(size=size).save_pretrained(folder / PUBLISHED)
    return folder


@pytest.fixture
def workplace(shelf, tmp_path, monkeypatch) -> Path:
    """A folder from which relative names reach what the examples name, and where they may write."""
    for path in shelf.iterdir():
        if path.name == "my_data":  # examples write into it
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", commands())
def test_command_lines_are_understood(words):
    program = build_program(words)
    program.parse_args(words, print_error=False, exit_on_error=False)  # raises an error otherwise


@pytest.mark.usefixtures("workplace")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers, on a machine with one core
@pytest.mark.parametrize("words", [p for p in commands() if "README" in p.id])
def test_command_lines_of_the_readme_run(words):
    if words[0] == "train":
        words = [*words, "--dry-run"]  # reads the data and builds the model; the training has its own tests
    assert main(words) == 0


@pytest.mark.usefixtures("workplace")
@pytest.mark.filterwarnings("ignore:.pin_memory. argument is set")  # by Trainer, on a machine without a GPU
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")  # as in test_upload.py
@pytest.mark.parametrize("block", python_blocks())
def test_python_blocks_run(block, monkeypatch, request):
    if "model.push_to_hub" in block.text:
        request.getfixturevalue("hub")
    monkeypatch.setattr("datasets.Dataset.push_to_hub", lambda *_: None)  # needs the network and an account
    monkeypatch.setattr(
        "transformers.Trainer.train", lambda _: None
    )  # an hour; tests/evaluation/test_trainer.py trains
    if "detr_panoptic.app" in block.text:  # tests/app serves pages; here the arguments are checked
        from detr_panoptic.app import launch

        monkeypatch.setattr("detr_panoptic.app.launch", create_autospec(launch))
    if "exported/" in block.text:
        pytest.importorskip("onnxruntime")
        graph = ["--dynamic", "--uint8", "--with-merging", "--mask-queries", "5"]
        assert main(["export", "my_model", "exported", *graph]) == 0
    exec(compile(block.text, str(block), "exec"), {"__name__": str(block)})


class Habit(NamedTuple):
    """A row of docs/habits.md: what is typed, and what the comment beside the outcome says of it."""

    typed: str
    check: str


def habits() -> list:
    """Every row of the tables, and `MORE_HABITS`; those that trace the model are slow."""
    lines = (ROOT / "docs" / "habits.md").read_text().splitlines()
    rows = [re.fullmatch(r"\| `(.*?)` \| .* <!-- (.*) --> \|", line) for line in lines if line.startswith("| `")]
    found = []
    for typed, check in [*(row.groups() for row in rows), *MORE_HABITS]:
        slow = (pytest.mark.slow, pytest.mark.promise) if "torch.compile" in typed or "export(" in typed else ()
        found.append(pytest.param(Habit(typed, check), id=typed[:80], marks=slow))
    return found


@pytest.fixture
def names(request, caplog, monkeypatch) -> dict:
    """What the rows of docs/habits.md and their checks may name; what is logged comes to `caplog`."""
    request.getfixturevalue("workplace")
    for name in ("transformers", "detr_panoptic"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
    logging_of_transformers.warning_once.cache_clear()
    names: dict = {"os": os, "torch": torch, "FlopCounterMode": FlopCounterMode, "request": request}
    (setup,) = [block for block in blocks("python") if block.document.name == "habits.md"]
    exec(compile(setup.text, str(setup), "exec"), names)
    names["model"].class_head.bias.data[-1] = 9.0  # as in use, an image has fewer objects than queries
    return names


@pytest.mark.filterwarnings("ignore")  # those of libraries, about each other
@pytest.mark.parametrize("habit", habits())
def test_a_habit_has_the_outcome_that_the_page_says(habit, names, caplog):
    for name in re.findall(r"\b(accelerate|peft|torchao(?=\.quantization))\.", habit.typed):
        names[name] = pytest.importorskip(name)
    if "push_to_hub" in habit.typed:
        names["hub"] = names["request"].getfixturevalue("hub")
    error = re.fullmatch(r"raises (\w+): (.*)", habit.check)
    with pytest.raises(getattr(builtins, error[1]), match=re.escape(error[2])) if error else nullcontext():
        is_statement = habit.typed.startswith("with ")
        exec(habit.typed if is_statement else f"_ = {habit.typed}", names)
    assert error or eval(habit.check, names | {"log": caplog.text})


def test_a_loaded_example_is_the_model(workplace):
    """The published name in the examples leads to a real conversion here, not to the network."""
    model = DetrPanopticForSegmentation.from_pretrained(PUBLISHED)
    assert (workplace / PUBLISHED).is_dir()
    assert model.config.id2label[1] == "person"


def links(document: Path) -> list[str]:
    """Targets of links and pictures, in Markdown and HTML."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    return [link for pair in re.findall(r'\]\(([^)\s]+)|src="([^"]+)', text) for link in pair if link]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", document.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*sorted(ROOT.glob("*.md")), *DOCUMENTS[1:]], ids=lambda path: path.name)
def test_links_to_files_of_the_repository_are_alive(document):
    """MkDocs checks the links between pages; here are those of other files, those that leave docs/, and HTML."""
    for link in links(document):
        name, _, anchor = link.removeprefix(REPOSITORY).partition("#")
        if "://" not in name:
            target = (ROOT if link.startswith(REPOSITORY) else document.parent) / name if name else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
