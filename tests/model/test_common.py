"""What transformers' tests demand of every model, in our words; docs/deviations.md names what they would not find."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticModel
from tests.conftest import build_tiny

BOTH = pytest.mark.parametrize("cls", [DetrPanopticModel, DetrPanopticForSegmentation])
PREDICTIONS = ("logits", "pred_boxes", "pred_masks")


def built(cls, **options):
    """A tiny model of either class, with the same weights every time."""
    model = build_tiny(**options)
    return model if cls is DetrPanopticForSegmentation else model.model


def images_of(batch):
    return {name: batch[name] for name in ("pixel_values", "pixel_mask")}


def run(model, batch, **options):
    with torch.no_grad():
        return model.eval()(**images_of(batch), **options)


def assert_same(first, second, **tolerance):
    """Compares whole outputs: tensors, and lists and dictionaries of them."""
    torch.testing.assert_close(dict(first), dict(second), **(tolerance or {"atol": 0, "rtol": 0}))


# ------ saving, loading, initialization


@BOTH
@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
def test_whole_outputs_survive_saving(cls, max_shard_size, tiny_batch, tmp_path):
    model = built(cls)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size != "5GB")
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert saved.keys() == model.state_dict().keys()
    assert_same(run(cls.from_pretrained(tmp_path), tiny_batch), run(model, tiny_batch))


def test_the_base_model_and_the_whole_one_read_each_other(tmp_path):
    model = build_tiny()
    model.model.save_pretrained(tmp_path)
    loaded: Any = DetrPanopticForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    whole, info = loaded
    assert info["missing_keys"] == {n for n in model.state_dict() if not n.startswith("model.")}
    assert not info["unexpected_keys"]
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    assert type(AutoModel.from_pretrained(tmp_path)) is DetrPanopticModel


def test_parameters_that_a_checkpoint_lacks_are_initialized():
    """Each by its own rule, also those of modules of which another parameter is there."""
    model = build_tiny()
    kept = {name: value for name, value in model.state_dict().items() if name.endswith("class_head.weight")}
    loaded = DetrPanopticForSegmentation.from_pretrained(None, config=model.config, state_dict=kept)
    assert torch.equal(loaded.class_head.weight, model.class_head.weight)
    for name, value in loaded.state_dict().items():
        fresh = model.state_dict()[name]
        assert value.isfinite().all(), name
        if "backbone" not in name and (fresh == fresh.flatten()[0]).all():
            assert torch.equal(value, fresh), name
        elif "backbone" not in name and fresh.numel() > 50:
            assert 0.6 < value.std() / fresh.std() < 1.6, name


@BOTH
def test_a_model_on_the_meta_device_is_initialized_in_place(cls, tiny_batch):
    with torch.device("meta"):
        model = cls(build_tiny().config)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert run(model, tiny_batch)[0].isfinite().all()


def test_shapes_that_differ_are_refused_unless_asked_for(tmp_path):
    model = build_tiny()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        DetrPanopticForSegmentation.from_pretrained(tmp_path, num_labels=8)
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path, num_labels=8, ignore_mismatched_sizes=True)
    differing = {n for n, value in loaded.state_dict().items() if value.shape != model.state_dict()[n].shape}
    assert differing == {"class_head.weight", "class_head.bias"}
    for name in model.state_dict().keys() - differing:
        assert torch.equal(loaded.state_dict()[name], model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_loaded_and_kept(dtype, tmp_path):
    build_tiny().to(dtype).save_pretrained(tmp_path)
    for options, expected in (
        ({}, dtype),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.float64}, torch.float64),
    ):
        loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path, **options)
        tensors = [*loaded.parameters(), *(b for b in loaded.buffers() if b.is_floating_point())]
        assert {tensor.dtype for tensor in tensors} == {expected} == {loaded.config.dtype}


# ------ one forward


@BOTH
def test_the_same_call_gives_the_same_bits(cls, tiny_batch):
    model = built(cls, dropout=0.3)
    assert_same(run(model, tiny_batch), run(model, tiny_batch))
    assert_same(run(copy.deepcopy(model), tiny_batch), run(model, tiny_batch))


def test_each_image_of_a_batch_gets_what_it_gets_alone(tiny_batch):
    model = build_tiny()
    batch = {name: value.clone() for name, value in images_of(tiny_batch).items()}
    batch["pixel_mask"][:] = 1  # the images fill the canvas
    together = run(model, batch, mask_queries="all")
    for place in range(2):
        alone = run(model, {name: value[place : place + 1] for name, value in batch.items()}, mask_queries="all")
        for name in (*PREDICTIONS, "encoder_last_hidden_state", "projected"):
            torch.testing.assert_close(together[name][place], alone[name][0], atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True, "output_attentions": True}])
def test_tuples_hold_the_values_of_the_named_output(cls, asked, tiny_batch):
    model = built(cls)
    named = run(model, tiny_batch, **asked)
    as_tuple = run(model, tiny_batch, return_dict=False, **asked)
    assert len(as_tuple) == len(named)
    for value, (name, expected) in zip(as_tuple, named.items(), strict=True):
        torch.testing.assert_close(value, expected, atol=0, rtol=0, msg=name)


@BOTH
def test_the_configuration_asks_for_states_and_attentions_too(cls, tiny_batch):
    model, other = (built(cls, attn_implementation="eager") for _ in range(2))
    by_argument = run(other, tiny_batch, output_hidden_states=True, output_attentions=True)
    model.config.output_hidden_states = model.config.output_attentions = True
    assert_same(run(model, tiny_batch), by_argument)
    refused = run(model, tiny_batch, output_hidden_states=False, output_attentions=False)
    assert not {n for n in refused if n.endswith(("hidden_states", "attentions"))} - {"intermediate_hidden_states"}
    plain = run(other, tiny_batch)
    assert list(plain) == list(refused)
    added = {f"{part}_{kind}" for part in ("encoder", "decoder") for kind in ("hidden_states", "attentions")}
    added |= {"cross_attentions"} | ({"mask_attentions"} if cls is DetrPanopticForSegmentation else set())
    assert set(by_argument) - set(plain) == added


def test_states_and_attentions_are_in_the_graph(tiny_batch):
    model = built(DetrPanopticModel, attn_implementation="eager")
    output = model(**images_of(tiny_batch), output_hidden_states=True, output_attentions=True)
    attentions = (output.encoder_attentions[0], output.decoder_attentions[-1], output.cross_attentions[0])
    watched = (output.encoder_hidden_states[0], output.decoder_hidden_states[1], *attentions)
    for tensor in watched:
        tensor.retain_grad()
    output.last_hidden_state.flatten()[0].backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in watched)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)], ids=str
)
@pytest.mark.parametrize("padded", [True, False])
def test_eager_matches_sdpa_in_every_precision(dtype, atol, padded, tiny_batch):
    batch = {"pixel_values": tiny_batch["pixel_values"].to(dtype), "pixel_mask": tiny_batch["pixel_mask"]}
    if not padded:
        batch["pixel_mask"] = torch.ones_like(batch["pixel_mask"])
    states = []
    for implementation in ("eager", "sdpa"):
        model = build_tiny(attn_implementation=implementation).to(dtype)
        assert model.config._attn_implementation == implementation
        states.append(run(model, batch, output_hidden_states=True).decoder_hidden_states[-1])
    torch.testing.assert_close(states[0], states[1], atol=atol, rtol=atol)


def test_unknown_arguments_are_refused(tiny_batch):
    for cls in (DetrPanopticModel, DetrPanopticForSegmentation):
        with pytest.raises(TypeError, match="decoder_attention_mask"):
            run(built(cls), tiny_batch, decoder_attention_mask=torch.ones(2, 5))


# ------ training and exporting


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_is_switched_on_and_off(use_reentrant, tiny_batch):
    model = build_tiny().train()
    runs = []
    model.model.encoder.layers[0].linear1.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for expected in (1, 2, 1):
        if expected == 2:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        else:
            model.activation_checkpointing_disable()
        flags = {m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")}
        assert flags == {expected == 2} == {model.is_activation_checkpointing}
        model.zero_grad()
        model(**tiny_batch).loss.backward()
        assert len(runs) == expected
        runs.clear()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_every_tensor_is_a_parameter_or_a_buffer_that_is_saved():
    model = build_tiny()
    registered = {*map(id, model.parameters()), *map(id, model.buffers())}
    for name, module in model.named_modules():
        loose = [n for n, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not loose, name
    assert len(registered) == len(model.state_dict())
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`treespec.children_specs`:FutureWarning")
def test_the_exporter_of_transformers_takes_the_model(tiny_batch):
    model = build_tiny(mask_queries=3).eval()
    exported = DynamoExporter().export(model, images_of(tiny_batch), config=DynamoConfig(dynamic=True))
    # Maps of even and of odd lengths need a graph each.
    images: Any = {"pixel_values": torch.randn(3, 3, 129, 161), "pixel_mask": torch.ones(3, 129, 161).long()}
    with torch.no_grad():
        found, expected = exported(**images), model(**images)
    for name in PREDICTIONS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


# ------ configuration


def test_a_configuration_has_the_properties_of_all(tmp_path):
    config = DetrPanopticConfig(num_labels=5, hidden_size=64)  # type: ignore[call-arg]
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 8, 6)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3
    config.to_json_file(tmp_path / "config.json")
    assert DetrPanopticConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "sub")
    loaded = DetrPanopticConfig.from_pretrained(tmp_path, subfolder="sub", num_queries=7, output_hidden_states=True)
    assert (loaded.num_queries, loaded.output_hidden_states, loaded.num_labels) == (7, True, 3)
    with pytest.raises(OSError, match="nowhere"):
        DetrPanopticConfig.from_pretrained(str(tmp_path / "nowhere"))
