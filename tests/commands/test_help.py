"""Help pages and typing errors: what they say, and that nothing heavy is imported for them."""

import json
import subprocess
import sys

import pytest

import detr_panoptic
from detr_panoptic.commands import main
from detr_panoptic.commands.program import COMMANDS, DATA_COMMANDS, EXIT_CODES
from detr_panoptic.training.settings import recipe_names, resolve_settings

NAMES = [command.__name__ for command in COMMANDS]
DATA_NAMES = [command.__name__.replace("_", "-") for command in DATA_COMMANDS]
PAGES = [[name] for name in NAMES] + [["data", name] for name in DATA_NAMES]
HEAVY = {
    "accelerate",
    "datasets",
    "matplotlib",
    "numpy",
    "PIL",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}
IMPORTED = """
import json, sys
sys.argv[0] = "detr-panoptic"
from detr_panoptic.commands import main
code = main()
print(json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def line_of_error(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("detr-panoptic: error: ")
    return line


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_a_help_page_has_examples_and_describes_every_option(words, capsys):
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"detr-panoptic {' '.join(words)} " in page.partition("For example:")[2]
    for line in page.splitlines():
        if line.startswith("│ --"):
            assert len(line.strip("│ ").split("  ")) > 1, f"{line} is not described"


def test_the_overview_has_every_command_and_every_exit_code(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for name in (*NAMES, "data"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"│ {name} ")]
        assert len(line.split()) > 3, f"{name} has no summary"
    assert EXIT_CODES.split() == page[-len(EXIT_CODES) - 9 :].split()[-len(EXIT_CODES.split()) :]
    assert main(["data", "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"│ {name} " in page for name in DATA_NAMES)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == detr_panoptic.__version__


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_help_of_train_shows_the_defaults_of_the_recipe(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", "--recipe", recipe, "--help"]) == 0
    page = capsys.readouterr().out
    settings = resolve_settings(recipe)
    for name in ("batch_size", "schedule", "stage", "freeze_backbone"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"│ --{name.replace('_', '-')} ")]
        assert f"[default: {settings.to_dict()[name]}]" in line


def test_the_help_of_train_shows_the_defaults_of_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "mine.yaml").write_text("recipe: masks\nepochs: 17\n")
    assert main(["train", f"--config={tmp_path / 'mine.yaml'}", "--help"]) == 0
    page = capsys.readouterr().out
    assert "[default: 17]" in page
    assert "[default: masks]" in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predct"], ["predct", "predict"]),
        (["data", "chek"], ["chek", "check"]),
        (["predict", "--treshold", "0.5"], ["--treshold", "--threshold"]),
        (["train", "--lerning-rate", "1"], ["--lerning-rate", "--learning-rate"]),
        (["train", "--recipe", "finetune-smal"], ["finetune-smal", "finetune-small"]),
        (["train", "--stage", "boxs"], ["--stage", "boxs", "boxes"]),
        (["evaluate", "--model", "m"], ["--data"]),
        (["convert", "source"], ["OUTPUT"]),
        (["demo", "--scenes", "many"], ["--scenes", "many"]),
        (["predict", "a.jpg", "--task", "polygons"], ["--task", "polygons"]),
    ],
)
def test_a_typing_error_is_one_line_that_names_the_word_and_what_was_meant(words, named, capsys):
    assert main(words) == 2
    line = line_of_error(capsys)
    assert all(word in line for word in named), line


@pytest.mark.parametrize("words", [[], ["data"]])
def test_without_a_command_the_help_page_is_an_error(words, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage" in captured.err


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["predct"], ["train", "--epoch", "1"], *([*page, "--help"] for page in PAGES)]
)
def test_nothing_heavy_is_imported_before_the_arguments_are_parsed(words):
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"] in (0, 2)
    assert not HEAVY & set(answer["modules"])
