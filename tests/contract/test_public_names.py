"""The names that `detr_panoptic` offers, and when it imports and registers what."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import detr_panoptic

PROMISED = {
    *("DetrPanopticConfig", "DetrPanopticModel", "DetrPanopticForSegmentation", "DetrPanopticImageProcessor"),
    *("DetrPanopticImageSegmentationPipeline", "read_panoptic", "PanopticData", "check_data", "convert_data"),
    *("convert_checkpoint", "Predictor", "Prediction", "PanopticQuality", "PanopticQualityResult", "evaluate"),
    *("Evaluation", "train", "TrainingResult", "complete_stuff", "export", "explain", "push", "quantize"),
}
CONSOLE_SCRIPT = """
import sys

sys.argv[0] = "/usr/bin/detr-panoptic"
import detr_panoptic
import detr_panoptic.training.settings
from detr_panoptic.checkpoints import BUNDLED

assert not {"torch", "transformers", "timm", "datasets"} & set(sys.modules), sorted(sys.modules)
from detr_panoptic import DetrPanopticConfig
from transformers import AutoModelForUniversalSegmentation

assert type(AutoModelForUniversalSegmentation.from_pretrained(BUNDLED).config) is DetrPanopticConfig
"""


def test_every_promised_name_is_there():
    assert set(detr_panoptic.__all__) >= PROMISED
    assert list(detr_panoptic.__all__) == sorted(detr_panoptic.__all__)
    assert set(dir(detr_panoptic)) >= {*PROMISED, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'divine'"):
        _ = detr_panoptic.divine


@pytest.mark.parametrize("name", detr_panoptic.__all__)
def test_names_are_documented(name):
    thing = getattr(detr_panoptic, name)
    assert (inspect.getdoc(thing) or "").strip(), name
    assert getattr(detr_panoptic, name) is thing
    if name in PROMISED and inspect.isfunction(thing):
        assert any(mark in (inspect.getdoc(thing) or "") for mark in (">>>", "```python")), f"{name} shows no example"


def test_the_console_script_imports_nothing_heavy_before_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", CONSOLE_SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_type_checkers_see_what_is_imported_at_run_time():
    """The imports under TYPE_CHECKING and the table that `__getattr__` reads name the same things."""
    source = Path(detr_panoptic.__file__).read_text(encoding="utf-8")
    for name in detr_panoptic.__all__:
        assert source.count(f'"{name}"') == 2, f"{name} must be in `__all__` and in the table"
        assert name in source.partition("__version__")[0], f"{name} must be imported for type checkers"


def test_the_program_registers_before_it_runs_a_command(tmp_path):
    """Rooms import the model's files by themselves, which registers nothing."""
    script = f"""
import sys

sys.argv = ["/usr/bin/detr-panoptic", "app", "--model", "{tmp_path}/absent"]
from detr_panoptic.commands import main

assert main() == 2
from detr_panoptic.modeling_detr_panoptic import DetrPanopticPreTrainedModel

assert len(DetrPanopticPreTrainedModel.foreign_readers) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
