"""The examples in the docstrings of training run."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["run", "settings", "model"])
def test_examples(name):
    failed, tried = doctest.testmod(import_module(f"detr_panoptic.training.{name}"))
    assert tried
    assert not failed
