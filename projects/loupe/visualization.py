"""Pictures for people: an overlay, a panel (input | truth | prediction), a sheet of panels.

All images are uint8 RGB, (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# Rare in photographs, and told apart also by those who cannot tell red from green.
FORGED_COLOUR = (255, 0, 160)
TRUTH_COLOUR = (0, 114, 255)
_GAP = 4
_WHITE = 255


def overlay(
    image: np.ndarray,
    forgery_map: np.ndarray,
    threshold: float = 0.5,
    colour: tuple[int, int, int] = FORGED_COLOUR,
) -> np.ndarray:
    """Tints an image where it is forged and outlines the region above the threshold.

    Args:
        image: (H, W, 3) uint8 RGB.
        forgery_map: (H, W) in [0, 1] or bool; the tint is as strong as the map.
        threshold: of the outline.
        colour: RGB of tint and outline.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        ValueError: image and map differ in size, or the image is not uint8 RGB.
    """
    _check(image, forgery_map, "forgery map")
    strength = np.clip(forgery_map.astype(np.float32), 0, 1)[..., None] * 0.6
    tinted = image * (1 - strength) + np.asarray(colour, np.float32) * strength
    result = np.ascontiguousarray(tinted.round().astype(np.uint8))
    above = np.ascontiguousarray(forgery_map.astype(np.float32) >= threshold, np.uint8)
    outlines, _ = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(image.shape[:2]) / 300))
    return cv2.drawContours(result, outlines, -1, colour, thickness)


def panel(
    image: np.ndarray, truth: np.ndarray | None, forgery_map: np.ndarray, score: float
) -> np.ndarray:
    """Puts input, truth and prediction side by side, each under a caption.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) bool, 1 = forged; None = not known, and its place says so.
        forgery_map: (H, W) in [0, 1].
        score: probability that the image is forged.

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
    cells = [
        _captioned(image, "input"),
        _captioned(middle, caption),
        _captioned(overlay(image, forgery_map), f"forged {score:.3f}"),
    ]
    gap = np.full((cells[0].shape[0], _GAP, 3), _WHITE, np.uint8)
    return np.hstack([cells[0], gap, cells[1], gap, cells[2]])


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


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    """Adds a strip above the image with black text; its height depends on the width alone."""
    width = image.shape[1]
    height = max(width // 9, 12)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), descent = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.8 * height / (text_height + descent), 0.95 * width / text_width)
    thickness = max(1, round(height / 30))
    baseline = round((height + scale * (text_height - descent)) / 2)
    strip = np.full((height, width, 3), _WHITE, np.uint8)
    left = max(1, width // 50)
    cv2.putText(strip, text, (left, baseline), font, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return np.vstack([strip, image])


def _check(image: np.ndarray, plane: np.ndarray, name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3).")
    if plane.shape != image.shape[:2]:
        raise ValueError(f"the {name} is {plane.shape}, but the image is {image.shape[:2]}.")
