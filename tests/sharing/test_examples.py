"""The examples in the docstrings of exporting, labeling and sharing run."""

import doctest
from importlib import import_module

import pytest

MODULES = ("exporting.inputs", "exporting.exported", "labeling.completion", "sharing.card", "sharing.pushing")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = import_module(f"detr_panoptic.{name}")
    failed, attempted = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted
    assert not failed
