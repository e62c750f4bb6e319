"""What users of transformers type by habit: labels, precisions, devices, adapters and counters."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig, DetrForSegmentation

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.mask_head import SKIPPED_MASK_LOGIT
from tests.conftest import build_tiny, photo
from tests.model.test_backbone import replicate

NAMES = {0: "person", 1: "boat", 2: "sky"}


@pytest.fixture
def own(tmp_path):
    """The folder of a tiny model whose label 2, the sky, is stuff."""
    build_tiny(id2label=NAMES, category_ids=[1, 9, 187]).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of transformers' DETR for segmentation with five labels."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    sizes: Any = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 5, "num_labels": 5}
    sizes |= {"d_model": 64, "backbone": "test_resnet"}
    DetrForSegmentation(DetrConfig(**sizes)).save_pretrained(folder)
    return folder


def load(folder, **options):
    return DetrPanopticForSegmentation.from_pretrained(folder, **options)


def segment(model, batch, **options):
    with torch.no_grad():
        return model.eval()(batch["pixel_values"], batch["pixel_mask"], mask_queries="all", **options)


# ------ labels


@pytest.mark.parametrize(
    ("labels", "stuff", "categories"),
    [
        ({"num_labels": 2}, [], None),
        ({"num_labels": 3}, [2], [1, 9, 187]),
        ({"id2label": {0: "sky", 1: "road", 2: "person"}}, [0], None),
        ({"id2label": {0: "Sky", 1: "Boat"}}, [0], [187, 9]),
        ({"id2label": {0: "road", 1: "car"}, "stuff_label_ids": [0]}, [0], None),
        ({"id2label": {0: "road"}, "label2id": {"road": 0}, "category_ids": [7]}, [], [7]),
    ],
)
def test_new_labels_reset_what_no_longer_fits(own, tiny_batch, labels, stuff, categories):
    model = load(own, ignore_mismatched_sizes=True, **labels)
    assert model.config.stuff_label_ids == stuff
    assert model.config.category_ids == categories
    count = labels.get("num_labels", len(labels.get("id2label", ())))
    assert model.config.num_labels == count
    assert segment(model, tiny_batch).logits.shape == (2, 5, count + 1)
    model.config.validate_labels()


def test_a_warning_says_which_labels_are_stuff_now(own, caplog):
    logger = logging.getLogger("detr_panoptic.configuration_detr_panoptic")
    logger.addHandler(caplog.handler)
    load(own, ignore_mismatched_sizes=True, id2label={0: "sky", 1: "road", 2: "person"})
    logger.removeHandler(caplog.handler)
    assert "`stuff_label_ids` is now [0]" in caplog.text


@pytest.mark.parametrize(
    "options", [{"num_labels": 3}, {"id2label": NAMES}, {"id2label": NAMES, "stuff_label_ids": [2]}]
)
def test_transformers_detr_takes_new_labels(theirs, tiny_batch, options):
    model = load(theirs, ignore_mismatched_sizes=True, **options)
    assert model.config.num_labels == 3
    assert model.config.stuff_label_ids == options.get("stuff_label_ids", [])
    assert segment(model, tiny_batch).logits.shape == (2, 5, 4)


def test_transformers_detr_takes_a_configuration(theirs):
    config = DetrPanopticConfig(**(load(theirs).config.to_diff_dict() | {"id2label": NAMES, "label2id": None}))
    model = load(theirs, config=config, ignore_mismatched_sizes=True)
    assert model.class_head.out_features == 4


# ------ precisions and initialization


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_are_cast_to_the_type_of_the_model(own, dtype):
    build_tiny(id2label=NAMES).to(dtype).save_pretrained(own)
    model = load(own).eval()
    assert model.dtype == dtype
    inputs = DetrPanopticImageProcessor.for_model(model.config)(photo((71, 53), seed=0), return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, mask_queries="all")
    assert output.logits.dtype == dtype
    assert output.pred_masks.isfinite().all()


def test_another_backbone_is_initialized(own, tiny_batch):
    """Its `running_var` was uninitialized memory: -1.5e24, and logits that are not finite."""
    model = load(own, backbone="resnet18", ignore_mismatched_sizes=True)
    body = model.model.backbone.body
    assert all((value == 1).all() for name, value in body.named_buffers() if name.endswith("running_var"))
    weight = body.layer2[0].conv1.weight
    assert 0.01 < weight.std() < 0.2
    assert segment(model, tiny_batch).logits.isfinite().all()


# ------ training


def test_labels_without_masks_reach_every_parameter(tiny_batch):
    """Parameters without a gradient are an error of DistributedDataParallel."""
    for target in tiny_batch["labels"]:
        del target["masks"]
    model = build_tiny().train()
    output = model(**tiny_batch)
    output.loss.backward()
    assert "loss_mask" not in output.loss_dict
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all((p.grad == 0).all() for p in model.mask_head.parameters())


def test_a_target_without_masks_among_others_is_named(tiny_batch):
    del tiny_batch["labels"][1]["masks"]
    with pytest.raises(ValueError, match=r"`masks` in all targets or in none; the targets \[1\]"):
        build_tiny().train()(**tiny_batch)


def test_second_derivatives_are_refused(tiny_batch):
    """The gradient of the mask losses is written out, so they would be wrong."""
    model = build_tiny().train()
    with pytest.raises(RuntimeError, match="no second derivative"):
        model(**tiny_batch).loss.backward(create_graph=True)


def test_class_labels_of_other_types(tiny_batch):
    model = build_tiny().train()
    expected = model(**tiny_batch).loss
    for target in tiny_batch["labels"]:
        target["class_labels"] = target["class_labels"].int()
    assert torch.equal(model(**tiny_batch).loss, expected)
    tiny_batch["labels"][0]["class_labels"] = tiny_batch["labels"][0]["class_labels"].float()
    assert torch.equal(model(**tiny_batch).loss, expected)
    tiny_batch["labels"][0]["class_labels"][1] = 0.5
    with pytest.raises(ValueError, match=r"`class_labels` must lie between 0 and 2 .*, got \[0.5\]"):
        model(**tiny_batch)


def test_images_of_whole_numbers_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"`pixel_values` must be floating-point.*uint8"):
        tiny_model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


# ------ attention


def test_eager_attentions_are_in_the_graph(tiny_batch):
    model = build_tiny(attn_implementation="eager")
    output = model(tiny_batch["pixel_values"], tiny_batch["pixel_mask"], output_attentions=True)
    attentions = (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions)
    gradients = torch.autograd.grad(output.logits.sum(), attentions, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    assert gradients[-1].abs().sum() > 0


@pytest.mark.slow  # compiles its kernels
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_agrees(tiny_batch):
    outputs = []
    for implementation in ("sdpa", "flex_attention"):
        model = build_tiny(hidden_size=64, attn_implementation=implementation)
        outputs.append(segment(model, tiny_batch))
    for name in ("logits", "pred_boxes", "pred_masks"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='`output_attentions` needs `attn_implementation` "eager"'):
        segment(model, tiny_batch, output_attentions=True)


def test_an_attention_of_the_users_own(tiny_batch):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from detr_panoptic.transformer import eager_attention

    calls = []
    AttentionInterface.register(
        "counted", lambda *args, **options: calls.append(1) or eager_attention(*args, **options)
    )
    AttentionMaskInterface.register("counted", sdpa_mask)
    model = build_tiny()
    expected = segment(model, tiny_batch)
    model.set_attn_implementation("counted")
    torch.testing.assert_close(segment(model, tiny_batch).logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2 + 2 * 2


def test_it_is_an_encoder_decoder_as_transformers_has_it(tiny_model, tiny_batch):
    output = segment(tiny_model, tiny_batch, output_hidden_states=True)
    assert tiny_model.config.is_encoder_decoder
    assert len(output.decoder_hidden_states) == tiny_model.config.decoder_layers + 1
    assert (output.decoder_hidden_states[0] == 0).all()
    assert torch.equal(output.decoder_hidden_states[-1], output.last_hidden_state)


# ------ devices, adapters and counters


def test_a_replica_of_data_parallel_computes_with_its_own_weights(tiny_batch):
    model = build_tiny().eval()
    replica = replicate(model, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    found = segment(replica, tiny_batch)
    expected = segment(copy.deepcopy(model).double(), tiny_batch)
    assert found.logits.dtype == torch.float64
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-9, rtol=1e-9)


def test_gradients_of_data_parallel_reach_the_model(tiny_batch):
    model = build_tiny().train()
    gradients = []
    for module in (model, replicate(model, lambda tensor: tensor * 1)):
        model.zero_grad()
        module(**tiny_batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == sum(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_flops_are_counted_without_gradients(tiny_model, tiny_batch):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tiny_model(tiny_batch["pixel_values"], tiny_batch["pixel_mask"])
    assert counter.get_total_flops() > 1e6


@pytest.mark.parametrize("backbone", ["test_resnet", "vit_small_patch16_dinov3"])
def test_empty_weights(backbone):
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():  # buffers are not empty
        model = DetrPanopticForSegmentation(build_tiny(backbone=backbone).config)
    assert all(p.is_meta for p in model.parameters())


def test_cpu_offload(tiny_model, tiny_batch):
    accelerate = pytest.importorskip("accelerate")
    expected = segment(tiny_model, tiny_batch)
    offloaded = accelerate.cpu_offload(copy.deepcopy(tiny_model), execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in offloaded.parameters())
    torch.testing.assert_close(segment(offloaded, tiny_batch).pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


def test_a_disk_device_map(own, tiny_batch, tmp_path):
    expected = segment(load(own), tiny_batch)
    places = {"model.backbone": "disk", "mask_head": "disk", "": "cpu"}
    modules = [name for name, _ in build_tiny().named_children()] + [
        f"model.{n}" for n, _ in build_tiny().model.named_children()
    ]
    device_map = {name: places.get(name, "cpu") for name in modules if name != "model"}
    model = load(own, device_map=device_map, offload_folder=str(tmp_path / "weights"))
    torch.testing.assert_close(segment(model, tiny_batch).pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mask_queries", "backend"),
    [
        ("kept", "eager"),
        *(pytest.param(queries, "eager", marks=pytest.mark.slow) for queries in ("all", 2)),
        # The real compiler takes minutes. It failed where the number of rows is not known before.
        pytest.param("kept", "inductor", marks=[pytest.mark.slow, pytest.mark.promise]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_it_compiles_as_one_graph(tiny_batch, mask_queries, backend):
    model = build_tiny(encoder_layers=1, decoder_layers=1, num_queries=13).eval()
    images = tiny_batch["pixel_values"], tiny_batch["pixel_mask"]
    with torch.no_grad():
        model.class_head.weight.mul_(30)
        states = model.model(*images).last_hidden_state
        model.class_head.bias.copy_(-model.class_head.weight @ states.mean((0, 1)))  # some queries are kept, not all
        expected = model(*images, mask_queries=mask_queries)
        found = torch.compile(model, backend=backend, fullgraph=True)(*images, mask_queries=mask_queries)
    skipped = (expected.pred_masks <= SKIPPED_MASK_LOGIT).all(-1).all(-1)
    assert skipped.any() != (mask_queries == "all")
    assert not skipped.all()
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # compiles the forward and the backward pass in parts, between which the matching runs
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_has_the_same_gradients(tiny_batch):
    gradients = []
    for compiled in (False, True):
        model = build_tiny(encoder_layers=1, decoder_layers=2).train()
        (torch.compile(model, backend="aot_eager") if compiled else model)(**tiny_batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_it_exports(tiny_batch):
    images, model = (tiny_batch["pixel_values"], tiny_batch["pixel_mask"]), build_tiny(encoder_layers=1).eval()
    with torch.no_grad():
        program = torch.export.export(model, images, strict=False)
        found, expected = program.module()(*images), model(*images)
    torch.testing.assert_close(found["pred_masks"], expected.pred_masks, atol=1e-4, rtol=1e-4)


def test_a_model_loaded_with_return_dict_false_returns_a_tuple(own, tiny_batch):
    inputs = {name: tiny_batch[name] for name in ("pixel_values", "pixel_mask")}
    with torch.no_grad():
        as_tuple = load(own, return_dict=False)(**inputs)
        named = load(own)(**inputs)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], named.logits)
