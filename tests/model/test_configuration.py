import pytest

from detr_panoptic import DetrPanopticConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 40, "num_heads": 8}, "`hidden_size` must be a multiple of 16.*got 40"),
        ({"hidden_size": 48, "num_heads": 5}, r"`hidden_size` must be a multiple of `num_heads` \(5\), got 48"),
        ({"hidden_size": "large"}, "hidden_size.*expected int, got str"),
        ({"num_queries": 0}, "`num_queries` must be at least 1, got 0"),
        ({"dropout": 1.5}, "`dropout` must be between 0 and 1, got 1.5"),
        ({"threshold": -0.1}, "`threshold` must be between 0 and 1, got -0.1"),
        ({"bbox_cost": -1}, "`bbox_cost` must be a non-negative number, got -1"),
        ({"giou_loss_coefficient": float("inf")}, "`giou_loss_coefficient` must be a non-negative number, got inf"),
        ({"num_labels": 3, "stuff_label_ids": [0, 3]}, r"`stuff_label_ids` must be labels from 0 to 2, got \[3\]"),
        (
            {"num_labels": 3, "category_ids": [7]},
            "`category_ids` must name the category of each of the 3 labels, got 1",
        ),
        ({"mask_queries": "some"}, '`mask_queries` must be "kept", "all" or a number from 0 to 100, got \'some\''),
        ({"mask_queries": 101}, "`mask_queries` must be .* a number from 0 to 100, got 101"),
        ({"hiden_size": 64}, "`hiden_size` is not a field.*did you mean `hidden_size`"),
        ({"num_label": 3}, "`num_label` is not a field.*did you mean `num_labels`"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(settings, message):
    with pytest.raises(Exception, match=f"(?s){message}"):
        DetrPanopticConfig(**settings)


def test_names_may_come_as_label2id_alone(tmp_path):
    DetrPanopticConfig(id2label={0: "cat", 1: "sky"}, stuff_label_ids=[1]).save_pretrained(tmp_path)
    config = DetrPanopticConfig.from_pretrained(tmp_path, label2id={"sky": 0, "dog": 1})
    assert (config.id2label, config.stuff_label_ids) == ({0: "sky", 1: "dog"}, [0])


def test_saved_and_loaded_is_the_same(tmp_path):
    config = DetrPanopticConfig(
        hidden_size=64, id2label={0: "cat", 1: "sky"}, stuff_label_ids=[1], category_ids=[17, 187], mask_queries=7
    )
    config.save_pretrained(tmp_path)
    assert (
        DetrPanopticConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
        or DetrPanopticConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    )


def test_two_configurations_do_not_share_their_lists():
    DetrPanopticConfig().stuff_label_ids.append(0)
    assert DetrPanopticConfig().stuff_label_ids == []


def test_names_of_transformers_detr_are_understood():
    config = DetrPanopticConfig(d_model=64, encoder_ffn_dim=96)  # type: ignore[call-arg]
    assert (config.hidden_size, config.ffn_dim, config.num_attention_heads) == (64, 96, 8)
