"""Reads one saved map: PNG, .npy, TruFor's .npz, or COCO run lengths.

Somebody else made the file. Its header says how large it is, and a map that is too large is refused
before it is unpacked. Damaged files are refused, pickles are never loaded.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loupe.data.images.decoding import read_samples
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.formats import format_of
from loupe.data.images.limits import LIMITS, Limits

# As many pixels as an image may have; measuring a map takes about five times its bytes.
MAX_PIXELS = LIMITS.pixels
MAX_BYTES = 200_000_000
# Regions of one map, each as many pixels as it covers.
MAX_COVERED = 1 << 33


class PredictionError(ValueError):
    """Saved predictions that cannot be used as they are; names the file and the remedy."""


class SavedMap(NamedTuple):
    """A map as it was saved.

    Attributes:
        forgery_map: (H, W) uint8, uint16, bool or float.
        probability: of the image, where the same file holds it; None otherwise.
    """

    forgery_map: np.ndarray
    probability: float | None = None


def read_map(source: Path | list[dict[str, Any]]) -> SavedMap:
    """Reads a map.

    Args:
        source: a .png, .npy or .npz file, or regions `{"segmentation": RLE, "score": float}`.

    Raises:
        PredictionError: the file cannot be read, is too large, or is not a map; names the file.
    """
    if not isinstance(source, Path):
        return SavedMap(regions_to_map(source))
    readers = {".png": _read_png, ".npy": _read_npy, ".npz": _read_npz}
    try:
        return readers[source.suffix.lower()](read_bounded(source, 2 * MAX_BYTES))
    except PredictionError:
        raise
    except (ValueError, KeyError, EOFError, OSError, RuntimeError, *_UNPACKING) as error:
        raise PredictionError(f"{source}: {error}; save the map again") from error


_UNPACKING = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)


def read_bounded(path: Path, limit: int) -> bytes:
    """Content of a regular file.

    Raises:
        PredictionError: it is missing, a device or a pipe, not to be read, or above the limit.
    """
    try:
        if not path.is_file():
            raise PredictionError(f"{path}: no regular file; give the file itself")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise PredictionError(f"{path}: {error.strerror}; check the file") from error
    if len(content) > limit:
        raise PredictionError(f"{path}: larger than {limit / 1e6:.0f} MB; split it")
    return content


def _check_size(height: int, width: int, bytes_of_pixel: float) -> None:
    """Refuses what would be too large.

    Raises:
        ValueError: the declared size is empty or above the limits.
    """
    if height < 1 or width < 1:
        raise ValueError(f"it declares {height} x {width} pixels")
    size = height * width * bytes_of_pixel
    if height * width > MAX_PIXELS or size > MAX_BYTES:
        raise ValueError(
            f"it declares {height} x {width} pixels, {size / 1e6:.0f} MB unpacked; a map has at "
            f"most {MAX_PIXELS / 1e6:.0f} million pixels and {MAX_BYTES / 1e6:.0f} MB"
        )


def _read_png(data: bytes) -> SavedMap:
    if format_of(data) != "PNG":
        raise ValueError("not a readable PNG")
    try:
        pixels = read_samples(data, limits=Limits(MAX_PIXELS, 2 * MAX_BYTES)).values
    except UnreadableImageError as error:
        raise ValueError(f"not a readable PNG: {error.problem}") from error
    if pixels.ndim == 3:
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise ValueError("a coloured picture is no probability map, one grey channel is needed")
        pixels = colours[:, :, 0]
    return SavedMap(np.ascontiguousarray(pixels))


def _read_npy(data: bytes) -> SavedMap:
    return SavedMap(np.squeeze(_array(data)))


def _array(data: bytes) -> np.ndarray:
    """The array of a .npy file's bytes; what its header promises must be there.

    Raises:
        ValueError: not an array of numbers, too large, or cut short.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array of format {version}, needed is (1, 0) or (2, 0)")
    shape, by_columns, dtype = readers[version](stream)
    if dtype.kind not in "fiub":
        raise ValueError(f"an array of {dtype}, needed are numbers")
    size = math.prod(shape) * dtype.itemsize
    if not size or size > MAX_BYTES or size != len(data) - stream.tell():
        raise ValueError(f"it declares {shape} {dtype}, {size} bytes, which it cannot hold")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if by_columns else "C")


def _read_npz(data: bytes) -> SavedMap:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if "map.npy" not in sizes:
            raise ValueError(f"it holds {sorted(sizes)[:10]}, not `map`")
        names = [n for n in ("score.npy", "score_sigmoid.npy") if n in sizes]
        if sizes["map.npy"] > MAX_BYTES + 4096 or any(sizes[name] > 4096 for name in names):
            raise ValueError(f"it unpacks to {max(sizes.values()) / 1e6:.0f} MB")
        # zipfile reads no more of a member than it declares.
        forgery_map = np.squeeze(_array(archive.read("map.npy")))
        score = _array(archive.read(names[0])) if names else None
    return SavedMap(forgery_map, None if score is None else float(np.squeeze(score)))


def regions_to_map(regions: list[dict[str, Any]]) -> np.ndarray:
    """(H, W) float32: at each pixel the highest probability of a region that covers it.

    Without regions the size is unknown: (1, 1).

    Args:
        regions: `{"segmentation": {"size": [H, W], "counts": str | list}, "score": float}`.

    Raises:
        PredictionError: a segmentation is not run lengths, is too large, or sizes differ.
    """
    if not regions:
        return np.zeros((1, 1), np.float32)
    try:
        height, width = regions[0]["segmentation"]["size"]
        _check_size(height, width, 4)
        if height * width * len(regions) > MAX_COVERED:
            raise ValueError(f"{len(regions)} regions of {height} x {width} pixels are too many")
        # Run lengths go down the columns.
        result = np.zeros(height * width, np.float32)
        for region in regions:
            if list(region["segmentation"]["size"]) != [height, width]:
                raise ValueError("regions of several sizes in one map")
            ends = np.cumsum(_run_lengths(region["segmentation"]["counts"]))
            if not len(ends) or ends[-1] != result.size:
                raise ValueError("run lengths do not add up to the size")
            for start, end in zip(ends[0::2], ends[1::2], strict=False):
                np.maximum(result[start:end], region["score"], out=result[start:end])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise PredictionError(
            f"a region is not run lengths {{'size': [H, W], 'counts': ...}} with a score: {error!r}"
        ) from error
    return np.ascontiguousarray(result.reshape(width, height).T)


def _run_lengths(counts: str | bytes | list[int]) -> np.ndarray:
    """Lengths of alternating runs, the first one of what is not forged.

    As text each is a number in groups of five bits, lowest first, from "0" on: bit 5 says that more
    follow, bit 4 of the last one is the sign; from the fourth number on it is the difference to the
    one two places before.

    Raises:
        ValueError: a length is negative, or the text ends within a number.
    """
    if not isinstance(counts, list):
        text = counts.encode() if isinstance(counts, str) else counts
        counts, value, shift = [], 0, 0
        for byte in text:
            bits = byte - 48
            value |= (bits & 0x1F) << shift
            shift += 5
            if not 0 <= bits < 64 or shift > 60:
                raise ValueError("a run length is no number")
            if not bits & 0x20:
                value -= (1 << shift) if bits & 0x10 else 0
                counts.append(value + (counts[-2] if len(counts) > 2 else 0))
                value = shift = 0
        if shift:
            raise ValueError("run lengths end within a number")
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("a run length is no number, or negative")
    return np.array(counts, dtype=np.int64)
