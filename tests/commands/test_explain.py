"""`detr-panoptic explain`: files, options and errors."""

import pytest

from detr_panoptic.commands import main
from tests.conftest import photo


@pytest.fixture
def picture(tmp_path):
    photo((71, 53), seed=0).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*words: object) -> int:
    return main(["explain", *(str(word) for word in words)])


def test_sheets_of_segments_and_queries(tmp_path, model_folder, picture, capsys):
    out = tmp_path / "out"
    assert run(picture, "--model", model_folder, "--output", out, "--segments", 1, 2, "--layer", 1) == 0
    assert "segment_2: " in capsys.readouterr().out
    assert run(picture, "--model", model_folder, "--output", out, "--query", 0, 12, "--head", 1) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"photo_{name}.png" for name in ("overlay", "segment_1", "segment_2", "query_0", "query_12")}


def test_nothing_above_the_threshold_is_no_error(tmp_path, model_folder, picture, capsys):
    assert run(picture, "--model", model_folder, "--output", tmp_path / "out", "--threshold", 1) == 0
    assert "nothing above the threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--segments", "99"], "99"),
        (["--query", "1", "--segments", "1"], "together"),
        (["--layer", "3"], "`layer`"),
        (["--threshold", "2"], "threshold"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, model_folder, picture, capsys, options, part):
    assert run(picture, "--model", model_folder, "--output", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert part in error
    assert not (tmp_path / "out").exists()
