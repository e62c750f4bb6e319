"""The examples in the docstrings of data and scenes run."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import pytest

import detr_panoptic.data
import detr_panoptic.scenes

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (detr_panoptic.data, detr_panoptic.scenes)
    for module in iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed
