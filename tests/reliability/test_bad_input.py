"""Wrong input ends with one line that names the argument, the file or the record that is wrong."""

import re
from pathlib import Path

import pytest

from tests.reliability import annotations, checkpoints, datasets_and_settings, images
from tests.reliability.place import Case, Place

TABLES: dict[str, dict[str, Case]] = {
    "images": images.BAD,
    "annotations": annotations.CASES,
    "datasets": datasets_and_settings.DATASETS,
    "checkpoints": checkpoints.CASES,
    "settings": datasets_and_settings.SETTINGS,
    "python": datasets_and_settings.IN_PYTHON,
}
UNFORESEEN = re.compile(r"^(?!ValueError|TypeError)\w+(Error|Exception)\b|--debug")


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, model_folder)


def names_the_cause(message: str, folder: Path) -> bool:
    """Whether a message names an argument (`in backquotes` or --as-a-flag), or a file that the case has made."""
    names = [path.name for path in folder.rglob("*")]
    return bool(re.search(r"`[^`]+`|--\w", message)) or any(name in message for name in names)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # libraries leave a broken file open
@pytest.mark.parametrize(
    ("title", "what"), [(title, what) for title, cases in TABLES.items() for what in cases], ids=str
)
def test_bad_input_is_refused_by_name(title, what, place):
    message = TABLES[title][what](place)
    assert "\n" not in message
    assert not UNFORESEEN.search(message), message
    assert names_the_cause(message, place.folder) or re.search(r"'[^']+'|\.\w{3}", message), message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns and continues
@pytest.mark.parametrize("what", images.GOOD)
def test_an_odd_image_is_read_as_it_is_meant(what, place):
    images.GOOD[what][1](place)
