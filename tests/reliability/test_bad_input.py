"""Each row of the tables in docs/reliability.md happens, and says what is written there.

`python -m tests.reliability.test_bad_input MODEL`, a folder as `model_folder` saves it, writes the tables anew, in the
order of the cases. A message that holds a gap, …, stands for any text there: what other libraries say differs from
version to version.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.reliability import annotations, checkpoints, datasets_and_settings, images
from tests.reliability.place import Case, Place

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
TABLES: dict[str, dict[str, Case]] = {
    "Images": images.BAD,
    "Annotations": annotations.CASES,
    "Datasets": datasets_and_settings.DATASETS,
    "Checkpoints": checkpoints.CASES,
    "Settings and options": datasets_and_settings.SETTINGS,
    "In Python": datasets_and_settings.IN_PYTHON,
}
GOOD_TABLE = "Images that only look wrong"
GAP = "…"
LEAST = 80  # rows


def table(title: str) -> dict[str, str]:
    """First and second cell of each row below a title of the document."""
    section = DOCUMENT.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [re.fullmatch(r"\| (.+?) \| (.+) \|", line) for line in section.splitlines()]
    rows = [match for match in lines if match][1:]
    return {match[1]: without_marks(match[2]) for match in rows}


def marked(message: str) -> str:
    """A message as code in a cell of a table."""
    return f"`` {message} ``".replace("|", "\\|")


def without_marks(cell: str) -> str:
    return cell.removeprefix("`` ").removesuffix(" ``").replace("\\|", "|")


def fits(message: str, shown: str) -> bool:
    return bool(re.fullmatch(".*".join(map(re.escape, shown.split(GAP))), message))


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, model_folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # libraries leave a broken file open
@pytest.mark.parametrize(
    ("title", "what"), [(title, what) for title, cases in TABLES.items() for what in cases], ids=str
)
def test_bad_input_says_what_the_document_says(title, what, place):
    message = TABLES[title][what](place)
    assert "\n" not in message
    assert fits(message, table(title)[what]), message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("what", images.GOOD)
def test_an_odd_image_is_read_as_it_is_meant(what, place):
    images.GOOD[what][1](place)


def test_the_document_has_the_cases_and_no_others():
    for title, cases in TABLES.items():
        assert list(table(title)) == list(cases), title
    assert table(GOOD_TABLE) == {what: how for what, (how, _) in images.GOOD.items()}
    assert sum(map(len, TABLES.values())) >= LEAST


def rewrite(model: Path) -> None:
    """Write the tables of the document as the cases are now."""
    text = DOCUMENT.read_text()
    for title, cases in TABLES.items():
        shown, lines = table(title), ["| input | message |", "|---|---|"]
        for what, case in cases.items():
            known = shown.get(what, "")
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                try:
                    message = case(Place(Path(folder), model))
                except pytest.skip.Exception:  # not on this machine
                    message = known
                os.chdir("/")
            lines.append(f"| {what} | {marked(known if known and fits(message, known) else message)} |")
        text = with_table(text, title, lines)
    rows = [f"| {what} | {how} |" for what, (how, _) in images.GOOD.items()]
    DOCUMENT.write_text(with_table(text, GOOD_TABLE, ["| input | what the model sees |", "|---|---|", *rows]))


def with_table(text: str, title: str, lines: list[str]) -> str:
    before, found, section = text.partition(f"\n## {title}\n")
    assert found, title
    kept = [line for line in section.partition("\n## ")[0].strip().splitlines() if not line.startswith("|")]
    rest = section.partition("\n## ")
    body = "\n".join(kept).strip()
    return f"{before}{found}\n" + (f"{body}\n\n" if body else "") + "\n".join(lines) + "\n" + rest[1] + rest[2]


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
