"""The house's rules about imports (docs/architecture.md)."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "detr_panoptic"
LAYERS = [
    # From the bottom up: a file imports only files of lower layers, or of its own.
    {
        "box_ops",
        "position_encoding",
        "configuration_detr_panoptic",
        "segment_ids",
        "categories",
        "plain_text",
        "contained_paths",
        "hub_names",
    },
    {
        "matcher",
        "backbone",
        "transformer",
        "mask_head",
        "panoptic_merging",
        "panoptic_targets",
        "image_reading",
        "convert_names",
        "convert_config",
        "model_card",
        "pipeline_detr_panoptic",  # knows the model by its name and its outputs; the image processor brings it along
    },
    {"losses", "convert"},
    {"modeling_detr_panoptic", "image_processing_detr_panoptic"},
]
THIRD_PARTY_ON_THE_HUB = {
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "numpy",
    "PIL",
    "huggingface_hub",
    "safetensors",
}
TOP_LEVEL = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "cli"))
ROOMS = (
    # From left to right: a room imports only rooms to its left. "export" is on its way to "exporting".
    *("data", "scenes", "visualization", "checkpoints", "inference", "evaluation", "explanation"),
    *("export", "exporting", "labeling", "sharing", "training", "app", "commands"),
)
UNSORTED = ("inference", "evaluation", "labeling", "sharing", "training")  # still import from the right


def relative_imports(path: Path) -> list[tuple[int, str]]:
    """(dots, module) of every relative import, those inside functions too."""
    tree = ast.parse(path.read_text())
    return [(n.level, n.module or "") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]


def layer_of(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


@pytest.mark.parametrize("path", TOP_LEVEL, ids=lambda path: path.stem)
def test_imports_go_down_only(path):
    for level, module in relative_imports(path):
        assert level == 1, "the Hub's loader follows `from .module import name` alone"
        assert "." not in module
        assert layer_of(module) <= layer_of(path.stem), f"{path.stem} imports {module}, which lies above it"


@pytest.mark.parametrize("path", TOP_LEVEL, ids=lambda path: path.stem)
def test_files_that_ship_need_nothing_that_a_reader_may_lack(path):
    tree = ast.parse(path.read_text())
    guarded = {id(node) for t in ast.walk(tree) if isinstance(t, ast.Try) for node in ast.walk(t)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {str(node.module).split(".")[0]}
        else:
            continue
        standard = __import__("sys").stdlib_module_names
        assert names - standard <= THIRD_PARTY_ON_THE_HUB, path.stem


@pytest.mark.parametrize("path", TOP_LEVEL, ids=lambda path: path.stem)
def test_no_text_looks_like_an_import_to_the_loader(path):
    """The loader finds files by a regular expression over the text: prose can fool it."""
    found = re.findall(r"^\s*(?:from|import)\s+\.(\S+)", path.read_text(), flags=re.MULTILINE)
    imported = [module for _, module in relative_imports(path)]
    assert sorted(found) == sorted(imported)


@pytest.mark.parametrize(
    "room", [pytest.param(room, marks=pytest.mark.xfail) if room in UNSORTED else room for room in ROOMS]
)
def test_rooms_import_only_rooms_to_their_left(room):
    to_the_right = {*ROOMS[ROOMS.index(room) + 1 :], "cli"}
    for path in (PACKAGE / room).glob("*.py"):
        for level, module in relative_imports(path):
            assert level == 1 or module.split(".")[0] not in to_the_right, f"{path.name} imports {module}"


def test_only_configuration_and_modeling_know_the_configuration():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("__init__", "configuration_detr_panoptic", "modeling_detr_panoptic"):
            assert "configuration_detr_panoptic" not in [module for _, module in relative_imports(path)], path.stem
