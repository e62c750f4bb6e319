"""The examples in docstrings run, and every public name has one."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import detr_panoptic

ROOT = Path(detr_panoptic.__file__).parent
MODULES = [
    ".".join(("detr_panoptic", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8") and path.parent.name != "app"  # which serves a page
]


def slow(name: str) -> tuple:
    return (pytest.mark.slow, pytest.mark.promise) if name.endswith(("exported", "tuning")) else ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow(name)) for name in MODULES])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed


@pytest.mark.parametrize("name", sorted({*detr_panoptic.__all__} - {"DetrPanopticModel"}))  # a part of the next
def test_every_public_name_shows_itself_in_use(name):
    assert ">>> " in inspect.getdoc(getattr(detr_panoptic, name))
