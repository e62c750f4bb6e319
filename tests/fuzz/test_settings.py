"""Model configurations: round trips, and wrong values that are refused by name."""

import json
import math
import tempfile
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic import DetrPanopticConfig
from tests.fuzz import examples, message_of

pytestmark = pytest.mark.fuzz
SIZES = st.integers(1, 40)
FRACTIONS = st.floats(0, 1)
WEIGHTS = st.floats(0, 1e6)
ANYTHING: Any = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
ANYTHING |= st.lists(st.integers(-3, 9) | st.text(max_size=2) | st.none(), max_size=3)
ANYTHING |= st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)


@st.composite
def configurations(draw):
    """Arguments of a configuration that is right."""
    labels = draw(st.integers(1, 5))
    queries = draw(SIZES)
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=labels, max_size=labels, unique=True))
    ids = st.lists(st.integers(0, 300), min_size=labels, max_size=labels, unique=True)
    chosen = {
        "hidden_size": 16 * draw(st.integers(1, 4)) if heads != 8 else 16 * draw(st.sampled_from([1, 2])),
        "num_heads": heads,
        "num_queries": queries,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "stuff_label_ids": sorted(draw(st.sets(st.integers(0, labels - 1)))),
        "category_ids": draw(st.none() | ids),
        "mask_queries": draw(st.sampled_from(["kept", "all"]) | st.integers(0, queries)),
        "mask_loss_resolution": draw(st.sampled_from(["image", "mask"])),
        "auxiliary_loss": draw(st.booleans()),
        "dilation": draw(st.booleans()),
    }
    chosen |= {name: draw(SIZES) for name in ("encoder_layers", "decoder_layers", "ffn_dim", "num_channels")}
    chosen |= {name: draw(FRACTIONS) for name in ("dropout", "threshold", "eos_coefficient")}
    chosen |= {
        name: draw(WEIGHTS) for name in ("class_cost", "giou_cost", "ce_loss_coefficient", "dice_loss_coefficient")
    }
    return chosen


OWN_FIELDS = sorted(DetrPanopticConfig.__annotations__)


def values_of(config):
    return {name: getattr(config, name) for name in (*OWN_FIELDS, "id2label", "label2id")}


@examples(20)
@given(configurations())
def test_a_configuration_survives_dictionaries_json_and_folders(arguments):
    config = DetrPanopticConfig(**arguments)
    assert {name: getattr(config, name) for name in arguments} == arguments
    assert values_of(DetrPanopticConfig.from_dict(config.to_dict())) == values_of(config)
    assert values_of(DetrPanopticConfig(**json.loads(config.to_json_string(use_diff=False)))) == values_of(config)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        loaded = DetrPanopticConfig.from_pretrained(folder)
    assert values_of(loaded) == values_of(config)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


@examples(80)
@given(st.sampled_from(OWN_FIELDS), ANYTHING)
def test_any_value_of_a_field_is_taken_or_refused_by_name(name, value):
    taken = []
    message = message_of(lambda: taken.append(DetrPanopticConfig(**{name: value})), ValueError, StrictDataclassError)
    if message is not None:
        assert name in message
        return
    found = getattr(taken[0], name)
    assert found == value or (isinstance(value, float) and math.isnan(value))
    assert not (isinstance(value, float) and not math.isfinite(value)), "a number that is none was taken"
    json.loads(taken[0].to_json_string())
