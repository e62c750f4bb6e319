"""Errors by cause: one hand-made picture for each kind, their sums, and the page that shows them."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.evaluation import evaluate
from detr_panoptic.evaluation.errors import KINDS, ErrorCounts, find_errors
from detr_panoptic.evaluation.matching import pair_segments
from detr_panoptic.visualization.report import Section, write_report

CAT, DOG, SKY = 0, 1, 2
CATEGORY_IDS = (17, 18, 187)


def side(*segments):
    """Returns a map of 20 x 60 pixels: (label, first column, end column) or with rows; void elsewhere."""
    ids = np.zeros((20, 60), dtype=np.int32)
    info = []
    for number, (label, left, right, *rows) in enumerate(segments, start=1):
        ids[slice(*rows or (0, 20)), left:right] = number
        info.append({"id": number, "label_id": label})
    return {"segmentation": ids, "segments_info": info}


def kinds(truth, prediction):
    return [error.kind for error in find_errors(pair_segments(truth, prediction, CATEGORY_IDS))]


@pytest.mark.parametrize(
    ("true", "found", "expected"),
    [
        ([(CAT, 0, 20)], [(CAT, 0, 20)], []),
        ([(CAT, 0, 20)], [(CAT, 0, 15)], []),
        ([(CAT, 0, 20)], [], ["missed"]),
        ([(CAT, 0, 20)], [(CAT, 0, 9)], ["poor mask"]),
        ([(CAT, 0, 20), (SKY, 20, 60)], [(CAT, 0, 1), (SKY, 1, 60)], ["poor mask"]),
        ([(CAT, 0, 20)], [(DOG, 0, 19)], ["wrong class"]),
        ([(CAT, 0, 20), (CAT, 20, 40)], [(CAT, 0, 40)], ["merged", "merged"]),
        ([(CAT, 0, 30), (CAT, 30, 40)], [(CAT, 0, 40)], ["merged"]),
        ([(CAT, 0, 20)], [(CAT, 0, 9), (CAT, 9, 18)], ["split"]),
        ([(CAT, 0, 20)], [(CAT, 0, 15), (CAT, 15, 20)], ["duplicate"]),
        ([(SKY, 0, 60)], [(SKY, 0, 50), (CAT, 50, 60)], ["background"]),
        ([(CAT, 0, 20)], [(CAT, 0, 20), (DOG, 20, 60)], []),  # in void: nobody knows
    ],
    ids=lambda value: "-".join(value) or "none" if value and isinstance(value[0], str) else "",
)
def test_each_kind_of_error(true, found, expected):
    assert sorted(kinds(side(*true), side(*found))) == sorted(expected)


def test_every_missed_and_wrong_segment_is_counted_once():
    evaluation = evaluate(BUNDLED, "scenes", limit=12, average_precision=False, progress=False)
    rows = evaluation.per_class.values()
    errors = evaluation.errors
    of_truth = ("missed", "poor mask", "wrong class", "merged", "split")
    assert sum(errors.counts[kind] for kind in of_truth) == sum(row.fn for row in rows) > 10
    extra = sum(errors.counts[kind] for kind in ("duplicate", "background"))
    assert extra <= sum(row.fp for row in rows)
    matches = sum(number for (true, found), number in errors.confusion.items() if true == found)
    assert matches == sum(row.tp for row in rows)
    assert sum(errors.confusion.values()) == matches + sum(errors.counts.values())
    assert list(errors.counts) == list(KINDS)
    assert all(len(examples) <= 4 for examples in errors.examples.values())
    areas = [
        [(example.truth["segmentation"] > 0).sum() for example in errors.examples[kind]]
        for kind in ("missed", "merged")
    ]
    assert all(row == sorted(row, reverse=True) and row[0] > 0 for row in areas)


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            address = dict(attributes)["src"]
            self.pictures.append(Image.open(BytesIO(base64.b64decode(address.partition("base64,")[2]))))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_report_is_one_page_with_numbers_errors_and_pictures(tmp_path):
    evaluation = evaluate(BUNDLED, "scenes", limit=4, average_precision=False, progress=False)
    evaluation.save(tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    shown = sum(map(len, evaluation.errors.examples.values())) + len(evaluation.worst)
    assert len(page.pictures) == shown > 4
    assert all(np.asarray(picture).std() > 10 for picture in page.pictures)
    assert f"{100 * evaluation.pq:.1f}" in page.texts
    assert {"balloon", "sky"} <= set(page.texts)
    assert 'name="viewport"' in text
    assert not {"script", "link", "iframe"} & set(page.tags)  # nothing is loaded from elsewhere
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["errors"] == evaluation.errors.counts


def test_names_of_classes_and_files_are_text_in_the_report(tmp_path):
    nasty = '<script>alert("x")</script>\x1b[2J\u202e'
    picture = Image.new("RGB", (9, 9))
    path = write_report(
        tmp_path / "r.html", nasty, [Section(nasty, [nasty], [([nasty], [[nasty]])], [(nasty, picture)])]
    )
    page = _Page(path.read_text())
    assert "script" not in page.tags
    assert "\x1b" not in path.read_text()
    assert "\u202e" not in path.read_text()


def test_a_true_segment_without_a_pixel_is_missed_in_the_whole_image():
    truth, found = side((SKY, 0, 60)), side((SKY, 0, 60))
    truth["segments_info"].append({"id": 9, "label_id": CAT})
    counts = ErrorCounts()
    record = {"image": Image.new("RGB", (60, 20)), "image_id": 1}
    counts.add(0, pair_segments(truth, found, CATEGORY_IDS), record, (truth, found))
    assert counts.kinds == {"missed": 1}
    assert counts.largest[0][-1].image.size == (60, 20)
