"""The small picture inside a photograph's metadata, against the photograph."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from loupe.data.images.decoding import read_picture
from loupe.data.images.errors import UnreadableImageError

# Programs that edit a picture often leave its old thumbnail.
_SIDE = 64
# Correlation of the two below which they differ, and mean difference in grey levels above which.
_ALIKE, _FAR = 0.9, 24.0
# Relative difference of the two shapes above which the picture was cut.
_RATIO = 0.06
# Mean level up to which the surroundings of a thumbnail are bars.
_BLACK = 24.0


def compare_thumbnail(content: bytes, thumbnail: bytes | None) -> dict[str, Any] | None:
    """Size of the embedded thumbnail, its correlation with the picture, and what is odd.

    Cameras put black bars around a thumbnail of another aspect ratio: they are cut off first.

    Returns:
        None without a thumbnail; `problem` is "" where both are alike.
    """
    if not thumbnail:
        return None
    try:
        small = read_picture(thumbnail).pixels
        whole = read_picture(content, at_least=4 * _SIDE).pixels
    except UnreadableImageError as error:
        problem = f"The embedded thumbnail or the picture cannot be read: {error}"
        return {"width": None, "height": None, "correlation": None, "problem": problem}
    facts: dict[str, Any] = {"width": small.shape[1], "height": small.shape[0]}
    cut = _without_bars(small, whole.shape[1] / whole.shape[0])
    one, other = (
        cv2.resize(
            cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA
        ).astype(np.float32)
        for picture in (cut, whole)
    )
    both_vary = one.std() > 1 and other.std() > 1
    correlation = float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if both_vary else 1.0
    facts["correlation"] = round(correlation, 3)
    problem = ""
    if abs(cut.shape[1] / cut.shape[0] / (whole.shape[1] / whole.shape[0]) - 1) > _RATIO:
        problem = "The embedded thumbnail has another shape than the picture: it was cut"
    elif correlation < _ALIKE or np.abs(one - other).mean() > _FAR:
        problem = (
            f"The embedded thumbnail shows something else than the picture (correlation "
            f"{correlation:.2f}): it was changed after the thumbnail was made"
        )
    return facts | {"problem": problem}


def _without_bars(picture: np.ndarray, ratio: float) -> np.ndarray:
    """The centre of this ratio of width to height, if what is around it is black."""
    height, width = picture.shape[:2]
    rows, columns = min(height, round(width / ratio)), min(width, round(height * ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = np.zeros((height, width), bool)
    inside[top : top + rows, left : left + columns] = True
    if inside.all() or picture[~inside].mean() > _BLACK:
        return picture
    return picture[top : top + rows, left : left + columns]
