"""What the doctor measures of one image and its mask. Letters: H W pixels, S side of the network.

ImageFacts depend on the files alone, not on labels or other images, so that they can be cached.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from loupe.data.images.decoding import read_format, read_picture
from loupe.data.images.errors import MaskSizeError, UnreadableImageError
from loupe.data.images.masks import read_image_and_mask, read_mask
from loupe.data.images.orientation import turn

# Part of the cache's key: change it when the meaning of a fact changes.
FACTS_VERSION = 2

THUMBNAIL_SIDE = 16
_HASH_SIDE = 8
_HASH_INPUT_SIDE = 32
# A part of less contrast (standard deviation of its grey values) would have a hash of noise.
_LEAST_CONTRAST = 4.0
# Values between these are neither "authentic" nor "forged".
_BINARY_TOLERANCE = 0.02


class Grid(NamedTuple):
    """The network's input, which the alphas of its losses depend on.

    Attributes:
        size: S, `INPUT.SIZE`.
        patch_size: side of a patch in pixels.
    """

    size: int = 336
    patch_size: int = 14


class MaskFacts(NamedTuple):
    """One mask. Fractions are in [0, 1]; a pixel is forged from 0.5.

    Attributes:
        width: in pixels, after it was turned like its image.
        height: in pixels.
        forged: fraction of forged pixels.
        border: fraction of forged pixels on the outermost frame.
        between: fraction of pixels that are neither 0 nor 1.
        brightest: largest value.
        digest: of the forged pixels.
        pixels: fraction of forged pixels at the network's size.
        patches: mean over patches of their forged fraction, at the network's size.
        full_patches: fraction of patches of which at least half is forged.
    """

    width: int
    height: int
    forged: float
    border: float
    between: float
    brightest: float
    digest: str
    pixels: float
    patches: float
    full_patches: float


class ImageFacts(NamedTuple):
    """One image.

    Attributes:
        image_error: why the image cannot be used; "" if it can. Then only `mask_error` is filled.
        mask_error: why the mask cannot be used; "" if it can, or if there is none.
        warning: what must be said of the image's pixels although they can be used.
        width: in pixels, upright.
        height: in pixels.
        format: what the content is, whatever the suffix says ("JPEG", ...).
        byte_digest: of the file.
        pixel_digest: of the decoded pixels and their shape.
        fingerprints: of the whole and its quarters, see `take_fingerprints`; a flat part has none.
        thumbnail: base64 of 16 x 16 grey bytes.
        mask: None without a mask file, or with one that cannot be used.
    """

    image_error: str = ""
    mask_error: str = ""
    warning: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    byte_digest: str = ""
    pixel_digest: str = ""
    fingerprints: str = ""
    thumbnail: str = ""
    mask: MaskFacts | None = None


def facts_from_json(values: dict) -> ImageFacts:
    """Undoes `facts_to_json`."""
    mask = values.get("mask")
    return ImageFacts(**{**values, "mask": None if mask is None else MaskFacts(**mask)})


def facts_to_json(facts: ImageFacts) -> dict:
    """A dict of numbers and strings."""
    mask = None if facts.mask is None else facts.mask._asdict()
    return {**facts._asdict(), "mask": mask}


def measure_image(image_path: str, mask_path: str | None, mask_rule: str, grid: Grid) -> ImageFacts:
    """Reads an image and its mask and measures them. Files that cannot be read become facts, too.

    Args:
        image_path: the image file.
        mask_path: the mask file, or None.
        mask_rule: see `loupe.data.images.masks.MASK_RULES`.
        grid: the network's.
    """
    try:
        picture = read_picture(image_path)
    except UnreadableImageError as error:
        return ImageFacts(
            image_error=f"{error.problem}; {error.remedy}",
            mask_error=_mask_error(mask_path, mask_rule),
        )
    image = turn(picture.pixels, picture.orientation)
    mask_facts, mask_error = None, ""
    if mask_path is not None:
        try:
            mask_facts = measure_mask(
                _read_turned_mask(image_path, mask_path, mask_rule, image.shape[:2]), grid
            )
        except UnreadableImageError as error:
            mask_error = f"{error.problem}; {error.remedy}"
    thumbnail, fingerprints = take_fingerprints(image)
    return ImageFacts(
        mask_error=mask_error,
        warning="; ".join(picture.warnings),
        width=image.shape[1],
        height=image.shape[0],
        format=read_format(image_path),
        byte_digest=_digest(Path(image_path).read_bytes()),
        pixel_digest=_digest(str(image.shape).encode() + image.tobytes()),
        fingerprints=fingerprints,
        thumbnail=base64.b64encode(thumbnail.tobytes()).decode(),
        mask=mask_facts,
    )


def measure_mask(mask: np.ndarray, grid: Grid) -> MaskFacts:
    """ImageFacts about a mask (H, W) float32 in [0, 1]."""
    forged = mask >= 0.5
    frame = np.concatenate([forged[0], forged[-1], forged[1:-1, 0], forged[1:-1, -1]])
    between = (mask > _BINARY_TOLERANCE) & (mask < 1 - _BINARY_TOLERANCE)
    cells = grid.size // grid.patch_size
    side = cells * grid.patch_size
    resized = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
    patches = resized.reshape(cells, grid.patch_size, cells, grid.patch_size).mean(axis=(1, 3))
    return MaskFacts(
        width=mask.shape[1],
        height=mask.shape[0],
        forged=float(forged.mean()),
        border=float(frame.mean()),
        between=float(between.mean()),
        brightest=float(mask.max()),
        digest=_digest(str(mask.shape).encode() + np.packbits(forged).tobytes()),
        pixels=float((resized >= 0.5).mean()),
        patches=float(patches.mean()),
        full_patches=float((patches >= 0.5).mean()),
    )


def take_fingerprints(image: np.ndarray) -> tuple[np.ndarray, str]:
    """Thumbnail (16, 16) uint8 and fingerprints of an image (H, W, 3) uint8.

    Five perceptual hashes, of the whole and its quarters: a forgery changes the hash of the whole,
    but rarely those of all quarters.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    height, width = (max(1, side // 2) for side in grey.shape)
    quarters = grey[:height, :width], grey[:height, width:], grey[height:, :width]
    parts = [grey, *quarters, grey[height:, width:]]
    return thumbnail, ",".join(_cosine_hash(part) if part.size else "" for part in parts)


def _cosine_hash(grey: np.ndarray) -> str:
    """64 bits, as hexadecimal digits, of a grey image; "" for a flat one.

    The signs, about their median, of 8 x 8 low cosines (none of them constant along an axis): they
    outlive scaling and compression.
    """
    size = (_HASH_INPUT_SIDE, _HASH_INPUT_SIDE)
    small = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    if small.std() < _LEAST_CONTRAST:
        return ""
    cosines = cv2.dct(small)[1 : _HASH_SIDE + 1, 1 : _HASH_SIDE + 1]
    return np.packbits(cosines > np.median(cosines)).tobytes().hex()


def _read_turned_mask(
    image_path: str, mask_path: str, mask_rule: str, size: tuple[int, int]
) -> np.ndarray:
    """The mask at its own size, or turned like its image where that makes the sizes equal."""
    mask = read_mask(mask_path, mask_rule)
    if mask.shape == size or mask.shape != size[::-1]:
        return mask
    try:
        turned = read_image_and_mask(image_path, mask_path, "strict", mask_rule)[1]
    except MaskSizeError:
        return mask
    assert turned is not None
    return turned


def _mask_error(mask_path: str | None, mask_rule: str) -> str:
    if mask_path is None:
        return ""
    try:
        read_mask(mask_path, mask_rule)
    except UnreadableImageError as error:
        return f"{error.problem}; {error.remedy}"
    return ""


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
