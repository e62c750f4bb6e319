import pytest
from PIL import Image

from detr_panoptic.cli import main
from detr_panoptic.commands.demo import SHIPPED_MODEL, load_shipped_model
from detr_panoptic.scenes import SCENE_CATEGORIES

MOST_BYTES = 12 * 2**20  # in the wheel


def test_the_demo_measures_and_draws(tmp_path, capsys):
    picture = tmp_path / "pictures" / "demo.png"
    assert main(["demo", "--scenes", "3", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "ships with the package" in printed
    assert "PQ" in printed
    with Image.open(picture) as image:
        assert image.width > 3 * 128
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 1000


def test_the_shipped_model_knows_the_scenes_and_is_small():
    model, processor = load_shipped_model()
    assert model.config.id2label == SCENE_CATEGORIES.id2label
    assert processor.stuff_label_ids == SCENE_CATEGORIES.stuff_label_ids
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir()) < MOST_BYTES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenes", "0"], "`--scenes` must be at least 1 and `--seed` 0, got 0 and 0"),
        (["--seed", "-1"], "got 16 and -1"),
        (["--output", "folder"], "`--output folder` must name a picture, such as demo.png"),
    ],
)
def test_wrong_options_are_one_line(options, message, capsys):
    assert main(["demo", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
