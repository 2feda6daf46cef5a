from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from loupe import visualization
from loupe.visualization import (
    FORGED_COLOUR,
    TRUTH_COLOUR,
    captioned_row,
    overlay,
    panel,
    sheet,
    text_block,
)

GREY = np.full((60, 90, 3), 120, np.uint8)
SQUARE = np.zeros((60, 90), np.float32)
SQUARE[20:40, 30:60] = 1.0


def test_an_overlay_leaves_authentic_pixels_and_its_input_untouched():
    image = GREY.copy()
    result = overlay(image, SQUARE)
    assert np.array_equal(image, GREY)
    assert np.array_equal(result[SQUARE == 0], GREY[SQUARE == 0])


def test_an_overlay_tints_forged_pixels_towards_the_colour():
    inside = overlay(GREY, SQUARE)[30, 45].astype(int)
    assert inside[0] > 120 > inside[1]


def test_a_stronger_map_tints_more():
    weak, strong = (overlay(GREY, SQUARE * share)[30, 45, 1] for share in (0.2, 0.4))
    assert weak > strong


def test_the_outline_follows_the_threshold():
    half = SQUARE * 0.4
    assert tuple(overlay(GREY, half, threshold=0.3)[20, 40]) == FORGED_COLOUR
    assert tuple(overlay(GREY, half, threshold=0.5)[20, 40]) != FORGED_COLOUR


def test_the_outline_is_that_of_traced_contours_and_specks_cost_no_more():
    generator = np.random.default_rng(0)
    image = np.full((300, 400, 3), 120, np.uint8)
    smooth = cv2.GaussianBlur(generator.random((300, 400)), (0, 0), 9)
    region = (smooth > np.median(smooth)).astype(np.uint8)
    contours, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    traced = cv2.drawContours(np.zeros_like(region), contours, -1, 1, 1)
    drawn = (overlay(image, region * 0.6) == FORGED_COLOUR).all(axis=2)
    np.testing.assert_array_equal(drawn, traced > 0)
    start = time.process_time()
    overlay(np.full((1000, 1000, 3), 120, np.uint8), generator.random((1000, 1000)))
    assert time.process_time() - start < 4  # Tracing takes 14 s.


def test_bands_of_rows_are_not_seen_and_the_image_may_be_drawn_into(monkeypatch):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (1000, 40, 3), np.uint8)
    forgery_map = cv2.GaussianBlur(generator.random((1000, 40)), (0, 0), 5) * 2 - 0.5
    whole, drawn = overlay(image, forgery_map), image.copy()
    monkeypatch.setattr(visualization, "_BAND", 7)
    assert overlay(drawn, forgery_map, out=drawn) is drawn
    np.testing.assert_array_equal(drawn, whole)


def test_an_overlay_of_another_size_or_on_floats_is_an_error():
    with pytest.raises(ValueError, match=r"forgery map is \(5, 5\), but the image is \(60, 90\)"):
        overlay(GREY, np.zeros((5, 5)))
    with pytest.raises(ValueError, match="must be uint8"):
        overlay(GREY / 255.0, SQUARE)


def test_a_panel_shows_input_truth_and_prediction_side_by_side():
    picture = panel(GREY, SQUARE > 0, SQUARE, 0.9)
    strip = picture.shape[0] - 60
    cells = [picture[strip:, left : left + 90] for left in (0, 94, 188)]
    assert np.array_equal(cells[0], GREY)
    assert np.array_equal(cells[1], overlay(GREY, SQUARE, colour=TRUTH_COLOUR))
    assert np.array_equal(cells[2], overlay(GREY, SQUARE))


def test_captions_hold_text_at_any_width():
    for width in (32, 90, 600):
        image = np.full((40, width, 3), 9, np.uint8)
        picture = panel(image, None, np.zeros((40, width)), 0.123)
        strip = picture[:-40]
        for left in (0, width + 4, 2 * width + 8):
            caption = strip[:, left : left + width]
            assert caption.min() < 100, "no text"
            assert (caption[:, -1] == 255).all(), "text is cut off"


def test_unknown_truth_is_grey_and_not_an_authentic_image():
    unknown = panel(GREY, None, SQUARE, 0.5)[-60:, 94:184]
    assert (unknown == 128).all()


def test_a_sheet_holds_panels_of_different_sizes_row_by_row():
    panels = [np.full((10, width, 3), width, np.uint8) for width in (20, 30, 40)]
    picture = sheet(panels, columns=2)
    assert (picture[:10, :20] == 20).all()
    assert (picture[:10, 44:74] == 30).all()
    assert (picture[14:24, :40] == 40).all()


def test_a_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="not 0 and 1"):
        sheet([])


def test_a_row_holds_any_number_of_pictures_in_their_order():
    row = captioned_row([(str(value), np.full_like(GREY, value)) for value in (10, 20, 30, 40, 50)])
    assert [row[-1, 94 * column, 0] for column in range(5)] == [10, 20, 30, 40, 50]


def test_text_takes_as_many_lines_as_it_needs_and_none_is_cut_off():
    assert text_block("short", 300).shape == (18, 300, 3)
    for text in ("many words of a long text " * 9, "W" * 200, "iiii WWWW " * 20):
        block = text_block(text, 300, 20)
        assert block.shape[0] > 20
        assert block.shape[0] % 20 == 0
        assert (block[:, -1] == 255).all(), "text is cut off"
        lines = block.reshape(-1, 20, 300, 3)
        assert (lines.min(axis=(1, 2, 3)) < 100).all(), "an empty line"
