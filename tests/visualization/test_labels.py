"""Labels: what they say, in which letters, and how much of it where there is little room."""

import numpy as np
import pytest
from PIL import ImageFont

from detr_panoptic.visualization import labels
from detr_panoptic.visualization.labels import draw_tag, font_for, label_text, readable_name, shorten

ID2LABEL = {0: "boat", 1: "sky-other-merged", 2: "Лодка", 3: "\U0001f6f6"}
SEGMENT = {"label_id": 0, "score": 0.971}
WIDE = 10_000


@pytest.fixture
def no_other_fonts(monkeypatch):
    """A machine whose fonts have other names."""
    monkeypatch.setattr(labels, "FONT_FILES", ("no such font.ttf",))


def test_text_drops_bookkeeping_and_missing_scores():
    assert label_text({"label_id": 1}, ID2LABEL) == "sky"
    assert label_text(SEGMENT, ID2LABEL) == "boat 0.97"


def test_a_short_text_stays_and_a_long_one_is_cut_as_little_as_needed():
    font = font_for("boat", 13)
    text = "a very long name of a class"
    assert shorten(text, font, font.getlength(text)) == text
    for max_width in (font.getlength(text) - 1, 100, 60):
        cut = shorten(text, font, max_width)
        assert cut.endswith("…")
        assert text.startswith(cut[:-1])
        assert font.getlength(cut) <= max_width
        one_more = text[: len(cut)].rstrip() + "…"
        assert font.getlength(one_more) > max_width
    assert shorten(text, font, 0) == "a…"


def test_a_long_name_is_cut_and_its_score_is_not():
    names = {0: "a very long name of a class"}
    tag = draw_tag(SEGMENT, names, (200, 30, 30), size=13, max_width=90)
    assert tag.width <= 90
    shorter = draw_tag({"label_id": 0}, names, (200, 30, 30), size=13, max_width=90)
    assert not np.array_equal(np.asarray(tag), np.asarray(shorter.resize(tag.size)))
    font = font_for("a", 13)
    room = 90 - 2 * round(13 * 0.35) - font.getlength(" 0.97")
    expected = draw_tag(
        {"label_id": 0}, {0: shorten(names[0], font, room) + " 0.97"}, (200, 30, 30), size=13, max_width=WIDE
    )
    assert np.array_equal(np.asarray(tag), np.asarray(expected))


def test_letters_are_dark_on_bright_colors_and_white_on_dark_ones():
    for color, ink in (((255, 255, 255), (16, 18, 22)), ((0, 0, 70), (255, 255, 255))):
        tag = np.asarray(draw_tag(SEGMENT, ID2LABEL, color, size=20, max_width=WIDE))
        assert (tag[..., :3] == ink).all(-1).sum() > 10


def test_a_name_that_the_own_font_cannot_write_is_written_in_another():
    try:
        ImageFont.truetype("DejaVuSans.ttf", 13)
    except OSError:
        pytest.skip("no font with Cyrillic letters under a name that is looked for")
    assert readable_name(2, ID2LABEL, 13) == "Лодка"
    pictures = [
        np.asarray(draw_tag({"label_id": 0}, {0: name}, (250, 250, 250), size=20, max_width=WIDE))
        for name in ("Лодка", "Кадол")
    ]
    assert pictures[0].shape == pictures[1].shape  # the same letters
    assert not np.array_equal(pictures[0], pictures[1])  # which would look alike if they were boxes


@pytest.mark.usefixtures("no_other_fonts")
def test_a_name_that_no_font_can_write_is_the_number_of_its_class():
    assert readable_name(0, ID2LABEL, 13) == "boat"
    assert readable_name(2, ID2LABEL, 13) == "class 2"
    written = draw_tag({"label_id": 2, "score": 0.5}, ID2LABEL, (9, 9, 9), size=13, max_width=WIDE)
    expected = draw_tag({"label_id": 0, "score": 0.5}, {0: "class 2"}, (9, 9, 9), size=13, max_width=WIDE)
    assert np.array_equal(np.asarray(written), np.asarray(expected))
