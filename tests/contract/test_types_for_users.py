"""A user's code passes `mypy --strict` against the package, and runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import detr_panoptic
from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import write_coco_panoptic_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from tests.conftest import build_tiny, photo
from tests.contract import user_snippet

SNIPPET = Path(user_snippet.__file__)
PACKAGE = Path(detr_panoptic.__file__).parent


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").is_file()


def test_the_snippet_runs(tmp_path, model_folder):
    picture = tmp_path / "photo.png"
    photo((71, 53), seed=0).save(picture)
    assert user_snippet.predict(model_folder, picture)
    assert (tmp_path / "photo.overlay.png").is_file()
    write_coco_panoptic_dataset(tmp_path / "data", scenes_dataset(2, height=64, width=96), SCENE_CATEGORIES)
    model = build_tiny(
        num_labels=len(SCENE_CATEGORIES),
        id2label=SCENE_CATEGORIES.id2label,
        label2id={name: label for label, name in SCENE_CATEGORIES.id2label.items()},
        stuff_label_ids=SCENE_CATEGORIES.stuff_label_ids,
        category_ids=list(SCENE_CATEGORIES.category_ids),
    )
    processor = DetrPanopticImageProcessor.for_model(model.config, size={"shortest_edge": 64, "longest_edge": 96})
    assert user_snippet.train_step(model, processor, tmp_path / "data") > 0
    assert 0 <= user_snippet.measure(model, processor, tmp_path / "data") <= 1
    assert type(DetrPanopticForSegmentation.from_pretrained(model_folder)) is DetrPanopticForSegmentation


def check_types(path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """mypy as a user runs it: none of this repository's settings."""
    own = {"MYPYPATH": str(PACKAGE.parent)} if "site-packages" not in PACKAGE.parts else {}
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "--config-file", os.devnull, path],
        env=os.environ | own,
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # mypy reads torch and transformers
@pytest.mark.promise
def test_the_snippet_passes_strict_types_and_mistakes_do_not(tmp_path):
    mine = tmp_path / "snippet.py"
    shutil.copyfile(SNIPPET, mine)
    done = check_types(mine, tmp_path / "cache")
    assert done.returncode == 0, done.stdout
    mine.write_text(SNIPPET.read_text().replace('segment["score"]', 'segment["confidence"]'))
    done = check_types(mine, tmp_path / "cache")
    assert 'has no key "confidence"' in done.stdout, done.stdout
