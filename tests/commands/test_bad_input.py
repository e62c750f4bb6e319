"""Wrong input ends with one line that names the argument, the file or the value, and never with a traceback."""

import json
from pathlib import Path

import pytest

from tests.commands.bad_input import annotations, checkpoints, datasets_and_settings, images
from tests.commands.bad_input.place import Case, Place

CASES: dict[str, dict[str, Case]] = {
    "images": images.BAD,
    "annotations": annotations.CASES,
    "datasets": datasets_and_settings.DATASETS,
    "checkpoints": checkpoints.CASES,
    "settings": datasets_and_settings.SETTINGS,
    "python": datasets_and_settings.IN_PYTHON,
}
NAMED = json.loads((Path(__file__).parent / "bad_input" / "named.json").read_text(encoding="utf-8"))
"""Of each case the argument, file or key and the value that its message must name."""
LONGEST = 1000  # characters


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, model_folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # libraries leave a broken file open
@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, cases in CASES.items() for what in cases], ids=str)
def test_wrong_input_is_one_line_that_names_what_is_wrong(kind, what, place):
    message = CASES[kind][what](place)
    assert "\n" not in message
    assert "--debug" not in message, "an error that nobody expected"
    assert all(name in message for name in NAMED[kind][what]), (message, NAMED[kind][what])
    assert len(message) < LONGEST


def test_every_case_names_something():
    assert {kind: {*cases} for kind, cases in NAMED.items()} == {kind: {*cases} for kind, cases in CASES.items()}
    assert all(names for cases in NAMED.values() for names in cases.values())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("what", images.GOOD)
def test_an_odd_image_is_read_as_it_is_meant(what, place):
    images.GOOD[what][1](place)
