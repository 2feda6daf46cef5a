"""The one door through which the pixels of every image and mask come.

    file -> bytes (files) -> format, size, cost, damage (formats, png, jpeg, tiff) -> pixels (here)

Whatever a decoder throws becomes an `UnreadableImageError`. What is damaged is refused; what
libjpeg forgives is read, and the warnings say so.

Conventions:
    * Pixels are read as they are stored; `read_image` turns them as the EXIF orientation says.
    * Transparency is laid on white (what a viewer shows; pixels that nobody can see are no
      evidence). Colour profiles are ignored. Of several pictures in a file the first is read.
    * Samples are scaled by the range of their type, never by their largest value: integers from 0
      to the largest of their bits, floats from 0 to 1 (what lies outside is clipped, and said).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from loupe.data.images.container import Container
from loupe.data.images.errors import COPY_AGAIN, ImageFaultError, UnreadableImageError, damaged
from loupe.data.images.files import read_regular_file
from loupe.data.images.formats import format_of, inspect, open_image
from loupe.data.images.jpeg import DAMAGED_INSIDE, decode_jpeg
from loupe.data.images.limits import LIMITS, Limits, check_size
from loupe.data.images.orientation import turn, turned_size

# Large pictures are converted in bands of rows, so that no second copy of the whole is made.
_BAND_PIXELS = 2**22
_MASK_BYTES = 8
# Modes whose samples mean what they are; all others are converted by Pillow.
_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F")


class Picture(NamedTuple):
    """An image as it is stored.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, perhaps of a reduced size.
        size: (H, W) of the whole, as stored.
        orientation: EXIF orientation, 1 to 8: how to turn it to look at it.
        warnings: What must be said of it, such as `DAMAGED_INSIDE`.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    orientation: int
    warnings: tuple[str, ...]


class Samples(NamedTuple):
    """Decoded samples in their own type.

    Attributes:
        values: (H, W) or (H, W, C), bool, integer or float.
        full_range: Largest value that a sample is meant to have.
        orientation: EXIF orientation, 1 to 8.
        warnings: What must be said of them.
    """

    values: np.ndarray
    full_range: float
    orientation: int
    warnings: tuple[str, ...]


def read_picture(
    source: str | Path | bytes,
    *,
    name: str = "the given bytes",
    at_least: int = 0,
    limits: Limits = LIMITS,
) -> Picture:
    """Reads an image as it is stored, (H, W, 3) uint8 RGB.

    Args:
        source: The file, or its content.
        name: What errors call given bytes.
        at_least: A JPEG is decoded at a half, a quarter or an eighth of its size, whichever is the
            smallest of which both sides are at least so many pixels; 0 = always the whole.
        limits: What reading may cost.

    Raises:
        UnreadableImageError: The file is missing, no regular file, no image, damaged or too large.
    """
    with _named(source, name):
        container = inspect(_content(source, limits), limits)
        bands, warnings = _decode(container, at_least)
        clipped: list[bool] = []
        pixels = np.ascontiguousarray(_joined(_rgb_bands(bands, container, clipped)))
        warnings += ("values outside 0 to 1 are clipped",) if any(clipped) else ()
        size = (container.height, container.width)
        return Picture(pixels, size, container.orientation, warnings)


def read_samples(
    source: str | Path | bytes, *, name: str = "the given bytes", limits: Limits = LIMITS
) -> Samples:
    """Reads the samples of a mask or map in their own type, as they are stored.

    Raises:
        UnreadableImageError: As for `read_picture`.
    """
    with _named(source, name):
        container = inspect(_content(source, limits), limits)
        # A mask of floats has four bytes a pixel beside its samples.
        pixels = container.height * container.width
        memory = max(container.memory, len(container.content) + _MASK_BYTES * pixels)
        check_size(container.height, container.width, memory, limits)
        bands, warnings = _decode(container, 0)
        values = _joined(bands)
        full_range = container.full_range or _type_range(values.dtype)
        return Samples(_lifted(values, container), full_range, container.orientation, warnings)


def read_image(path: str | Path, *, at_least: int = 0, limits: Limits = LIMITS) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB, upright, in the way in which it is looked at.

    Raises:
        UnreadableImageError: As for `read_picture`.
    """
    picture = read_picture(path, at_least=at_least, limits=limits)
    return turn(picture.pixels, picture.orientation)


def read_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image file as it is looked at; its pixels are not decoded.

    Raises:
        UnreadableImageError: There is no header of an image, or it announces too much.
    """
    with _named(path):
        container = inspect(read_regular_file(path, LIMITS.bytes), LIMITS, whole=False)
        return turned_size((container.height, container.width), container.orientation)


def read_format(path: str | Path) -> str:
    """What a file's content is, whatever its name says: "JPEG", "PNG", ...; "" if not known.

    Raises:
        UnreadableImageError: The file cannot be opened.
    """
    with _named(path):
        return format_of(read_regular_file(path, LIMITS.bytes))


@contextmanager
def _named(source: str | Path | bytes, name: str = "") -> Iterator[None]:
    """Names the file in every error, and makes one type of all of them."""
    name = name if isinstance(source, bytes) else str(source)
    try:
        yield
    except ImageFaultError as fault:
        raise UnreadableImageError(name, fault.problem, fault.remedy) from fault.__cause__
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, f"too many pixels ({error})", "shrink it") from None
    except MemoryError:
        raise UnreadableImageError(
            name, "there is not enough memory to read it", "shrink it, or close other programs"
        ) from None
    except Exception as error:
        # Decoders throw whatever their authors thought of: OSError, SyntaxError, TypeError,
        # struct.error, RuntimeError, zlib.error, cv2.error ... All mean the same.
        how = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(name, f"the file is damaged ({how})", COPY_AGAIN) from error


def _content(source: str | Path | bytes, limits: Limits) -> bytes:
    if not isinstance(source, bytes):
        return read_regular_file(source, limits.bytes)
    if not source:
        raise ImageFaultError("the file is empty")
    return source


Bands = Iterator[tuple[np.ndarray, tuple[int, int]]]


def _decode(container: Container, at_least: int) -> tuple[Bands, tuple[str, ...]]:
    """Bands of rows, each with the (H, W) of the whole, and the warnings."""
    warnings = container.warnings
    if container.parts:
        planes = [_joined(_bands_of(open_image("TIFF", part))) for part in container.parts]
        return _whole(np.stack(planes, axis=2)), warnings
    if container.deep_colour:
        return _whole(_decode_deep_colour(container.content)), warnings
    if container.kind == "JPEG":
        decoded, found = decode_jpeg(container, at_least)
        if found and not warnings:
            warnings = (DAMAGED_INSIDE,)
        if isinstance(decoded, np.ndarray):
            return _whole(decoded[:, :, 0] if decoded.shape[2] == 1 else decoded), warnings
        return _bands_of(decoded), warnings
    image = open_image(container.kind, container.content)
    image.load()
    if (image.height, image.width) != (container.height, container.width):
        raise damaged("its size is not what its header says")
    return _bands_of(image), warnings


def _whole(values: np.ndarray) -> Bands:
    yield values, values.shape[:2]


def _joined(bands: Bands) -> np.ndarray:
    """All rows in one array, without a second copy of them."""
    whole, start = None, 0
    for band, (height, _) in bands:
        if len(band) == height:
            return band
        if whole is None:
            whole = np.empty((height, *band.shape[1:]), band.dtype)
        whole[start : start + len(band)] = band
        start += len(band)
    assert whole is not None
    return whole


def _bands_of(image: Image.Image) -> Bands:
    """Rows of an image, converted to a mode whose samples mean what they are."""
    image.load()
    mode = None
    if image.mode in ("P", "PA"):
        mode = "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        mode = "RGBA"
    elif image.mode not in _MODES and image.mode[:2] != "I;":
        mode = "RGBA" if image.mode in ("La", "RGBa") else "RGB"
    size = (image.height, image.width)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        band = image if rows >= image.height else image.crop((0, top, image.width, bottom))
        yield np.asarray(band if mode is None else band.convert(mode)), size


def _rgb_bands(bands: Bands, container: Container, clipped: list[bool]) -> Bands:
    """Bands as RGB; notes for each whether values outside 0 to 1 were met."""
    for band, size in bands:
        if band.dtype == np.uint8 and band.shape[2:] == (3,):
            yield band, size
            continue
        rows = max(1, _BAND_PIXELS // size[1])
        for top in range(0, len(band), rows):
            colours, outside = _to_rgb(band[top : top + rows], container)
            clipped.append(outside)
            yield colours, size


def _decode_deep_colour(content: bytes) -> np.ndarray:
    """Several channels of more than 8 bits, which Pillow cuts to 8 or does not know."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageFaultError("a TIFF of an unknown kind, or damaged", "convert it to 8-bit PNG")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _type_range(dtype: np.dtype) -> float:
    return 1.0 if dtype.kind in "bf" else float(np.iinfo(dtype).max)


def _lifted(values: np.ndarray, container: Container) -> np.ndarray:
    """Values of which 0 is black, also where the file has it the other way."""
    if not container.light_is_low:
        return values
    return (container.full_range - values).astype(values.dtype)


def _to_rgb(samples: np.ndarray, container: Container) -> tuple[np.ndarray, bool]:
    """(H, W[, C]) of any type -> (H, W, 3) uint8, and whether values outside 0 to 1 were met."""
    outside = False
    if samples.dtype != np.uint8:
        full_range = container.full_range or _type_range(samples.dtype)
        values = _lifted(samples, container).astype(np.float32)
        if samples.dtype.kind == "f":
            values = np.nan_to_num(values)
            outside = bool(values.min() < -0.01 or values.max() > 1.01)
        values *= np.float32(255.0 / full_range)
        samples = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    if samples.ndim == 2:
        return np.repeat(samples[:, :, None], 3, axis=2), outside
    if samples.shape[2] in (2, 4):
        samples = _over_white(samples)
    if samples.shape[2] == 1:
        samples = np.repeat(samples, 3, axis=2)
    return samples[:, :, :3], outside


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Lays (H, W, 2 or 4) pixels with opacity on white."""
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if alpha.min() == 255:
        return colour
    opacity = alpha.astype(np.float32) / 255.0
    return (colour * opacity + 255.0 * (1.0 - opacity) + 0.5).astype(np.uint8)
