#!/usr/bin/env python3
"""Decoding image files: cv2, Pillow, torchvision, libjpeg-turbo's own interface, and ours.

    python -m research.benchmarks.decoding [--rounds 15] [--size 336] [--output FILE]

Photographs of scikit-image, side by side, brought to 0.1, 1 and 12 megapixels, with a little noise,
as JPEG (quality 90, 4:2:0) and PNG. Every reader takes the bytes from memory (ours: from a file)
and gives an (H, W, 3) uint8 RGB array. They take turns; one thread; processor time; medians, and
medians of the rounds' ratios to Pillow. Also: by how much the pixels differ from Pillow's, and what
decoding a JPEG at a reduced scale does to the network's input and to the time until it is there.
PyTurboJPEG needs libturbojpeg (TURBOJPEG may name it) and simplejpeg brings its own; both are left
out where they are missing.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import PIL
import torch
import torchvision
from detectron2.config import get_cfg
from PIL import Image
from skimage import data

from loupe.config import add_loupe_config
from loupe.data.images.augmentation import AntialiasedResize
from loupe.data.images.decoding import read_image
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from research.measuring import machine, milliseconds, parser_of, ratios, take_turns, write_results

SIZES = {"0.1 Mpx": (256, 384), "1 Mpx": (864, 1152), "12 Mpx": (3000, 4000)}
Reader = Callable[[bytes], np.ndarray]


def make_photograph(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: photographs side by side, enlarged, with sensor-like noise."""
    parts = [cv2.resize(part(), (512, 512)) for part in (data.astronaut, data.coffee, data.chelsea)]
    image = cv2.resize(np.hstack(parts), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def with_cv2(content: bytes) -> np.ndarray:
    """OpenCV, EXIF orientation heeded."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def with_pillow(content: bytes) -> np.ndarray:
    """Pillow, no orientation."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def with_torchvision(content: bytes) -> np.ndarray:
    """torchvision.io, brought to (H, W, 3)."""
    buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    tensor = torchvision.io.decode_image(buffer, torchvision.io.ImageReadMode.RGB)
    return tensor.permute(1, 2, 0).contiguous().numpy()


def turbo_readers() -> dict[str, Reader]:
    """Readers that use libjpeg-turbo's own interface, where they are installed."""
    readers: dict[str, Reader] = {}
    try:
        module = importlib.import_module("turbojpeg")
        decoder = module.TurboJPEG(os.environ.get("TURBOJPEG"))
        readers["PyTurboJPEG"] = lambda content: decoder.decode(content, module.TJPF_RGB)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"PyTurboJPEG is left out: {error}")
    try:
        module_simple = importlib.import_module("simplejpeg")
        readers["simplejpeg"] = lambda content: module_simple.decode_jpeg(content, fastdct=False)
    except ImportError as error:
        print(f"simplejpeg is left out: {error}")
    return readers


def measure_readers(readers: dict[str, Reader], content: bytes, rounds: int) -> dict[str, Any]:
    """Milliseconds, ratios to Pillow, differences from Pillow's pixels."""
    expected = readers["Pillow"](content).astype(int)
    differences = {}
    for name, reader in readers.items():
        found = reader(content)
        # A reduced picture has other pixels; what that means is measured after the resize.
        if found.shape == expected.shape:
            differences[name] = int(np.abs(found - expected).max())
    times = take_turns({name: partial(reader, content) for name, reader in readers.items()}, rounds)
    return {
        name: {
            "ms": milliseconds(own),
            "times as fast as Pillow": median(ratios(times["Pillow"], own)),
            "largest difference": differences.get(name),
        }
        for name, own in times.items()
    }


def compare_reduced(content: bytes, size: int) -> dict[str, Any]:
    """Differences in grey levels of the network's input, by scale of decoding."""

    def resized(image: np.ndarray) -> np.ndarray:
        return AntialiasedResize(image.shape[:2], (size, size)).apply_image(image).astype(float)

    whole = resized(with_pillow(content))
    found = {}
    for scale in (2, 4, 8):
        image = reduced(content, scale)
        difference = np.abs(resized(image) - whole)
        high = np.abs(_residual(resized(image)) - _residual(whole)).mean()
        found[f"1/{scale}"] = {
            "decoded": f"{image.shape[1]} x {image.shape[0]}",
            "mean": float(difference.mean()),
            "99th percentile": float(np.percentile(difference, 99)),
            "largest": float(difference.max()),
            "share of the residual that changes": float(high / np.abs(_residual(whole)).mean()),
        }
    return found


def reduced(content: bytes, scale: int) -> np.ndarray:
    """OpenCV at 1 / scale, orientation heeded. Its flags for that give BGR only."""
    flags = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    flag = flags.get(scale, cv2.IMREAD_REDUCED_COLOR_8)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def measure_items(path: Path, rounds: int) -> dict[str, float]:
    """Milliseconds from a file to the network's input at the default size, whole and reduced."""
    mappers = {}
    for reduced_decoding in (False, True):
        cfg = add_loupe_config(get_cfg())
        cfg.INPUT.REDUCED_DECODING = reduced_decoding
        mappers[reduced_decoding] = ForgeryDatasetMapper(cfg, is_train=False)
    entry = make_dataset_dict(path, "image", label=0)
    calls = {"reduced" if key else "whole": partial(m, entry) for key, m in mappers.items()}
    times = take_turns(calls, rounds)
    return {
        "whole ms": milliseconds(times["whole"]),
        "reduced ms": milliseconds(times["reduced"]),
        "times as fast": median(ratios(times["whole"], times["reduced"])),
    }


def _residual(image: np.ndarray) -> np.ndarray:
    # What a forensic network looks at: the image less what its neighbours foretell.
    return image - cv2.blur(image, (3, 3))


def reduced_readers() -> dict[str, Reader]:
    """OpenCV at reduced scales, and Pillow's draft mode."""
    readers: dict[str, Reader] = {}
    for scale in (2, 4, 8):
        readers[f"cv2 1/{scale}"] = lambda content, scale=scale: reduced(content, scale)
        readers[f"Pillow draft 1/{scale}"] = lambda content, scale=scale: _draft(content, scale)
    return readers


def _draft(content: bytes, scale: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (image.width // scale, image.height // scale))
        return np.asarray(image)


def main() -> None:
    """Measures, prints, writes."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=336, help="side of the network's input")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    common: dict[str, Reader] = {
        "Pillow": with_pillow,
        "cv2": with_cv2,
        "torchvision": with_torchvision,
    }
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": {"cv2": cv2.__version__, "Pillow": PIL.__version__}
        | {"torchvision": torchvision.__version__},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width) in SIZES.items():
            image = make_photograph(height, width)
            for kind, options in {"JPEG": {"quality": 90}, "PNG": {"compress_level": 6}}.items():
                path = Path(folder) / f"image.{kind.lower()}"
                Image.fromarray(image).save(path, kind, **options)
                content = path.read_bytes()
                readers = common | {"loupe": lambda _, path=path: read_image(path)}
                if kind == "JPEG":
                    readers |= turbo_readers() | reduced_readers()
                rounds = arguments.rounds if height < 3000 else max(5, arguments.rounds // 3)
                results[f"{kind} {name}"] = measure_readers(readers, content, rounds)
                if kind == "JPEG":
                    results[f"reduced {name}"] = compare_reduced(content, arguments.size)
                    results[f"items {name}"] = measure_items(path, rounds)
    print(json.dumps(results, indent=1))
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
