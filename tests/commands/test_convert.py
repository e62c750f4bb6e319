"""`detr-panoptic convert`: a checkpoint of transformers' DETR becomes a folder that predicts."""

import json
from typing import Any

import pytest
import torch
from transformers import DetrConfig, DetrForSegmentation

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.commands import main
from tests.conftest import photo


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory):
    """A tiny DETR as transformers saves it, with a processor of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    sizes: Any = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 1), ("ffn_dim", 48), ("attention_heads", 8))
    }
    sizes |= {"d_model": 128, "num_queries": 5, "num_labels": 3, "backbone": "resnet18", "backbone_config": None}
    sizes |= {"use_timm_backbone": True, "use_pretrained_backbone": False}
    DetrForSegmentation(DetrConfig(**sizes)).save_pretrained(folder)
    processor = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 97}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_converted_model_loads_and_predicts(tmp_path, foreign_folder, capsys):
    ours = tmp_path / "ours"
    assert main(["convert", str(foreign_folder), str(ours), "--dilation"]) == 0
    assert str(ours) in capsys.readouterr().out
    assert DetrPanopticForSegmentation.from_pretrained(ours).config.dilation
    photo((71, 53), seed=0).save(tmp_path / "photo.png")
    assert main(["predict", str(tmp_path / "photo.png"), "--model", str(ours), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "photo.json").is_file()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{foreign}", "{foreign}"], "`output`"),
        (["{tmp}/detr.pth", "{tmp}/ours"], "detr.pth"),
        (["{foreign}", "{foreign}/config.json"], "`output`"),
        (["{foreign}", "{tmp}/ours", "--compact"], "`compact`"),
    ],
)
def test_a_mistake_is_exit_code_2_and_names_the_argument(tmp_path, foreign_folder, capsys, words, named):
    assert main(["convert", *(word.format(foreign=foreign_folder, tmp=tmp_path) for word in words)]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "ours").exists()
