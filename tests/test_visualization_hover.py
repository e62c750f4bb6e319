"""The page with a picture to point at: it holds all it needs, says what is there, and escapes names."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.visualization import draw_segments, hover_figure
from detr_panoptic.visualization import hover as hover_module
from detr_panoptic.visualization.hover import run_lengths
from detr_panoptic.visualization.report import write_page

HOSTILE = "</script><img src=x onerror=alert(1)>"
ID2LABEL = {0: HOSTILE, 1: "sky-other-merged", 2: "sea"}


class Page(HTMLParser):
    """Collects what is on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[str] = []
        self.scripts: list[str] = []
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within.append(tag)
        if tag == "tr":
            self.rows.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._within.append("/" + tag)

    def handle_data(self, data):
        if self._within and self._within[-1] == "script":
            self.scripts[-1] += data
        elif self.rows:
            self.rows[-1] += data + "|"

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def scene() -> tuple[Image.Image, np.ndarray, list[dict]]:
    noise = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((131, 97), Image.Resampling.BICUBIC)
    segmentation = np.full((97, 131), 7)
    segmentation[20:50, 10:60] = 300
    segmentation[20:50, 60:110] = 70000
    segmentation[80:] = 0
    segments = [
        {"id": 300, "label_id": 0, "score": 0.971},
        {"id": 70000, "label_id": 2, "score": 0.88},
        {"id": 7, "label_id": 1},
    ]
    return image, segmentation, segments


@pytest.fixture
def page(tmp_path) -> Page:
    file = tmp_path / "page.html"
    write_page(file, "Title", [hover_figure(*scene(), ID2LABEL, links={300: "#boat"})])
    return Page(file.read_text(encoding="utf-8"))


def data_of(page: Page) -> tuple[np.ndarray, list[str]]:
    """The map that the script decodes: each pixel's place in the list, 0 for void; and the list's texts."""
    data = json.loads(page.scripts[0])
    values, lengths = data["runs"][::2], data["runs"][1::2]
    return np.repeat(values, lengths).reshape(data["height"], data["width"]), data["segments"]


def test_nothing_is_loaded_from_elsewhere(page):
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not page.attributes("link")
    assert all("src" not in attributes for attributes in page.attributes("script"))
    assert "url(" not in hover_module.STYLE
    assert not re.search(r"https?:|import|fetch", hover_module.SCRIPT.read_text())


def test_the_photograph_and_its_overlay_are_there(page):
    image, segmentation, segments = scene()
    expected = [image, draw_segments(image, segmentation, segments, ID2LABEL)]
    for attributes, picture in zip(page.attributes("img"), expected, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(picture)).mean() < 6  # JPEG
        assert (attributes["width"], attributes["height"]) == ("131", "97")


def test_the_map_on_the_page_says_which_line_of_the_list_a_pixel_belongs_to(page):
    _, segmentation, segments = scene()
    places, texts = data_of(page)
    names = {300: HOSTILE, 70000: "sea", 7: "sky"}
    for segment in segments:
        mask = segmentation == segment["id"]
        (place,) = np.unique(places[mask])
        text = texts[place - 1]
        assert text.startswith(names[segment["id"]])
        assert f"({mask.sum()} pixels)" in text
        assert f"{mask.mean():.1%}" in text
        assert ("0.97" in text) == (segment["id"] == 300)
        line = page.rows[place]  # row 0 is the header
        assert line.startswith(names[segment["id"]])
        assert f"{mask.mean():.1%}" in line
    assert not places[segmentation == 0].any()


def test_the_largest_segment_stands_first_and_each_has_a_button_for_the_keyboard(page):
    assert page.rows[1].startswith("sky")
    buttons = page.attributes("button")
    assert len(buttons) == 3
    assert all(button == {"type": "button", "aria-pressed": "false"} for button in buttons)


def test_names_cannot_become_code(page):
    assert len(page.scripts) == 2
    assert HOSTILE not in page.scripts[0]
    assert HOSTILE in data_of(page)[1][1] + data_of(page)[1][2]
    assert not [attributes for attributes in page.attributes("img") if "onerror" in attributes]


def test_links_lead_where_they_are_told_to(page):
    assert [attributes["href"] for attributes in page.attributes("a")] == ["#boat"]


def test_an_empty_result_is_a_page_too():
    image, segmentation, _ = scene()
    page = Page(hover_figure(image, np.zeros_like(segmentation), [], ID2LABEL))
    places, texts = data_of(page)
    assert places.shape == (97, 131)
    assert not places.any()
    assert texts == []


def test_a_large_picture_is_shown_smaller_and_counted_whole(monkeypatch):
    monkeypatch.setattr(hover_module, "MAX_SIDE", 70)
    image, segmentation, segments = scene()
    page = Page(hover_figure(image, segmentation, segments, ID2LABEL))
    places, texts = data_of(page)
    assert places.shape == (49, 66)
    assert f"({(segmentation == 7).sum()} pixels)" in texts[0]
    assert max(int(attributes["width"]) for attributes in page.attributes("img")) <= 70


def test_a_large_picture_is_drawn_in_the_size_in_which_it_is_shown(monkeypatch):
    """Labels would be too small to be read otherwise, and pixels by the million be painted in vain."""
    monkeypatch.setattr(hover_module, "MAX_SIDE", 65)
    image, segmentation, segments = scene()
    doubled = image.resize((130, 96)), np.repeat(np.repeat(segmentation[:48, :65], 2, 0), 2, 1)
    page = Page(hover_figure(*doubled, segments, ID2LABEL))
    small = doubled[0].copy()
    small.thumbnail((65, 65))
    expected = np.asarray(draw_segments(small, segmentation[:48, :65], segments, ID2LABEL)).astype(int)
    drawn_large = draw_segments(*doubled, segments, ID2LABEL)
    drawn_large.thumbnail((65, 65))
    shown = Image.open(io.BytesIO(base64.b64decode(page.attributes("img")[1]["src"].partition(",")[2])))
    assert np.abs(np.asarray(shown) - expected).mean() < 6  # JPEG
    assert np.abs(np.asarray(drawn_large) - expected).mean() > 10


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 11), st.integers(0, 2**31 - 1))
def test_run_lengths_hold_every_value(height, width, seed):
    values = np.random.default_rng(seed).integers(3, size=(height, width))
    runs = run_lengths(values)
    assert np.array_equal(np.repeat(runs[::2], runs[1::2]).reshape(values.shape), values)
    assert all(a != b for a, b in zip(runs[:-2:2], runs[2::2], strict=True))
