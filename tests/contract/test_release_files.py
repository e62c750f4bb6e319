"""What a release uploads holds what it should and nothing else; scripts/build_release.py also installs and uses it."""

import io
import runpy
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_release.py"))
problems_of_wheel, problems_of_source = SCRIPT["problems_of_wheel"], SCRIPT["problems_of_source"]
SETUPTOOLS = "77"  # what pyproject.toml asks of it


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution, built with this environment's setuptools: an isolated one wants the network."""
    pytest.importorskip("setuptools", minversion=SETUPTOOLS)
    return SCRIPT["build"](tmp_path_factory.mktemp("release") / "dist", "--no-isolation")


def test_they_hold_what_they_should(files):
    wheel, source = files
    assert problems_of_wheel(wheel) == []
    assert problems_of_source(source) == []


def test_a_file_too_many_or_too_few_is_seen(files, tmp_path):
    wheel, _ = files
    spoiled = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(spoiled, "w") as new:
        for name in old.namelist():
            if name != "detr_panoptic/py.typed":
                new.writestr(name, old.read(name))
        new.writestr("tests/conftest.py", "")
        new.writestr("detr_panoptic/weights.bin", "")
    assert problems_of_wheel(spoiled) == [
        "the wheel lacks detr_panoptic/py.typed",
        "the wheel holds tests/conftest.py",
        "the wheel holds detr_panoptic/weights.bin",
    ]
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name in ("x-1/LICENSE", "x-1/README.md", "x-1/pyproject.toml", "x-1/tests/test_x.py"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert problems_of_source(tmp_path / "x.tar.gz") == [
        "the source distribution lacks src/detr_panoptic/py.typed",
        "the source distribution holds tests/test_x.py",
    ]
