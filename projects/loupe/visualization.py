"""Pictures for people: an overlay, a panel (input | truth | prediction), a sheet of panels, text.

All images are uint8 RGB, (H, W, 3).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np

# Rare in photographs, and told apart also by those who cannot tell red from green.
FORGED_COLOUR = (255, 0, 160)
TRUTH_COLOUR = (0, 114, 255)
_GAP = 4
# Rows that are tinted at a time.
_BAND = 256
_WHITE = 255
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(
    image: np.ndarray,
    forgery_map: np.ndarray,
    threshold: float = 0.5,
    colour: tuple[int, int, int] = FORGED_COLOUR,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Tints an image where it is forged and outlines the region above the threshold.

    Args:
        image: (H, W, 3) uint8 RGB.
        forgery_map: (H, W) in [0, 1] or bool; the tint is as strong as the map.
        threshold: of the outline.
        colour: RGB of tint and outline.
        out: (H, W, 3) uint8 to draw into, which may be the image; None = a new array.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: image and map differ in size, or the image is not uint8 RGB.
    """
    _check(image, forgery_map, "forgery map")
    result = np.empty_like(image) if out is None else out
    thickness = max(1, round(max(image.shape[:2]) / 300))
    reach = thickness + 2  # Of the pen and the neighbours of a border pixel, in rows.
    for top in range(0, len(image), _BAND):  # Planes of a whole large image take gigabytes.
        rows = slice(top, top + _BAND)
        strength = np.clip(forgery_map[rows].astype(np.float32), 0, 1)[..., None] * 0.6
        tinted = image[rows] * (1 - strength) + np.asarray(colour, np.float32) * strength
        result[rows] = tinted.round()
        above = max(0, top - reach)
        region = forgery_map[above : top + _BAND + reach] >= threshold
        outline = _outline(region, thickness)[top - above :][:_BAND]
        result[rows][outline] = colour
    return result


def _outline(region: np.ndarray, thickness: int) -> np.ndarray:
    """(H, W) bool: the region's border pixels, drawn with a pen of this width.

    Morphology costs the same for one region and for the thousands of specks of a noisy map, where
    tracing each contour takes a minute.
    """
    region = region.astype(np.uint8)
    # A border pixel has a neighbour to its side that is not of the region, or is at the image edge.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = cv2.erode(region, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    # The pen is the dot that a line of this thickness draws; diagonals of 2 have filled corners.
    centre = thickness // 2 + 1
    pen = np.zeros((2 * centre + 1, 2 * centre + 1), np.uint8)
    cv2.line(pen, (centre, centre), (centre, centre), 1, thickness)
    if thickness == 2:
        pen[centre - 1 : centre + 2, centre - 1 : centre + 2] = 1
    return cv2.dilate(region - inside, pen) > 0


def panel(
    image: np.ndarray, truth: np.ndarray | None, forgery_map: np.ndarray, probability: float
) -> np.ndarray:
    """Puts input, truth and prediction side by side, each under a caption.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) bool, 1 = forged; None = not known, and its place says so.
        forgery_map: (H, W) in [0, 1].
        probability: that the image is forged.

    Returns:
        uint8 RGB, wider than 3 * W and higher than H by captions and gaps.

    Raises:
        ValueError: sizes differ, or the image is not uint8 RGB.
    """
    if truth is None:
        _check(image, forgery_map, "forgery map")
        middle, caption = np.full_like(image, 128), "truth unknown"
    else:
        _check(image, truth, "truth")
        middle = overlay(image, truth, colour=TRUTH_COLOUR)
        caption = f"truth {truth.mean():.1%}"
    predicted = overlay(image, forgery_map)
    return captioned_row(
        [("input", image), (caption, middle), (f"forged {probability:.3f}", predicted)]
    )


def captioned_row(cells: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Puts pictures of one size side by side, each under its caption.

    Args:
        cells: Caption and picture (H, W, 3) uint8 RGB, from left to right.
    """
    width = cells[0][1].shape[1]
    # The strips' height depends on the width alone, so that rows look alike.
    height = max(width // 9, 12)
    columns: list[np.ndarray] = []
    for caption, picture in cells:
        if columns:
            columns.append(np.full((len(columns[0]), _GAP, 3), _WHITE, np.uint8))
        columns.append(np.vstack([_text_strip(caption, width, height), picture]))
    return np.hstack(columns)


def text_block(text: str, width: int, height: int = 18) -> np.ndarray:
    """Writes ASCII text in black on white, in as many lines as it needs.

    Args:
        text: The text.
        width: Of the block, in pixels.
        height: Of a line, in pixels.

    Returns:
        (lines * height, width, 3) uint8 RGB.
    """
    # As many as fit at the text's mean width; a line of wider letters is made smaller.
    characters = int(0.95 * width * len(text) / (_text_width(text) * _text_scale(height)))
    lines = textwrap.wrap(text, max(characters, 1)) or [""]
    return np.vstack([_text_strip(line, width, height) for line in lines])


def sheet(panels: Sequence[np.ndarray], columns: int = 1) -> np.ndarray:
    """Arranges panels of any sizes, row by row, on one white picture.

    Raises:
        ValueError: there is no panel, or no column.
    """
    if not panels or columns < 1:
        raise ValueError(f"a sheet needs panels and columns, not {len(panels)} and {columns}.")
    width = max(one.shape[1] for one in panels) + _GAP
    rows = []
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        height = max(one.shape[0] for one in row) + _GAP
        canvas = np.full((height, columns * width, 3), _WHITE, np.uint8)
        for column, one in enumerate(row):
            left = column * width
            canvas[: one.shape[0], left : left + one.shape[1]] = one
        rows.append(canvas)
    return np.vstack(rows)


def _text_strip(text: str, width: int, height: int) -> np.ndarray:
    """(height, width, 3) with one line of black text, made smaller where it is too long."""
    # Depends on the height alone, so that lines of unlike widths begin below one another.
    left, thickness = height // 6, max(1, round(height / 30))
    scale = min(_text_scale(height), 0.95 * (width - 2 * left) / _text_width(text))
    # One line's letters reach below it and another's do not: both are to look alike.
    (_, ascent), descent = cv2.getTextSize("Xg", _FONT, scale, 1)
    baseline = round((height + ascent - descent) / 2)
    strip = np.full((height, width, 3), _WHITE, np.uint8)
    cv2.putText(strip, text, (left, baseline), _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return strip


def _text_scale(height: int) -> float:
    """Scale of the font in a line of this height."""
    (_, ascent), descent = cv2.getTextSize("Xg", _FONT, 1.0, 1)
    return 0.8 * height / (ascent + descent)


def _text_width(text: str) -> int:
    """Width in pixels at a scale of 1."""
    return max(cv2.getTextSize(text, _FONT, 1.0, 1)[0][0], 1)


def _check(image: np.ndarray, plane: np.ndarray, name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3).")
    if plane.shape != image.shape[:2]:
        raise ValueError(f"the {name} is {plane.shape}, but the image is {image.shape[:2]}.")
