"""Makes image files for the tests of this folder, whole and broken."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def noise(height: int = 90, width: int = 130, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8, photograph-like: coarse structure and noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 13, channels), np.uint8)
    coarse = cv2.resize(coarse, (width, height)).reshape(height, width, channels)
    grain = random.normal(0, 8, coarse.shape)
    return np.clip(coarse + grain, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """A file of Pillow's format `kind`."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    """EXIF data that says no more than the orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of PNG with its checksum."""
    checksum = zlib.crc32(name + data)
    return len(data).to_bytes(4, "big") + name + data + checksum.to_bytes(4, "big")


def png(height: int, width: int, stream: bytes, *, depth=8, colour=2, interlaced=0, more=b""):
    """A PNG of which every checksum is right, whatever it holds."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + more + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
