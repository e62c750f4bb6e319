import pytest
import torch

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticModel
from detr_panoptic.backbone import Backbone
from detr_panoptic.mask_head import SKIPPED_MASK_LOGIT, select_rows
from tests.conftest import build_tiny

PREDICTIONS = ("logits", "pred_boxes", "pred_masks")


def predict(model, batch, **options):
    with torch.no_grad():
        return model.eval()(batch["pixel_values"], batch["pixel_mask"], **options)


def assert_same_predictions(first, second):
    for name in PREDICTIONS:
        assert torch.equal(first[name], second[name]), name


# ------ one forward, whatever is asked for


def test_auxiliary_losses_do_not_change_the_forward(tiny_batch):
    """transformers feeds the normed state to the next layer when auxiliary losses are on: 1.1 off in logits."""
    with_losses, without = build_tiny(auxiliary_loss=True).eval(), build_tiny(auxiliary_loss=False).eval()
    without.load_state_dict(with_losses.state_dict())
    outputs = [model(**tiny_batch, mask_queries="all") for model in (with_losses, without)]
    assert_same_predictions(*outputs)
    assert "loss_ce_0" in outputs[0].loss_dict
    assert "loss_ce_0" not in outputs[1].loss_dict


def test_labels_and_requests_do_not_change_the_forward(tiny_model, tiny_batch):
    plain = predict(tiny_model, tiny_batch, mask_queries="all")
    rich = predict(tiny_model, tiny_batch, mask_queries="all", output_attentions=True, output_hidden_states=True)
    with_labels = tiny_model(**tiny_batch, mask_queries="all")
    assert_same_predictions(plain, rich)
    assert_same_predictions(plain, with_labels)


def test_requested_tensors_have_their_documented_shapes(tiny_model, tiny_batch):
    output = predict(tiny_model, tiny_batch, output_attentions=True, output_hidden_states=True)
    cells, heads, queries = 3 * 4, 4, 5  # ceil(65 / 32), ceil(97 / 32)
    assert [tuple(x.shape) for x in output.encoder_attentions] == [(2, heads, cells, cells)] * 2
    assert [tuple(x.shape) for x in output.decoder_attentions] == [(2, heads, queries, queries)] * 2
    assert [tuple(x.shape) for x in output.cross_attentions] == [(2, heads, queries, cells)] * 2
    assert [tuple(x.shape) for x in output.encoder_hidden_states] == [(2, cells, 32)] * 3
    assert [tuple(x.shape) for x in output.decoder_hidden_states] == [(2, queries, 32)] * 3
    assert tuple(output.mask_attentions.shape) == (2, queries, heads, 3, 4)
    torch.testing.assert_close(output.cross_attentions[0].sum(-1), torch.ones(2, heads, queries))
    assert torch.equal(output.decoder_hidden_states[-1], output.last_hidden_state)


def test_eager_and_sdpa_agree(tiny_batch):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = build_tiny()
        model.set_attn_implementation(implementation)
        outputs.append(predict(model, tiny_batch, mask_queries="all"))
    for name in PREDICTIONS:
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(tiny_batch):
    gradients = []
    for checkpointing in (False, True):
        model = build_tiny().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**tiny_batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_return_dict_false_gives_a_tuple(tiny_model, tiny_batch):
    output = predict(tiny_model, tiny_batch)
    as_tuple = predict(tiny_model, tiny_batch, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits)


# ------ which queries get masks


def keep_some(model, batch):
    """Shift the class head's bias so that half of the queries see an object."""
    logits = predict(model, batch).logits
    margin = logits[..., :-1].amax(-1) - logits[..., -1]
    model.class_head.bias.data[-1] += margin.flatten().sort().values[4:6].mean()


def test_kept_queries_have_the_masks_of_all(tiny_model, tiny_batch):
    keep_some(tiny_model, tiny_batch)
    every = predict(tiny_model, tiny_batch, mask_queries="all")
    kept = predict(tiny_model, tiny_batch, mask_queries="kept")
    is_object = every.logits.argmax(-1) != 3
    assert is_object.sum() == 5
    torch.testing.assert_close(kept.pred_masks[is_object], every.pred_masks[is_object], atol=1e-5, rtol=1e-5)
    assert (kept.pred_masks[~is_object] == SKIPPED_MASK_LOGIT).all()


def test_the_head_runs_for_the_chosen_rows_alone(tiny_model, tiny_batch):
    keep_some(tiny_model, tiny_batch)
    rows = []
    tiny_model.mask_head.register_forward_hook(lambda _module, args, _output: rows.append(len(args[1])))
    for mask_queries in ("all", "kept", 2):
        predict(tiny_model, tiny_batch, mask_queries=mask_queries)
    assert rows == [10, 5, 4]


def test_the_k_best_rank_objects_before_others():
    probs = torch.tensor([[[0.4, 0.6], [0.35, 0.3], [0.9, 0.05], [0.1, 0.9]]])  # one class, "no object"
    logits = probs.log()
    assert select_rows(logits, 2).tolist() == [1, 2]  # 0.35 can be kept, 0.4 cannot
    assert select_rows(logits, 3).tolist() == [0, 1, 2]


def test_an_image_in_which_nothing_is_kept_has_only_the_lowest_logit(tiny_model, tiny_batch):
    torch.nn.init.constant_(tiny_model.class_head.bias, 0)
    tiny_model.class_head.bias.data[-1] = 100
    output = predict(tiny_model, tiny_batch)
    assert (output.pred_masks == SKIPPED_MASK_LOGIT).all()
    assert output.pred_masks.shape == predict(tiny_model, tiny_batch, mask_queries="all").pred_masks.shape


def test_training_runs_the_head_for_matched_queries_with_the_gradients_of_all(tiny_batch):
    gradients, rows = [], []
    for mask_queries in (None, "all"):
        model = build_tiny().double().train()
        model.mask_head.register_forward_hook(lambda _module, args, _output: rows.append(len(args[1])))
        labels = [t | {"boxes": t["boxes"].double()} for t in tiny_batch["labels"]]
        output = model(
            tiny_batch["pixel_values"].double(), tiny_batch["pixel_mask"], labels, mask_queries=mask_queries
        )
        output.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert rows == [4, 10]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)  # the loss itself is float32


# ------ training


def test_every_trained_parameter_gets_a_gradient(tiny_batch):
    model = build_tiny().train()
    model(**tiny_batch).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_a_batch_without_objects_reaches_every_parameter_but_moves_no_mask(tiny_batch):
    model = build_tiny().train()
    labels = [
        {"class_labels": t["class_labels"][:0], "boxes": t["boxes"][:0], "masks": t["masks"][:0]}
        for t in tiny_batch["labels"]
    ]
    output = model(tiny_batch["pixel_values"], tiny_batch["pixel_mask"], labels)
    output.loss.backward()
    assert output.loss_dict["loss_mask"] == output.loss_dict["loss_bbox"] == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all((p.grad == 0).all() for p in model.mask_head.parameters())


def test_training_changes_no_buffer_and_no_frozen_parameter(tiny_batch):
    """transformers leaves stem and layer1 of timm backbones free."""
    model = build_tiny().train()
    names = [name for name, p in model.model.backbone.body.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1"} - {"bn1"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**tiny_batch).loss.backward()
    optimizer.step()
    frozen = [f"model.backbone.body.{name}" for name in names] + [name for name, _ in model.named_buffers()]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in frozen)
    assert not torch.equal(model.class_head.weight, before["class_head.weight"])


def test_the_stem_is_frozen_in_a_loaded_model_too(tmp_path):
    build_tiny().save_pretrained(tmp_path)
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in build_tiny().named_parameters() if p.requires_grad}


def test_more_targets_than_queries_are_trained_on(tiny_batch):
    target = tiny_batch["labels"][0]
    tiny_batch["labels"][0] = {name: torch.cat([value] * 3) for name, value in target.items()}
    output = build_tiny().train()(**tiny_batch)
    assert output.loss.isfinite()


def test_bfloat16_trains(tiny_batch):
    """transformers crashes in `cdist`."""
    model = build_tiny().to(torch.bfloat16).train()
    tiny_batch["pixel_values"] = tiny_batch["pixel_values"].bfloat16()
    output = model(**tiny_batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


# ------ padding


def test_padding_reaches_no_further_than_the_backbone_lets_it():
    """Past the backbone an image in a batch is the image alone: positions, attention and boxes see real cells only."""
    model = build_tiny().double().eval()
    alone = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    canvas = torch.nn.functional.pad(alone, (0, 64, 0, 32))
    mask = torch.nn.functional.pad(torch.ones(1, 64, 96, dtype=torch.int64), (0, 64, 0, 32))
    maps = model.model.backbone(alone)

    def padded_maps(_pixel_values):
        return [
            torch.nn.functional.pad(m, (0, 64 // s, 0, 32 // s)) for m, s in zip(maps, (4, 8, 16, 32), strict=True)
        ]

    with torch.no_grad():
        single = model(alone)
        model.model.backbone.forward = padded_maps
        padded = model(canvas, mask)
    for name in ("logits", "pred_boxes", "last_hidden_state"):
        torch.testing.assert_close(padded[name], single[name], atol=1e-9, rtol=0)


def test_image_sizes_are_those_without_padding(tiny_model, tiny_batch):
    output = predict(tiny_model, tiny_batch)
    assert output.image_sizes.tolist() == [[65, 97], [49, 64]]
    assert output.canvas_sizes.tolist() == [[65, 97], [65, 97]]


# ------ building, saving, loading


def test_saved_and_loaded_gives_the_same_bits(tmp_path, tiny_model, tiny_batch):
    tiny_model.save_pretrained(tmp_path)
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    assert_same_predictions(predict(tiny_model, tiny_batch), predict(loaded, tiny_batch))
    features = DetrPanopticModel.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = features(tiny_batch["pixel_values"], tiny_batch["pixel_mask"]).last_hidden_state
    assert torch.equal(hidden, predict(tiny_model, tiny_batch).last_hidden_state)


def test_pretrained_backbones_are_asked_for_at_construction_and_only_there(tmp_path, monkeypatch):
    """transformers ignores `use_pretrained_backbone=True` silently."""
    asked = []
    monkeypatch.setattr(
        "detr_panoptic.backbone._create_body",
        lambda name, **options: asked.append(options.pop("pretrained")) or create(name, pretrained=False, **options),
    )
    model = build_tiny(use_pretrained_backbone=True)
    assert asked == [True]
    model.save_pretrained(tmp_path)
    DetrPanopticForSegmentation.from_pretrained(tmp_path)
    assert asked == [True, False]


def create(name, **options):
    import timm

    options.pop("dilation")
    return timm.create_model(
        name, features_only=True, out_indices=(-4, -3, -2, -1), in_chans=options.pop("num_channels"), **options
    )


def test_initialization_leaves_the_backbone_as_timm_made_it():
    torch.manual_seed(0)
    backbone = Backbone("test_resnet")
    torch.manual_seed(0)
    config = DetrPanopticConfig(backbone="test_resnet", hidden_size=32, num_heads=4)
    model = DetrPanopticModel(config)
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_initialization_is_that_of_the_reference():
    model = build_tiny(hidden_size=64)
    layer = model.model.encoder.layers[0]
    bounds = {
        layer.self_attn.q_proj.weight: (6 / (4 * 64)) ** 0.5,  # xavier over the packed (3D, D) projection
        layer.self_attn.out_proj.weight: (6 / (2 * 64)) ** 0.5,
        layer.linear1.weight: (6 / (64 + 48)) ** 0.5,
        model.class_head.weight: 64**-0.5,
        model.mask_head.predictor.weight: (3 / (4 * 9)) ** 0.5,  # kaiming with a = 1 of 4 channels
    }
    for weight, bound in bounds.items():
        assert 0.8 * bound < weight.abs().max() <= bound
    assert 0.8 < model.model.query_embeddings.weight.std() < 1.2
    assert (layer.self_attn.out_proj.bias == 0).all()


def test_state_dict_names_are_the_published_ones():
    names = "\n".join(sorted(name for name in build_tiny().state_dict() if ".backbone." not in name)) + "\n"
    from pathlib import Path

    assert names == (Path(__file__).parent / "state_dict_names.txt").read_text()


@pytest.mark.parametrize("backbone", ["convnext_atto", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("dilation", [False, True])
def test_other_backbones(backbone, dilation):
    model = build_tiny(backbone=backbone, dilation=dilation).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 96), mask_queries="all")
    assert output.pred_masks.shape == (1, 5, 16, 24)
    cells = 4 * 6 if dilation else 2 * 3
    assert output.encoder_last_hidden_state.shape == (1, cells, 32)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_windows_take_images_of_any_size(backbone):
    """timm asserts the size that the weights were trained with."""
    model = build_tiny(backbone=backbone).eval()
    for height, width in ((160, 224), (97, 65)):
        output = model(torch.randn(1, 3, height, width), mask_queries="all")
        assert output.pred_masks.shape[2:] == (-(-height // 4), -(-width // 4))
        assert output.pred_masks.isfinite().all()


# ------ errors at the door


@pytest.mark.parametrize("name", ["hiera_tiny_224", "coatnet_0_rw_224", "legacy_xception"])  # the last has no padding
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_backbone_of_one_size_is_refused_when_it_is_built(name, device):
    with pytest.raises(ValueError, match=f"`backbone` must .* at any image size, got '{name}'"), torch.device(device):
        Backbone(name)


def test_a_backbone_without_four_maps_is_refused():
    for name in ("xcit_nano_12_p16_224", "nest_tiny"):
        with pytest.raises(ValueError, match=f"`backbone` must .*{name}"), torch.device("meta"):
            Backbone(name)
    with pytest.raises(ValueError, match=r"`backbone` must be a timm model.*no_such_model"):
        Backbone("no_such_model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_values": torch.zeros(2, 1, 65, 97)},
            r"`pixel_values` must be .* shape \(batch, 3, .*\(2, 1, 65, 97\)",
        ),
        ({"pixel_mask": torch.ones(2, 65, 96)}, r"`pixel_mask` must have shape \(2, 65, 97\).*\(2, 65, 96\)"),
        ({"mask_queries": 6}, "`mask_queries` must be .* a number from 0 to 5, got 6"),
        ({"labels": []}, "`labels` must be a list of 2 targets, got 0 in list"),
    ],
)
def test_wrong_arguments_are_named(tiny_model, tiny_batch, change, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**(tiny_batch | change))


def test_a_class_that_the_model_does_not_have_is_named(tiny_model, tiny_batch):
    tiny_batch["labels"][0]["class_labels"][1] = 3
    with pytest.raises(
        ValueError, match=r"`class_labels` must lie between 0 and 2 in a model with 3 labels, got \[3\]"
    ):
        tiny_model(**tiny_batch)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}, "dtype": torch.float16}]
)
def test_loading_takes_device_maps_and_precisions(tmp_path, tiny_batch, options):
    build_tiny().save_pretrained(tmp_path)
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path, **options)
    dtype = options.get("dtype", torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    tiny_batch["pixel_values"] = tiny_batch["pixel_values"].to(dtype)
    output = predict(loaded, tiny_batch)
    assert output.pred_masks.isfinite().all()
    assert output.logits.dtype == dtype
