"""Every format, written and read back; and broken in one place, read or refused in words that name the place."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic.data import check_data, read_panoptic, segmentation_ids
from detr_panoptic.data.label_maps import CITYSCAPES
from tests.data.datasets_on_disk import CATEGORIES, READ_AS, WRITERS, cityscapes_record, records
from tests.fuzz import examples, message_of

pytestmark = [
    pytest.mark.fuzz,
    # `datasets` and PIL leave a file that they refuse to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of pycocotools' `encode`
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FORMATS = sorted(WRITERS)
JSON_VALUES: Any = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4) | st.just([])
JSON_VALUES |= st.just({}) | st.lists(st.integers(0, 9), max_size=7) | st.just("../../etc/passwd")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Prepared Parquet files of thousands of datasets, where they do not stay."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = before


def strategy_of(name):
    if name == "cityscapes":
        return records(categories=CITYSCAPES).map(lambda items: [cityscapes_record(item) for item in items])
    return records(crowds=name in ("coco-panoptic", "saved", "parquet", "coco-instances"))


@contextmanager
def written_set(name, items):
    """A folder with these records in a format."""
    with tempfile.TemporaryDirectory() as parent:
        WRITERS[name](Path(parent) / "set", items)
        yield Path(parent) / "set"


def segments_of(record, categories, *, merged=False):
    """What a record says, whatever its ids: (name, thing, crowd, pixels) of each segment."""
    ids = np.asarray(segmentation_ids(record["segmentation"]))
    found: dict[tuple, Any] = {}
    for segment in record["segments_info"]:
        label = segment["label_id"]
        is_whole = merged or not categories.is_thing[label]
        key = (categories.names[label], segment["iscrowd"], None if is_whole else segment["id"])
        found[key] = found.get(key, False) | (ids == segment["id"])
    return sorted((name, crowd, np.flatnonzero(mask).tolist()) for (name, crowd, _), mask in found.items())


@pytest.mark.parametrize("name", FORMATS)
@examples(4)
@given(data=st.data())
def test_what_is_written_is_read(name, data):
    written = data.draw(strategy_of(name))
    categories = CITYSCAPES if name == "cityscapes" else CATEGORIES
    with written_set(name, written) as folder:
        found = read_panoptic(folder, data_format=READ_AS.get(name, name))
        assert found.categories.names == categories.names
        found_by_name = {Path(record["file_name"]).name: record for record in found.records}
        assert len(found_by_name) == len(written)
        for record in written:
            names = [n for n in found_by_name if str(record["image_id"]) in n]
            other = found_by_name[names[0]]
            np.testing.assert_array_equal(np.asarray(other["image"]), np.asarray(record["image"]))
            merged = name == "semantic"
            assert segments_of(other, found.categories, merged=merged) == segments_of(
                record, categories, merged=merged
            )
            for segment in other["segments_info"]:
                pixels = segmentation_ids(other["segmentation"]) == segment["id"]
                assert segment["area"] == pixels.sum()


def read_all(folder, name):
    for record in read_panoptic(folder, data_format=READ_AS.get(name, name)).records:
        segmentation_ids(record["segmentation"])


def places_in(value, path=()):
    """Paths to every value inside of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def changed(value, path, new):
    """JSON with another value in one place; without it if `new` is `...`."""
    if not path:
        return None if new is ... else new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and new is ...:
        del copy[key]
    else:
        copy[key] = changed(value[key], rest, new)
    return copy


def named_by(message, folder):
    """Whether a message names the dataset, one of its files, or one of its images."""
    names = [str(folder), *(path.name for path in Path(folder).rglob("*") if path.is_file())]
    return any(name in message for name in (*names, "Image 1", "image 1"))


def check_refusal(folder, name, *, is_picture=False):
    """Read, or refused with a name; a broken picture is named by who reads many, not by `datasets`."""
    kinds = (ValueError, OSError, SyntaxError) if is_picture else (ValueError, OSError)
    message = message_of(lambda: read_all(folder, name), *kinds)
    assert is_picture or message is None or named_by(message, folder), message
    try:
        check = check_data(folder, data_format=READ_AS.get(name, name), workers=1, progress=False)
    except ValueError:
        assert message is not None, "what is read can be checked"
    else:
        assert message is None or check.has_errors, "what is refused is an error of the check"


@pytest.mark.parametrize("name", ["coco-panoptic", "coco-instances", "two-channel", "semantic"])
@examples(8)
@given(data=st.data())
def test_json_with_a_wrong_value_is_read_or_refused(name, data):
    with written_set(name, data.draw(strategy_of(name))) as folder:
        (file,) = folder.glob("*.json")
        contents = json.loads(file.read_text())
        place = data.draw(st.sampled_from(list(places_in(contents))))
        new = data.draw(JSON_VALUES | st.just(...))
        file.write_text(json.dumps(changed(contents, place, new)))
        check_refusal(folder, name)


@pytest.mark.parametrize("name", FORMATS)
@examples(6)
@given(data=st.data())
def test_broken_bytes_are_read_or_refused(name, data):
    with written_set(name, data.draw(strategy_of(name))) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file = data.draw(st.sampled_from(files))
        contents = bytearray(file.read_bytes())
        start = data.draw(st.integers(0, len(contents)))
        match data.draw(st.sampled_from(["cut", "flip", "insert", "nothing", "delete"])):
            case "cut":
                del contents[start:]
            case "flip":
                for place, byte in data.draw(
                    st.lists(
                        st.tuples(st.integers(0, len(contents) - 1), st.binary(min_size=1, max_size=1)), max_size=5
                    )
                ):
                    contents[place] = byte[0]
            case "insert":
                contents[start:start] = data.draw(st.binary(max_size=9))
            case "nothing":
                contents.clear()
            case "delete":
                file.unlink()
                check_refusal(folder, name)
                return
        file.write_bytes(contents)
        check_refusal(folder, name, is_picture=file.suffix in (".png", ".parquet", ".arrow"))
