"""Reads images and masks from files of any common kind, or says what is wrong with the file.

Conventions:
    * Images are turned as their EXIF orientation says, transparency is laid on white (what a
      viewer shows; pixels that nobody can see are no evidence), colour profiles are ignored.
    * A mask's value is its brightest channel times its opacity, so that a red region counts fully,
      and is scaled by the range of its type. An integer mask whose maximum is 1 counts as 0/1.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torchvision.io import decode_jpeg

# Pillow's own hard limit: beyond it a small file can fill the memory of the machine.
MAX_PIXELS = 178_956_970

# How a mask file says "forged": bright, dark ("inverted"), or greener than red ("green", Columbia).
MASK_RULES = ("", "inverted", "green")

_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
# MPO: what some cameras write, several JPEGs in one file, of which the first is the photograph.
_JPEG_FORMATS = ("JPEG", "MPO")
_TIFF_MAGICS = (b"II*\x00", b"MM\x00*")


class UnreadableImageError(ValueError):
    """An image or mask file that cannot be used: names the file, what is wrong and the remedy."""

    def __init__(self, file_name: str, problem: str, remedy: str) -> None:
        """Keeps the three parts as arguments, so that the error survives pickling by a worker."""
        super().__init__(str(file_name), problem, remedy)
        self.file_name = str(file_name)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: file, problem, remedy."""
        return f"{self.file_name}: {self.problem}; {self.remedy}"


class MaskSizeError(UnreadableImageError):
    """A mask whose size is not its image's."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, *, at_least: int = 0) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB, in the orientation in which it is looked at.

    Args:
        path: the file.
        max_pixels: largest number of pixels that is read.
        at_least: a JPEG is decoded at a half, a quarter or an eighth of its size, whichever is the
            smallest of which both sides are at least so many pixels; 0 = always the whole.

    Raises:
        UnreadableImageError: the file is missing, empty, no image, truncated or too large.
    """
    pixels = _read_pixels(path, max_pixels, at_least)
    if pixels.ndim == 2:
        return np.repeat(_to_uint8(pixels)[:, :, None], 3, axis=2)
    pixels = _to_uint8(pixels)
    if pixels.shape[2] in (2, 4):
        pixels = _over_white(pixels)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


def read_mask(path: str | Path, rule: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a mask as (H, W) float32 in [0, 1], 1 = forged.

    Args:
        path: the file.
        rule: one of MASK_RULES.
        max_pixels: largest number of pixels that is read.

    Raises:
        UnreadableImageError: as for `read_image`.
    """
    assert rule in MASK_RULES, rule
    pixels = _read_pixels(path, max_pixels)
    if rule == "green" and pixels.ndim == 3:
        return (pixels[:, :, 1] > pixels[:, :, 0]).astype(np.float32)
    mask = _mask_values(pixels)
    return 1.0 - mask if rule == "inverted" else mask


def _mask_values(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1] from a mask's pixels of any kind."""
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    values, alpha = pixels, None
    if pixels.ndim == 3:
        if pixels.shape[2] in (2, 4):
            values, alpha = pixels[:, :, :-1], pixels[:, :, -1]
        values = values.max(axis=2)
    mask = _to_unit(values)
    return mask if alpha is None else mask * (alpha.astype(np.float32) / _type_range(alpha))


def read_image_and_mask(
    image_path: str | Path,
    mask_path: str | Path | None,
    mismatch: str = "resize",
    mask_rule: str = "",
    *,
    at_least: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image (H, W, 3) uint8 and its mask (H, W) float32 in [0, 1], if it has one.

    Args:
        image_path: the image file.
        mask_path: the mask file; None = the image has none.
        mismatch: a mask of another size is an error for "strict" and "skip" (the caller decides
            what a skip is), and resized by nearest neighbour for "resize".
        mask_rule: one of MASK_RULES.
        at_least: see `read_image`; the mask has the whole image's size nevertheless.

    Raises:
        UnreadableImageError: one of the files cannot be read.
        MaskSizeError: the sizes differ and `mismatch` is not "resize".
    """
    image = read_image(image_path, at_least=at_least)
    if mask_path is None:
        return image, None
    mask = read_mask(mask_path, mask_rule)
    size = read_size(image_path) if at_least else image.shape[:2]
    if mask.shape != size and mask.shape == size[::-1]:
        # Drawn on the stored pixels of a photograph taken upright: turn it as the photograph.
        mask = turn(mask, read_orientation(image_path))
    if mask.shape != size:
        if mismatch != "resize":
            raise MaskSizeError(
                str(mask_path),
                f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"its image {image_path} is {size[1]} x {size[0]}",
                "correct the pair, or set INPUT.MASK_SIZE_MISMATCH to resize or skip",
            )
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask


def read_orientation(path: str | Path) -> int:
    """EXIF orientation of an image file, 1 to 8; 1 (upright) if there is none or it is broken."""
    try:
        with Image.open(path) as image:
            return _orientation(image)
    except (OSError, SyntaxError, ValueError):
        return 1  # Pillow does not know the file; OpenCV, which reads it then, turns nothing.


def read_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image file as it is looked at, from its header where Pillow knows that.

    Raises:
        UnreadableImageError: as for `read_image`.
    """
    try:
        with Image.open(path) as image:
            turned = _orientation(image) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError):
        return read_image(path).shape[:2]


def _read_pixels(path: str | Path, max_pixels: int, at_least: int = 0) -> np.ndarray:
    """Pixels of the file as stored, upright: (H, W) or (H, W, C), bool, integer or float."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError(
            str(path), "the file does not exist", "restore it or drop it from the list"
        ) from None
    except OSError as error:
        raise UnreadableImageError(
            str(path), f"the file cannot be opened ({error})", "check its permissions and its disk"
        ) from error
    if not data:
        raise UnreadableImageError(str(path), "the file is empty", "copy it again from its source")
    try:
        if data[:4] in _TIFF_MAGICS and _is_deep_colour_tiff(data):
            return _read_with_opencv(path, data)
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.format in _JPEG_FORMATS and image.mode in ("L", "RGB"):
                return _pixels_of_jpeg(image, data, at_least)
            return _pixels_of(image)
    except UnidentifiedImageError:
        raise UnreadableImageError(
            str(path),
            f"the content is no image of a known format (it begins with {data[:8]!r})",
            "replace the file or drop it from the list",
        ) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            str(path), f"too many pixels ({error})", f"shrink it below {max_pixels} pixels"
        ) from None
    except (OSError, SyntaxError, ValueError, struct.error, EOFError) as error:
        if isinstance(error, UnreadableImageError):
            raise
        raise UnreadableImageError(
            str(path), f"the file is damaged ({error})", "copy it again from its source"
        ) from error


def _pixels_of(image: ImageFile.ImageFile) -> np.ndarray:
    """Decodes an opened image and turns it upright."""
    orientation = _orientation(image)
    if image.mode in ("P", "PA"):
        transparent = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and image.mode[:2] != "I;":
        image = image.convert("RGBA" if image.mode in ("La", "RGBa") else "RGB")
    return turn(np.asarray(image), orientation)


def _pixels_of_jpeg(image: ImageFile.ImageFile, data: bytes, at_least: int) -> np.ndarray:
    """Decodes an opened grey or RGB JPEG, upright; at a reduced scale, if `at_least` allows."""
    if at_least and min(image.size) >= 2 * at_least:
        image.draft(None, (at_least, at_least))
        return _pixels_of(image)
    try:
        # The same pixels as Pillow's, in less time (`python -m research.benchmarks.decoding`).
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = decode_jpeg(content).permute(1, 2, 0).numpy()
    except RuntimeError:
        return _pixels_of(image)  # Which says what is wrong with the file.
    if pixels.shape != (image.height, image.width, len(image.getbands())):
        return _pixels_of(image)
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return turn(pixels, _orientation(image))


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns upright pixels as they are stored: the inverse of `turn`."""
    # Quarter turns undo each other; every other orientation undoes itself.
    return turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels, (H, W) or (H, W, C), as an EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1  # Broken metadata does not make the pixels unreadable.
    return orientation if orientation in range(1, 9) else 1


def _is_deep_colour_tiff(data: bytes) -> bool:
    """Whether the file has several channels of more than 8 bits, which Pillow cannot open."""
    stream = io.BytesIO(data)
    directory = ImageFileDirectory_v2(stream.read(8))
    stream.seek(directory.next)
    directory.load(stream)
    bits = directory.get(_BITS_PER_SAMPLE_TAG, (1,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    return len(bits) > 1 and max(bits) > 8


def _read_with_opencv(path: str | Path, data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImageError(
            str(path), "a TIFF file of an unknown kind", "convert it to 8-bit PNG"
        )
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _type_range(values: np.ndarray) -> float:
    """Largest value that pixels of this kind are meant to have."""
    if values.dtype == bool:
        return 1.0
    maximum = float(values.max(initial=0))
    if values.dtype == np.uint8:
        return 255.0
    if values.dtype == np.uint16:
        return 65535.0
    # 32-bit integers and floats carry no range of their own: take the next usual one.
    usual = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return next((limit for limit in usual if maximum <= limit), maximum)


def _to_unit(values: np.ndarray) -> np.ndarray:
    """(H, W) values scaled to float32 in [0, 1]; integer masks of 0 and 1 stay 0 and 1."""
    if values.dtype != bool and values.dtype.kind in "iu" and values.max(initial=0) == 1:
        return values.astype(np.float32)
    scaled = values.astype(np.float32) * np.float32(1.0 / _type_range(values))
    return np.clip(np.nan_to_num(scaled), 0.0, 1.0) if values.dtype.kind == "f" else scaled


def _to_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    scaled = values.astype(np.float32) * (255.0 / _type_range(values))
    return np.clip(np.nan_to_num(scaled) + 0.5, 0, 255).astype(np.uint8)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Lays (H, W, 2 or 4) pixels with opacity on white."""
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if alpha.min() == 255:
        return colour
    opacity = alpha.astype(np.float32) / 255.0
    return (colour * opacity + 255.0 * (1.0 - opacity) + 0.5).astype(np.uint8)
