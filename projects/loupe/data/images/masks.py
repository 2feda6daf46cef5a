"""Reads masks, alone or with their images. 1 = forged.

A mask's value is its brightest channel times its opacity, so that a red region counts fully, and is
scaled by the range of its type. An integer mask whose maximum is 1 counts as 0/1.

People draw masks on the upright picture. So a mask is upright, and is turned back where the image
is wanted as it is stored. A mask that fits the stored pixels alone was drawn on them.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from loupe.data.images.decoding import Picture, Samples, read_picture, read_samples
from loupe.data.images.errors import MaskSizeError, UnreadableImageError
from loupe.data.images.limits import LIMITS, Limits
from loupe.data.images.orientation import turn, turn_back, turned_size

# How a mask file says "forged": bright, dark ("inverted"), or greener than red ("green", Columbia).
MASK_RULES = ("", "inverted", "green")


class StoredPair(NamedTuple):
    """An image and its mask, both as the image is stored.

    Attributes:
        picture: The image, perhaps of a reduced size.
        mask: (H, W) float32 in [0, 1] of the whole image's size; None = the image has none.
        warnings: Of both files.
        resized_mask: The two files and their sizes, where the mask had another; else "".
    """

    picture: Picture
    mask: np.ndarray | None
    warnings: tuple[str, ...]
    resized_mask: str = ""


def read_mask(
    path: str | Path | bytes,
    rule: str = "",
    *,
    name: str = "the given bytes",
    limits: Limits = LIMITS,
) -> np.ndarray:
    """Reads a mask as (H, W) float32 in [0, 1], upright.

    Args:
        path: The file, or its content.
        rule: One of MASK_RULES.
        name: What errors call given bytes.
        limits: What reading may cost.

    Raises:
        UnreadableImageError: As for `read_picture`; or its values have no known range.
    """
    return _read_mask(path, rule, name, limits)[0]


def _read_mask(
    path: str | Path | bytes, rule: str, name: str, limits: Limits
) -> tuple[np.ndarray, tuple[str, ...]]:
    assert rule in MASK_RULES, rule
    samples = read_samples(path, name=name, limits=limits)
    if rule == "green" and samples.values.ndim == 3:
        mask = (samples.values[:, :, 1] > samples.values[:, :, 0]).astype(np.float32)
    else:
        mask = _mask_values(samples, name if isinstance(path, bytes) else str(path))
        mask = 1.0 - mask if rule == "inverted" else mask
    return turn(mask, samples.orientation), samples.warnings


def _mask_values(samples: Samples, name: str) -> np.ndarray:
    """(H, W) float32 in [0, 1] from samples of any kind."""
    values, alpha = samples.values, None
    if values.ndim == 3:
        if values.shape[2] in (2, 4):
            values, alpha = values[:, :, :-1], values[:, :, -1]
        # A maximum along so short an axis takes NumPy ten times as long.
        channels = [values[:, :, i] for i in range(values.shape[2])]
        values = reduce(np.maximum, channels)
    scale = samples.full_range
    if values.dtype.kind in "iu" and values.max(initial=0) <= 1:
        scale = 1.0
    elif scale > 65535:
        raise UnreadableImageError(
            name,
            "a mask of 32-bit integers: which value means forged is not known",
            "store it with 8 bits",
        )
    mask = values.astype(np.float32)
    if scale != 1.0:
        mask *= np.float32(1.0 / scale)
    if values.dtype.kind in "fi":
        mask = np.clip(np.nan_to_num(mask), 0.0, 1.0)
    if alpha is not None:
        # Row by row: a large mask has no room for a second array of floats.
        for row, opacity in zip(mask, alpha, strict=True):
            row *= opacity.astype(np.float32) / samples.full_range
    return mask


def read_image_and_mask(
    image_path: str | Path,
    mask_path: str | Path | None,
    mismatch: str = "resize",
    mask_rule: str = "",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image (H, W, 3) uint8 and its mask (H, W) float32 in [0, 1], both upright.

    Args:
        image_path: The image file.
        mask_path: The mask file; None = the image has none.
        mismatch: A mask of another size is an error for "strict" and "skip" (the caller decides
            what a skip is), and resized by nearest neighbour for "resize".
        mask_rule: One of MASK_RULES.

    Raises:
        UnreadableImageError: One of the files cannot be read.
        MaskSizeError: The sizes differ and `mismatch` is not "resize".
    """
    pair = read_stored_pair(image_path, mask_path, mismatch, mask_rule)
    image, mask = turn(pair.picture.pixels, pair.picture.orientation), pair.mask
    return image, None if mask is None else turn(mask, pair.picture.orientation)


def read_stored_pair(
    image_path: str | Path,
    mask_path: str | Path | None,
    mismatch: str = "resize",
    mask_rule: str = "",
    *,
    at_least: int = 0,
) -> StoredPair:
    """Reads an image and its mask as the image is stored.

    Args:
        image_path: The image file.
        mask_path: The mask file; None = the image has none.
        mismatch: See `read_image_and_mask`.
        mask_rule: One of MASK_RULES.
        at_least: See `read_picture`; the mask has the whole image's size nevertheless.

    Raises:
        UnreadableImageError: One of the files cannot be read.
        MaskSizeError: The sizes differ and `mismatch` is not "resize".
    """
    picture = read_picture(image_path, at_least=at_least)
    if mask_path is None:
        return StoredPair(picture, None, picture.warnings)
    mask, warnings = _read_mask(mask_path, mask_rule, "", LIMITS)
    upright = turned_size(picture.size, picture.orientation)
    if mask.shape == upright or mask.shape != picture.size:
        mask = turn_back(mask, picture.orientation)
    resized = ""
    if mask.shape != picture.size:
        sizes = (
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"its image {image_path} is {picture.size[1]} x {picture.size[0]}"
        )
        if mismatch != "resize":
            raise MaskSizeError(
                str(mask_path),
                sizes,
                "correct the pair, or set INPUT.MASK_SIZE_MISMATCH to resize or skip",
            )
        mask = cv2.resize(mask, picture.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        resized = f"{mask_path}: {sizes}"
    warnings = tuple(f"mask: {warning}" for warning in warnings)
    return StoredPair(picture, mask, picture.warnings + warnings, resized)
