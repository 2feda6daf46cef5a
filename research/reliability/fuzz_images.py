#!/usr/bin/env python3
"""Reads thousands of broken image files and counts what must never happen.

Each file is a whole one with a few changes, drawn from a seed and the file's number. Children read
them, as image and as mask, so that a crash or a hang costs one file. Counted are:
    signals    the child died
    hangs      one file took longer than --patience
    escaped    an exception other than UnreadableImageError
    wrong      read without a warning, though Pillow refuses it, or with other pixels than Pillow's

Example:
    python -m research.reliability.fuzz_images --files 20000
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.data.images.decoding import read_picture
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.formats import format_of
from loupe.data.images.masks import read_mask
from research.measuring import parser_of

COUNTED = ("signals", "hangs", "escaped", "wrong")
# Children end after so many files, so that no growth of memory is hidden in them.
FILES_A_CHILD = 1000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def seed_files() -> list[bytes]:
    """Small whole files of all formats and of many modes."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    colour = Image.fromarray(
        np.clip(coarse + random.normal(0, 9, coarse.shape), 0, 255).astype("u1")
    )
    grey, palette = colour.convert("L"), colour.quantize(40)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    alpha = colour.copy()
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for image in (colour, grey, palette, alpha, deep, colour.convert("1"), grey.convert("LA")):
        files.append((image, "PNG", {"compress_level": 9}))
    files += [(colour, "PNG", {"exif": exif}), (palette, "PNG", {"transparency": 3})]
    for image in (colour, grey, colour.convert("CMYK")):
        files += [(image, "JPEG", {"quality": 80}), (image, "JPEG", {"progressive": True})]
    files += [(colour, "JPEG", {"exif": exif, "restart_marker_blocks": 4, "subsampling": 0})]
    for image in (colour, grey, palette, alpha, deep, floats, colour.convert("1")):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
            files.append((image, "TIFF", {"compression": compression}))
    files += [(colour, "TIFF", {"exif": exif}), (colour.convert("CMYK"), "TIFF", {})]
    files += [(colour, "WEBP", {"quality": 80}), (alpha, "WEBP", {"lossless": True})]
    for kind in ("GIF", "BMP", "PPM", "JPEG2000", "AVIF"):
        files += [(colour, kind, {}), (grey, kind, {})]
    return [_encoded(*one) for one in files] + [_interlaced(np.asarray(colour))]


def _encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return len(data).to_bytes(4, "big") + name + data + checksum.to_bytes(4, "big")


def _interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG, which no library here writes."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = b"".join(
        b"\x00" + row.tobytes()
        for top, left, down, right in (*starts, (1, 0, 2, 1))
        for row in np.ascontiguousarray(pixels[top::down, left::right])
    )
    height, width = pixels.shape[:2]
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 1))
    body = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return _SIGNATURE + body


def change(content: bytes, random: np.random.Generator) -> bytes:
    """The file with one to three changes of kinds that disks, lines and attackers make."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        kind, at = int(random.integers(9)), int(random.integers(max(1, len(changed))))
        length = int(random.integers(1, 40))
        if kind == 0:
            changed[at : at + 1] = bytes([changed[at] ^ 1 << int(random.integers(8))])
        elif kind == 1:
            changed[at : at + 1] = random.bytes(1)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = random.bytes(length)
        elif kind == 4:
            changed[at : at + length] = bytes(length)
        elif kind == 5:
            del changed[max(8, at) :]
        elif kind == 6:
            place = int(random.integers(min(120, len(changed))))
            value = (b"\xff" * 4, bytes(4), b"\x00\x00\xff\xff", b"\x7f\xff\xff\xff")
            changed[place : place + 4] = value[int(random.integers(4))]
        elif kind == 7:
            other = int(random.integers(max(1, len(changed))))
            changed[at : at + length] = changed[other : other + length]
        elif kind == 8 and changed[:8] == _SIGNATURE:
            changed = bytearray(_with_right_checksums(bytes(changed), random))
        if len(changed) < 9:
            break
    return bytes(changed)


def _with_right_checksums(content: bytes, random: np.random.Generator) -> bytes:
    """A PNG with bytes changed inside a chunk or two chunks swapped, and checksums that fit."""
    chunks, start = [], 8
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunks.append((content[start + 4 : start + 8], bytearray(content[start + 8 : end - 4])))
        start = end
    if len(chunks) > 1 and random.random() < 0.3:
        a, b = random.integers(len(chunks), size=2)
        chunks[a], chunks[b] = chunks[b], chunks[a]
    elif chunks:
        data = chunks[int(random.integers(len(chunks)))][1]
        for _ in range(min(len(data), 3)):
            data[int(random.integers(len(data)))] = int(random.integers(256))
    return _SIGNATURE + b"".join(_chunk(name, bytes(data)) for name, data in chunks)


def judge(content: bytes) -> tuple[str, str]:
    """What came of reading a file: "refused", "said", "same", "alone", or a fault; and why."""
    outcome, why, picture = "refused", "", None
    for read in (read_picture, read_mask):
        try:
            found = read(content)
            picture = found if read is read_picture else picture
        except UnreadableImageError as error:
            why = error.problem
        except Exception as error:
            return "escaped", f"{type(error).__name__}: {error}"
    if picture is None:
        return outcome, why
    if picture.warnings:
        return "said", picture.warnings[0]
    expected = strict_pixels(content)
    if expected is None:
        return "wrong", f"{format_of(content)}: Pillow refuses it"
    if isinstance(expected, str):
        return "alone", expected
    if expected.shape != picture.pixels.shape or (expected != picture.pixels).any():
        return "wrong", f"{format_of(content)}: other pixels than Pillow's"
    return "same", ""


def strict_pixels(content: bytes) -> np.ndarray | str | None:
    """(H, W, 3) uint8 as Pillow gives them; None = refused; text = why there are none."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode in ("I;16", "I;16B", "I", "F", "LA", "RGBA", "PA", "La"):
                return f"mode {image.mode}"
            if "transparency" in image.info:
                return "transparency"
            kind = image.format
            pixels = np.asarray(image.convert("RGB"))
    except Exception:
        return None
    if kind == "TIFF":
        # Pillow turns TIFFs itself, and cannot be asked how.
        return pixels if _is_upright(content) else "turned"
    return pixels


def _is_upright(content: bytes) -> bool:
    return read_picture(content).orientation == 1


def run_child(seed: int, first: int, last: int) -> None:
    """Reads files `first` to `last` and prints a line for each."""
    seeds = seed_files()
    for number in range(first, last):
        random = np.random.default_rng([seed, number])
        content = change(seeds[number % len(seeds)], random)
        print(json.dumps([number, *judge(content)]), flush=True)


def run(files: int, seed: int, patience: float) -> tuple[Counter[str], list[str]]:
    """Reads all files in children; returns the counts and the faults."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    number = 0
    while number < files:
        last = min(number + FILES_A_CHILD, files)
        words = ["--child", str(number), str(last), "--seed", str(seed)]
        command = [sys.executable, "-m", "research.reliability.fuzz_images", *words]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            clock = [time.monotonic()]
            ended = threading.Event()
            hung: list[bool] = []
            watch = threading.Thread(target=_watch, args=(child, clock, patience, ended, hung))
            watch.start()
            for line in child.stdout:
                clock[0] = time.monotonic()
                number, outcome, why = json.loads(line)
                number += 1
                counts[outcome] += 1
                if outcome in COUNTED:
                    faults.append(f"{number - 1}: {outcome}: {why}")
            ended.set()
            watch.join()
        if child.returncode:
            kind = "hangs" if hung else "signals"
            counts[kind] += 1
            faults.append(f"{number}: {kind}: status {child.returncode}")
            number += 1
    return counts, faults


def _watch(
    child: subprocess.Popen,
    clock: list[float],
    patience: float,
    ended: threading.Event,
    hung: list[bool],
) -> None:
    """Kills a child that has been silent for too long."""
    while not ended.wait(0.5):
        if time.monotonic() - clock[0] > patience:
            hung.append(True)
            child.kill()
            return


def main(words: list[str] | None = None) -> int:
    """Runs the fuzzer; the exit status is 1 if anything was counted that must never happen."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--files", type=int, default=20_000, help="number of files")
    parser.add_argument("--seed", type=int, default=0, help="of all changes")
    parser.add_argument("--patience", type=float, default=30, help="seconds for one file")
    parser.add_argument("--output", type=Path, help="JSON file of the counts")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.child:
        run_child(arguments.seed, *arguments.child)
        return 0
    counts, faults = run(arguments.files, arguments.seed, arguments.patience)
    report = {"files": arguments.files, "seeds": len(seed_files())}
    report |= {name: counts[name] for name in (*COUNTED, "refused", "said", "same", "alone")}
    print(json.dumps(report, indent=1))
    print("\n".join(faults[:40]))
    if arguments.output:
        arguments.output.write_text(json.dumps(report | {"faults": faults}, indent=1) + "\n")
    return int(any(counts[name] for name in COUNTED))


if __name__ == "__main__":
    sys.exit(main())
