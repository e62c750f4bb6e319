"""Wrong input ends with one line that names the argument, the file or the value, and never with a traceback."""

import re

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
NAMES = re.compile(r"`[^`]+`|'[^']+'|\"[^\"]+\"|--\w+|\w+\.\w{3,8}\b|\bimage \d+|\w/\w|, got |^[\w.]+: ")
"""An argument, a quoted value, an option, a file, an image, a path, what came."""


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
    assert NAMES.search(message), message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("what", images.GOOD)
def test_an_odd_image_is_read_as_it_is_meant(what, place):
    images.GOOD[what][1](place)
