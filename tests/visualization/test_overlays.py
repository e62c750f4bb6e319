"""Pictures of segmentations: what may change in the photograph, legends, and where labels go."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.visualization import color_of, draw_segments, draw_side_by_side, place_labels, shade

ID2LABEL = {0: "ship", 1: "sky-other-merged", 2: "sea"}


def photograph(height: int = 97, width: int = 131) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


def scene() -> tuple[np.ndarray, list[dict]]:
    """Two boats, sky and a void stripe at the bottom, 97 x 131."""
    segmentation = np.full((97, 131), 7)
    segmentation[20:50, 10:60] = 300
    segmentation[20:50, 60:110] = 70000
    segmentation[80:] = 0
    segments: list[dict] = [
        {"id": 300, "label_id": 0, "score": 0.971},
        {"id": 70000, "label_id": 0, "score": 0.88},
        {"id": 7, "label_id": 1},
    ]
    return segmentation, segments


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_void_and_unlisted_segments_keep_their_pixels():
    image = photograph()
    segmentation, segments = scene()
    before = np.asarray(image)
    after = np.asarray(draw_segments(image, segmentation, segments[:2], ID2LABEL, show_labels=False))
    drawn = np.isin(segmentation, (300, 70000))
    assert np.array_equal(after[~drawn], before[~drawn])
    assert (after[drawn] != before[drawn]).any(-1).mean() > 0.9


def test_nothing_found_leaves_the_image_as_it_is_in_rgb():
    image = photograph().convert("L")
    picture = draw_segments(image, torch.zeros(97, 131, dtype=torch.int32), [], ID2LABEL)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(image.convert("RGB")))


def test_full_opacity_shows_the_colors_and_two_boats_differ():
    segmentation, segments = scene()
    picture = draw_segments(photograph(), segmentation, segments, ID2LABEL, alpha=1, show_labels=False)
    first, second, sky = (picture.getpixel(point) for point in ((30, 35), (85, 35), (120, 5)))
    assert first == color_of(0)
    assert second == shade(color_of(0), 1)
    assert sky == color_of(1)
    assert first != second


def test_outlines_run_between_segments_and_nowhere_else():
    segmentation, segments = scene()
    image = Image.new("RGB", (131, 97))
    picture = np.asarray(draw_segments(image, segmentation, segments, ID2LABEL, alpha=0, show_labels=False))
    bright = picture.min(-1) > 200
    assert bright[30, 58:62].any()
    assert bright[30].sum() <= 6  # three borders of at most two pixels
    assert not bright[35:45, 20:50].any()
    assert not bright[80:].any()  # void


def test_a_label_changes_only_its_own_box():
    segmentation, segments = scene()
    image = photograph(388, 524)
    segmentation = segmentation.repeat(4, 0).repeat(4, 1)
    plain = np.asarray(draw_segments(image, segmentation, segments, ID2LABEL, show_labels=False))
    labeled = np.asarray(draw_segments(image, segmentation, segments, ID2LABEL))
    changed = (plain != labeled).any(-1)
    for segment in segments:
        rows, columns = np.nonzero(changed & (segmentation == segment["id"]))
        assert 20 < np.ptp(columns) < 120
        assert 5 < np.ptp(rows) < 30
    assert not changed[320:].any()


def test_the_photograph_and_the_segments_are_not_written_to():
    image = photograph()
    segmentation, segments = scene()
    copies = np.asarray(image).copy(), segmentation.copy(), [dict(segment) for segment in segments]
    draw_segments(image, segmentation, segments, ID2LABEL)
    assert np.array_equal(np.asarray(image), copies[0])
    assert np.array_equal(segmentation, copies[1])
    assert segments == copies[2]


def test_panels_stand_side_by_side_at_full_size():
    image = photograph()
    segmentation, segments = scene()
    truth = {"segmentation": segmentation, "segments_info": segments}
    prediction = {"segmentation": torch.zeros(97, 131, dtype=torch.int32), "segments_info": []}
    sheet = draw_side_by_side(image, truth, prediction, ID2LABEL)
    left, top = 0, sheet.height - 97
    gap = (sheet.width - 3 * 131) // 2
    panels = [sheet.crop((x, top, x + 131, top + 97)) for x in (left, 131 + gap, 2 * (131 + gap))]
    expected = [image, draw_segments(image, segmentation, segments, ID2LABEL), image]
    for panel, picture in zip(panels, expected, strict=True):
        assert np.array_equal(np.asarray(panel), np.asarray(picture))
    caption = np.asarray(sheet.crop((0, 0, 131, top)))
    assert caption.min() < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": np.zeros((131, 97), int)}, "`segmentation` must"),
        ({"alpha": 1.5}, "`alpha` must"),
        ({"segments_info": [{"id": 1, "label_id": 3}]}, r"no name of \[3\]"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {"segmentation": np.zeros((97, 131), int), "segments_info": [], "id2label": ID2LABEL} | change
    with pytest.raises(ValueError, match=message):
        draw_segments(photograph(), **arguments)


def test_a_legend_goes_below_and_leaves_the_picture_as_it_is():
    segmentation, segments = scene()
    plain = draw_segments(photograph(), segmentation, segments, ID2LABEL)
    with_legend = draw_segments(photograph(), segmentation, segments, ID2LABEL, show_legend=True)
    assert with_legend.width == plain.width
    assert np.array_equal(np.asarray(with_legend.crop((0, 0, 131, 97))), np.asarray(plain))
    legend = np.asarray(with_legend.crop((0, 97, 131, with_legend.height))).reshape(-1, 3)
    assert (legend == color_of(0)).all(-1).sum() > 30
    assert (legend == color_of(1)).all(-1).sum() > 30
    assert not (legend == color_of(2)).all(-1).any()  # no sea in the picture
    assert not (legend == shade(color_of(0), 1)).all(-1).any()  # one entry per class


def test_without_segments_there_is_no_legend():
    picture = draw_segments(photograph(), np.zeros((97, 131), int), [], ID2LABEL, show_legend=True)
    assert picture.size == (131, 97)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_labels_lie_on_their_segments_and_never_overlap(seed):
    generator = np.random.default_rng(seed)
    blocks = generator.integers(7, size=(generator.integers(1, 6), generator.integers(1, 6)))
    segmentation = blocks.repeat(23, 0).repeat(29, 1)
    ids = list(range(1, 7))
    sizes = [(int(w), int(h)) for w, h in zip(generator.integers(5, 41, 6), generator.integers(5, 14, 6), strict=True)]
    boxes = place_labels(segmentation, ids, sizes)
    placed = [box for box in boxes if box is not None]
    for segment_id, size, box in zip(ids, sizes, boxes, strict=True):
        if box is None:
            continue
        left, top, right, bottom = box
        assert (right - left, bottom - top) == size
        assert left >= 0
        assert top >= 0
        assert right <= segmentation.shape[1]
        assert bottom <= segmentation.shape[0]
        assert segmentation[top + size[1] // 2, left + size[0] // 2] == segment_id
    assert not any(overlap(a, b) for i, a in enumerate(placed) for b in placed[:i])


def test_a_label_stays_inside_a_large_picture_whose_sides_are_odd():
    """The search runs on every third pixel here, and neither 1283 nor 41 is a multiple of three."""
    segmentation = np.zeros((41, 1283), int)
    segmentation[:, 1226:] = 1
    ((left, top, right, bottom),) = place_labels(segmentation, [1], [(93, 37)])
    assert (right - left, bottom - top) == (93, 37)
    assert right <= 1283
    assert bottom <= 41


def test_a_label_sits_in_the_middle_of_a_disc():
    rows, columns = np.ogrid[:101, :131]
    disc = ((rows - 40) ** 2 + (columns - 70) ** 2 < 30**2).astype(int)
    ((left, top, right, bottom),) = place_labels(disc, [1], [(21, 11)])
    assert abs((left + right) / 2 - 70) <= 2
    assert abs((top + bottom) / 2 - 40) <= 2


def test_the_edge_of_the_picture_is_a_border_too():
    ((left, top, right, bottom),) = place_labels(np.ones((101, 131), int), [1], [(21, 11)])
    assert abs((left + right) / 2 - 65) <= 15
    assert abs((top + bottom) / 2 - 50) <= 3


def test_a_label_moves_aside_for_that_of_a_larger_segment():
    segmentation = np.ones((61, 101), int)
    segmentation[25:36, 40:61] = 2
    alone = place_labels(segmentation, [2], [(31, 9)])[0]
    size = (95, 9)
    first, second = place_labels(np.where(segmentation == 2, 2, 1), [1, 2], [size, (15, 9)])
    assert alone is not None
    assert first is not None
    assert second is not None
    assert not overlap(first, second)


def test_the_smaller_segment_goes_without_where_there_is_room_for_one():
    segmentation = np.ones((15, 60), int)
    segmentation[:, 35:] = 2  # either label would fit alone
    boxes = place_labels(segmentation, [2, 1], [(40, 13), (40, 13)])
    assert boxes[0] is None
    assert boxes[1] is not None


def test_a_label_does_not_hide_a_segment_much_smaller_than_itself():
    segmentation = np.zeros((60, 100), int)
    segmentation[30:34, 50:54] = 1
    assert place_labels(segmentation, [1], [(30, 10)]) == [None]
