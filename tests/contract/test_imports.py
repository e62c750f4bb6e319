"""The order of the rooms, the limits of size and the rules for files that ship to the Hub (docs/architecture.md)."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "detr_panoptic"
MODEL_FILES = (
    "configuration_detr_panoptic",
    "modeling_detr_panoptic",
    "image_processing_detr_panoptic",
    "pipeline_detr_panoptic",
    "backbone",
    "transformer",
    "mask_head",
    "box_ops",
    "matcher",
    "losses",
    "panoptic_merging",
    "panoptic_targets",
    "image_reading",
    "segment_ids",
)
# A room imports only rooms to its left; all of them may import the model files.
ROOMS = (
    *("data", "scenes", "visualization", "checkpoints", "runtimes", "inference", "evaluation", "explanation"),
    *("exporting", "labeling", "sharing", "training", "app"),
)
PROGRAMS = ("commands",)  # may import everything, also the package itself
THIRD_PARTY_ON_THE_HUB = {"torch", "torchvision", "timm", "transformers", "numpy", "PIL", "huggingface_hub"}
RUN_THE_PROGRAM = (
    *("tests/commands/", "tests/fault_injection.py"),
    *("scripts/train.py", "scripts/predict.py", "scripts/evaluate.py", "scripts/site_pages.py"),
)
TERMINAL = {"argparse", "cyclopts", "rich"}
MAX_MODEL_LINES, MAX_MODELING_LINES = 3000, 350
MAX_LINES = 20_350  # lower this whenever the package has become shorter; new features are its only reason to grow


class Import(NamedTuple):
    """An import statement: the file that has it, and the file of the package that it names."""

    source: str
    target: str


def module_of(path: Path) -> str:
    """The name of a file below the package: "data.reading", "data" for its `__init__`, "" for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in PATHS.items()}


def imports_of(module: str) -> Iterator[Import]:
    """Yields every import of the package's own files, those inside functions and under TYPE_CHECKING too."""
    package = module.split(".") if PATHS[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            yield from (Import(module, name.partition(".")[2]) for name in names if is_ours(name))
            continue
        if node.level:
            base = [part for part in package[: len(package) - node.level + 1] if part]
            named = ".".join([*base, *([node.module] if node.module else [])])
        elif is_ours(node.module or ""):
            named = (node.module or "").partition(".")[2]
        else:
            continue
        for alias in node.names:
            inner = f"{named}.{alias.name}".lstrip(".")
            yield Import(module, inner if inner in PATHS else named)


def is_ours(name: str) -> bool:
    return name.split(".")[0] == "detr_panoptic"


def room_of(module: str) -> str:
    return module.split(".")[0]


def place_of(module: str) -> int:
    """How far to the right a file stands."""
    room = room_of(module)
    if room in MODEL_FILES:
        return -1
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


IMPORTS = {module: sorted(set(imports_of(module))) for module in PATHS}


def is_wrong(found: Import) -> bool:
    """Whether an import leads to the right; only the commands import the package itself."""
    if found.source == "" or room_of(found.source) in PROGRAMS:
        return False
    return place_of(found.target) > place_of(found.source)


def test_every_file_has_a_room():
    assert {room_of(module) for module in PATHS} - {""} <= {*MODEL_FILES, *ROOMS, *PROGRAMS}


@pytest.mark.parametrize("room", [*MODEL_FILES, *ROOMS])
def test_rooms_import_only_what_stands_to_their_left(room):
    wrong = [f for module in PATHS if room_of(module) == room for f in IMPORTS[module] if is_wrong(f)]
    assert wrong == []


def circles(edges: dict[str, set[str]]) -> list[frozenset[str]]:
    """Sets of files that import each other in circles (strongly connected components of more than one file)."""
    reached = {module: reachable(module, edges) for module in edges}
    return [
        circle
        for circle in {frozenset({m, *(n for n in reached[m] if m in reached[n])}) for m in edges if m in reached[m]}
        if circle
    ]


def reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_files_import_each_other_in_a_circle():
    edges = {module: {f.target for f in found} - {module} for module, found in IMPORTS.items()}
    assert circles(edges) == []


def test_model_files_are_few_and_the_model_is_short():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(MODEL_FILES)
    assert len(MODEL_FILES) <= 15
    assert lines_of("modeling_detr_panoptic") <= MAX_MODELING_LINES


def lines_of(module: str) -> int:
    return len(PATHS[module].read_text(encoding="utf-8").splitlines())


def test_model_files_are_short():
    assert sum(map(lines_of, MODEL_FILES)) <= MAX_MODEL_LINES


def test_the_package_is_short():
    assert sum(map(lines_of, PATHS)) <= MAX_LINES


@pytest.mark.parametrize("room", [*MODEL_FILES, *ROOMS])
def test_only_commands_talk_to_the_terminal(room):
    for module in PATHS:
        if room_of(module) != room:
            continue
        for node in ast.walk(TREES[module]):
            assert not (isinstance(node, ast.Name) and node.id == "print"), f"{module}:{node.lineno} prints"
            assert not imported_packages(node) & TERMINAL, f"{module} imports {imported_packages(node)}"


def imported_packages(node: ast.AST) -> set[str]:
    """The first part of the names of other packages in an import statement."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {str(node.module).split(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "scripts"])
def test_only_tests_of_the_command_line_import_commands(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if path.relative_to(ROOT).as_posix().startswith(RUN_THE_PROGRAM):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.startswith(("detr_panoptic.commands", "detr_panoptic.cli")) for name in names), path


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_hub_s_loader_follows_the_imports_of_model_files(name):
    """It finds files by a regular expression over the text: prose can fool it, and other forms are not followed."""
    nodes = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.ImportFrom) and n.level]
    assert all(node.level == 1 and node.module and "." not in node.module for node in nodes)
    found = re.findall(r"^\s*(?:from|import)\s+\.(\S+)", PATHS[name].read_text(), flags=re.MULTILINE)
    assert sorted(found) == sorted(str(node.module) for node in nodes)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_need_nothing_that_a_reader_may_lack(name):
    guarded = {id(n) for t in ast.walk(TREES[name]) if isinstance(t, ast.Try) for n in ast.walk(t)}
    for node in ast.walk(TREES[name]):
        if id(node) not in guarded:
            assert imported_packages(node) - sys.stdlib_module_names <= THIRD_PARTY_ON_THE_HUB


def test_only_configuration_and_modeling_know_the_configuration():
    for name in set(MODEL_FILES) - {"modeling_detr_panoptic"}:
        assert "configuration_detr_panoptic" not in {found.target for found in IMPORTS[name]}, name
