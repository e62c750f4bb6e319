"""Converting checkpoints: names, sizes, labels and refusals. Numbers against transformers: parity/."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from detr_panoptic.checkpoints.conversion import compact_classes, convert_checkpoint, convert_files, convert_state_dict
from detr_panoptic.checkpoints.names import REFERENCE, check_names, rename
from detr_panoptic.checkpoints.reading import processor_settings, read_checkpoint
from detr_panoptic.configuration_detr_panoptic import DetrPanopticConfig
from detr_panoptic.data.categories import COCO_PANOPTIC
from detr_panoptic.modeling_detr_panoptic import DetrPanopticForSegmentation
from tests.goldens.formula_weights import formula_weight

GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = json.loads((GOLDENS / "detr_tiny.json").read_text())
SHAPES = {name: tuple(shape) for name, shape in GOLDEN["state_dict"].items()}
MASK_PARTS = ("mask_head.", "bbox_attention.")


def empty_weights(num_labels: int = 11, *, masks: bool = True, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The reference's names without memory for their tensors, as a panoptic or a detection-only file has them."""
    sizes = SHAPES | {"detr.class_embed.weight": (num_labels + 1, 128), "detr.class_embed.bias": (num_labels + 1,)}
    state_dict = {name: torch.empty(shape, device="meta") for name, shape in (sizes | shapes).items()}
    if masks:
        return state_dict
    return {k.removeprefix("detr."): v for k, v in state_dict.items() if not k.startswith(MASK_PARTS)}


@pytest.fixture(scope="module")
def formula_weights() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(formula_weight(name, shape)) for name, shape in SHAPES.items()}


@torch.no_grad()
def test_reference_file_gives_the_golden_forward(tmp_path, formula_weights):
    torch.save({"model": formula_weights}, tmp_path / "detr.pth")
    converted = convert_files(tmp_path / "detr.pth")
    model = DetrPanopticForSegmentation(DetrPanopticConfig(**converted.config_kwargs, mask_queries="all")).eval()
    model.load_state_dict(converted.state_dict)
    golden = load_file(GOLDENS / "detr_tiny.safetensors")
    for name, value in GOLDEN["architecture"].items():
        assert getattr(model.config, name) == value, name
    output = model(pixel_values=golden["pixel_values"], pixel_mask=golden["pixel_mask"])
    for name, key in (("logits", "pred_logits"), ("pred_boxes", "pred_boxes"), ("pred_masks", "pred_masks")):
        torch.testing.assert_close(getattr(output, name), golden[key], atol=1e-4, rtol=0, msg=name)


def test_every_weight_is_bit_identical(formula_weights):
    ours = convert_state_dict(formula_weights, None).state_dict
    assert sum(tensor.numel() for tensor in ours.values()) == sum(t.numel() for t in formula_weights.values())
    packed = formula_weights["detr.transformer.decoder.layers.2.multihead_attn.in_proj_weight"]
    parts = [ours[f"model.decoder.layers.2.cross_attn.{letter}_proj.weight"] for letter in "qkv"]
    assert torch.equal(torch.cat(parts), packed)
    assert torch.equal(ours["mask_head.stages.2.conv.weight"], formula_weights["mask_head.lay5.weight"])


@pytest.mark.parametrize("masks", [True, False])
def test_names_are_those_of_our_model(masks):
    converted = convert_state_dict(empty_weights(masks=masks), None)
    with torch.device("meta"):
        expected = DetrPanopticForSegmentation(DetrPanopticConfig(**converted.config_kwargs)).state_dict()
    converted.check_fit(expected)
    assert converted.is_detection_only is not masks
    for name, tensor in converted.state_dict.items():
        assert tensor.shape == expected[name].shape, name
    for lost in ("class_head.bias", "model.backbone.body.layer1.0.conv1.weight") + (
        "mask_head.predictor.bias",
    ) * masks:
        rest = {name: tensor for name, tensor in converted.state_dict.items() if name != lost}
        with pytest.raises(ValueError, match=f"missing: {lost}"):
            replace(converted, state_dict=rest).check_fit(expected)


def test_counters_of_batch_norm_are_dropped():
    counter = "detr.backbone.0.body.bn1.num_batches_tracked"
    state_dict = empty_weights()
    assert rename(state_dict | {counter: torch.tensor(3)}, REFERENCE).keys() == rename(state_dict, REFERENCE).keys()


def test_a_name_left_over_or_missing_is_listed():
    with pytest.raises(ValueError, match=r"does not have: detr\.transformer\.encoder\.norm\.weight"):
        convert_state_dict(empty_weights() | {"detr.transformer.encoder.norm.weight": torch.ones(128)}, None)
    with pytest.raises(ValueError, match="missing: a, b; left over: d"):
        check_names(["c", "d"], ["a", "b", "c"])
    check_names(["a", "b"], ["b", "a"])
    incomplete = empty_weights()
    del incomplete["detr.query_embed.weight"]
    with pytest.raises(ValueError, match=r"no `model\.query_embeddings\.weight`"):
        convert_state_dict(incomplete, None)
    with pytest.raises(ValueError, match="neither the reference's nor transformers' DETR"):
        convert_state_dict({"conv1.weight": torch.ones(1)}, None)


def test_two_names_for_one_weight_are_refused():
    twice = empty_weights()
    twice["query_embed.weight"] = twice["detr.query_embed.weight"]
    with pytest.raises(ValueError, match=r"Two names of the checkpoint mean `model\.query_embeddings\.weight`"):
        convert_state_dict(twice, None)


def test_labels_of_coco_models_are_category_ids():
    panoptic = convert_state_dict(empty_weights(250), None).config_kwargs
    detector = convert_state_dict(empty_weights(91, masks=False), None).config_kwargs
    names = dict(zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.names, strict=True))
    things = {i: names[i] for i, thing in zip(names, COCO_PANOPTIC.is_thing, strict=True) if thing}
    for config, expected in ((panoptic, names), (detector, things)):
        assert {i: name for i, name in config["id2label"].items() if name != f"unused_{i}"} == expected
        assert config["category_ids"] is None
        assert {name: i for i, name in config["id2label"].items()} == config["label2id"]
    assert panoptic["stuff_label_ids"] == [i for i in names if i not in things]
    assert detector["stuff_label_ids"] == []
    assert (panoptic["id2label"][1], panoptic["id2label"][200], panoptic["id2label"][12]) == (
        "person",
        "rug-merged",
        "unused_12",
    )


def test_names_of_the_config_are_kept_if_they_are_names():
    unnamed = {"id2label": {str(i): f"LABEL_{i}" for i in range(91)}}
    named = {"id2label": {str(i): "N/A" if i in (0, 12) else f"thing {i}" for i in range(91)}}
    few = {"id2label": {str(i): f"LABEL_{i}" for i in range(11)}}

    def labels(num_labels, foreign):
        return convert_state_dict(empty_weights(num_labels, masks=False), foreign).config_kwargs["id2label"]

    assert labels(91, unnamed) == labels(91, None)
    assert [labels(91, named)[i] for i in (0, 1, 12)] == ["unused_0", "thing 1", "unused_12"]
    assert labels(11, few) == labels(11, None) == {i: f"LABEL_{i}" for i in range(11)}
    with pytest.raises(ValueError, match="names 91 labels, the class head has 11"):
        labels(11, named)


def test_stuff_is_named_only_where_the_labels_are_coco_s():
    coco = convert_state_dict(empty_weights(250), None).config_kwargs
    same = convert_state_dict(empty_weights(250), {"id2label": coco["id2label"]})
    other = convert_state_dict(empty_weights(250), {"id2label": {i: f"crop {i}" for i in range(250)}})
    assert same.config_kwargs["stuff_label_ids"] == coco["stuff_label_ids"]
    assert other.config_kwargs["stuff_label_ids"] == []
    assert any("stuff_label_ids" in note for note in other.notes)
    assert not any("stuff_label_ids" in note for note in same.notes)


def test_compact_classes_hands_the_dropped_probability_to_the_rest():
    converted = convert_state_dict(empty_weights(250), None)
    generator = torch.Generator().manual_seed(1)
    heads = {
        "class_head.weight": torch.randn(251, 7, generator=generator),
        "class_head.bias": torch.randn(251, generator=generator),
    }
    features = torch.randn(5, 7, generator=generator)

    def probabilities(state_dict):
        logits = torch.nn.functional.linear(features, state_dict["class_head.weight"], state_dict["class_head.bias"])
        return logits.double().softmax(-1)

    config, compacted, report = compact_classes(converted.config_kwargs, heads)
    kept = [*COCO_PANOPTIC.category_ids, 250]
    full, fewer = probabilities(heads)[:, sorted(kept)], probabilities(compacted)
    dropped = 1 - full.sum(-1, keepdim=True)
    assert dropped.min() > 0.05  # else there is nothing to see
    torch.testing.assert_close(fewer, full / (1 - dropped))
    assert (fewer >= full).all()
    assert report.startswith("117 of 250 labels")

    impossible = heads["class_head.bias"].clone()
    impossible[[i for i in range(251) if i not in kept]] = -1e4
    silenced = heads | {"class_head.bias": impossible}
    torch.testing.assert_close(probabilities(compact_classes(config | converted.config_kwargs, silenced)[1]), fewer)
    torch.testing.assert_close(probabilities(silenced)[:, sorted(kept)], fewer)


def test_compact_classes_keeps_names_stuff_and_category_ids_together():
    before = convert_state_dict(empty_weights(250), None)
    marks = {name: torch.arange(251.0) for name in ("class_head.weight", "class_head.bias")}
    config, compacted, _ = compact_classes(before.config_kwargs, marks)
    assert len(config["id2label"]) == len(COCO_PANOPTIC) == 133
    assert compacted["class_head.bias"].tolist() == [*config["category_ids"], 250]
    by_name = dict(
        zip(COCO_PANOPTIC.names, zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.is_thing, strict=True), strict=True)
    )
    for label, name in config["id2label"].items():
        assert config["label2id"][name] == label
        assert by_name[name] == (config["category_ids"][label], label not in config["stuff_label_ids"])
    assert DetrPanopticConfig(**config).num_labels == 133
    with pytest.raises(ValueError, match="all of the 133 labels have names"):
        compact_classes(config, compacted)


def test_compact_asked_of_the_whole_conversion(tmp_path):
    heads = {"detr.class_embed.weight": torch.zeros(92, 128), "detr.class_embed.bias": torch.zeros(92)}
    torch.save(small_file(heads), tmp_path / "detr.pth")
    converted = convert_files(tmp_path / "detr.pth", compact=True)
    assert converted.state_dict["class_head.weight"].shape == (81, 128)
    assert converted.config_kwargs["category_ids"] == [i for i in COCO_PANOPTIC.category_ids if i <= 90]
    assert any("11 of 91 labels" in note for note in converted.notes)


def small_file(replaced: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A state dict that converts, of one shared zero per tensor: a file of a few kilobytes."""
    zeros = {name: torch.zeros(()).expand(shape) for name, shape in SHAPES.items()}
    return zeros | (replaced or {})


def test_sizes_that_weights_do_not_show_come_from_config_argument_or_name(tmp_path):
    torch.save(small_file(), tmp_path / "plain.pth")
    torch.save(small_file(), tmp_path / "detr-r50-dc5.pth")
    trained = {"model": small_file(), "args": argparse.Namespace(dilation=True, nheads=8, dropout=0.2, lr=1e-4)}
    torch.save(trained, tmp_path / "checkpoint.pth")

    def dilation(name, **kwargs):
        converted = convert_files(tmp_path / name, **kwargs)
        return converted.config_kwargs["dilation"], any("do not show dilation" in note for note in converted.notes)

    assert dilation("plain.pth") == (False, True)
    assert dilation("plain.pth", dilation=True) == (True, False)
    assert dilation("detr-r50-dc5.pth") == (True, True)
    assert dilation("detr-r50-dc5.pth", dilation=False) == (False, False)
    assert dilation("checkpoint.pth") == (True, False)
    assert convert_files(tmp_path / "checkpoint.pth").config_kwargs["dropout"] == 0.2

    detector = empty_weights(masks=False)
    assert convert_state_dict(detector, {"encoder_attention_heads": 4}).config_kwargs["num_heads"] == 4
    assert convert_state_dict(detector, None).config_kwargs["num_heads"] == 8


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        ({"dilation": True, "backbone": "resnet50"}, True),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "output_stride": 16}}, True),
        ({"backbone_kwargs": {"output_stride": 32}, "dilation": True}, False),
        ({"backbone": "resnet50"}, False),
    ],
)
def test_dilation_of_a_config(foreign, expected):
    assert convert_state_dict(empty_weights(), foreign).config_kwargs["dilation"] is expected


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ({"model_type": "conditional_detr"}, "`model_type` must be 'detr'"),
        ({"position_embedding_type": "learned"}, "`position_embedding_type` must be 'sine', got 'learned'"),
        ({"activation_function": "gelu"}, "`activation_function` must be 'relu'"),
        ({"normalize_before": True}, "`normalize_before` must be False"),
        ({"decoder_attention_heads": 4}, "`decoder_attention_heads` 4, but `num_heads` is 8"),
        ({"d_model": 256}, "`d_model` 256, but `hidden_size` is 128"),
        ({"backbone": "resnet101"}, "'resnet101', the weights are a resnet50's"),
        ({"backbone_config": {"model_type": "swin"}}, "got 'swin'"),
        ({"backbone_config": {"model_type": "resnet", "hidden_act": "gelu"}}, "`backbone_config.hidden_act`"),
        ({"backbone_kwargs": {"output_stride": 8}}, "must be 16 or 32, got 8"),
    ],
)
def test_unsupported_configs_are_refused_by_name(foreign, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(empty_weights(), foreign)


def test_encoder_and_decoder_of_two_widths_are_refused():
    wide: Any = {"detr.transformer.decoder.layers.0.linear1.weight": (96, 128)}
    with pytest.raises(ValueError, match=r"one `ffn_dim`, got \{'encoder': 192, 'decoder': 96\}"):
        convert_state_dict(empty_weights(**wide), None)


def test_values_of_the_config_are_taken_over():
    values = {
        "auxiliary_loss": False,
        "dropout": 0.3,
        "class_cost": 2,
        "bbox_cost": 3,
        "giou_cost": 4,
        "bbox_loss_coefficient": 6,
        "giou_loss_coefficient": 7,
        "mask_loss_coefficient": 8,
        "dice_loss_coefficient": 9,
        "eos_coefficient": 0.2,
    }
    config = DetrPanopticConfig(**convert_state_dict(empty_weights(), values).config_kwargs)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.pth", b"<html>Not found</html>"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
        ("empty.bin", b""),
        ("half.pth", None),
        ("list.pth", [torch.ones(1)]),
        ("numbers.pth", {"model": {"epoch": 3}}),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        torch.save(small_file(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=name) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"model": small_file(), "optimizer": Touch(tmp_path / "touched")}, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match=r"detr\.pth is not a complete checkpoint: it holds more than tensors"):
        read_checkpoint(tmp_path / "detr.pth")
    assert not (tmp_path / "touched").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent is not a complete checkpoint: .*No such file"):
        read_checkpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"No weights in .*model\.safetensors"):
        read_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"Expected the file .*config\.json"):
        read_checkpoint(tmp_path)


def test_old_folders_are_read_and_shards_must_be_there(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    state_dict, config = read_checkpoint(tmp_path)
    assert state_dict.keys() == {"a", "b"}
    assert config == {"model_type": "detr"}
    (tmp_path / "pytorch_model-2.bin").unlink()
    with pytest.raises(ValueError, match="pytorch_model-2"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        ({}, {"size": {"shortest_edge": 800, "longest_edge": 1333}}),
        (
            {
                "feature_extractor_type": "DetrFeatureExtractor",
                "size": 640,
                "max_size": 1000,
                "format": "coco_panoptic",
            },
            {"size": {"shortest_edge": 640, "longest_edge": 1000}},
        ),
        ({"size": 512}, {"size": {"shortest_edge": 512, "longest_edge": 1333}}),
        (
            {
                "image_processor_type": "DetrImageProcessorFast",
                "size": {"shortest_edge": 480, "longest_edge": 600},
                "image_mean": [0.1, 0.2, 0.3],
                "do_normalize": False,
                "pad_and_return_pixel_mask": False,
                "image_std": None,
            },
            {
                "size": {"shortest_edge": 480, "longest_edge": 600},
                "image_mean": [0.1, 0.2, 0.3],
                "do_normalize": False,
                "do_pad": False,
            },
        ),
    ],
)
def test_settings_of_image_processors(foreign, expected):
    assert processor_settings(foreign) == expected


def test_another_model_s_image_processor_is_refused():
    with pytest.raises(ValueError, match="got YolosImageProcessor"):
        processor_settings({"image_processor_type": "YolosImageProcessor"})


def test_convert_checkpoint_writes_a_folder_that_loads_and_says_what_it_assumed(tmp_path, formula_weights):
    torch.save({"model": formula_weights}, tmp_path / "detr.pth")
    result = convert_checkpoint(tmp_path / "detr.pth", tmp_path / "ours")
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path / "ours")
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (tmp_path / "ours" / "preprocessor_config.json").is_file()
    assert result.processor.threshold == loaded.config.threshold
    assert str(result).splitlines()[0] == f"resnet50 with 17 queries and 11 labels, written to {tmp_path / 'ours'}"
    assert any("dilation=False" in line for line in str(result).splitlines()[1:])


@pytest.mark.parametrize("source", ["absent/file.pth", "absent", "a/b/c"])
def test_convert_checkpoint_names_a_source_that_does_not_exist(tmp_path, source):
    with pytest.raises(
        ValueError, match=f"`source` must be a file, a folder or OWNER/NAME on the Hub, got '{source}'"
    ):
        convert_checkpoint(source, tmp_path / "ours")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`output` must be a folder"):
        convert_checkpoint(tmp_path, tmp_path / "file")
    with pytest.raises(ValueError, match="`output` must not be the source"):
        convert_checkpoint(tmp_path, tmp_path)
