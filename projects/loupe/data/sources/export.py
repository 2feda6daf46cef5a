"""Writes synthetic forgeries as files: images, masks and a manifest that `load_dataset` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.data.sources.formats.manifest import COLUMNS
from loupe.data.sources.photographs import SPLITS
from loupe.data.sources.synthetic import make_sample
from loupe.writing import write_csv

# Half of the images are stored with loss, forged and authentic ones alike.
_JPEG_SHARE = 0.5
_JPEG_QUALITIES = (88, 98)


def write_synthetic(
    folder: Path, split: str, count: int, size: int, seed: int, difficulty: int = 100
) -> Path:
    """Writes the first images of a synthetic data set and returns its manifest.

    Args:
        folder: gets `images/`, `masks/` and `manifest.csv`.
        split: "train", "valid" or "test".
        count: number of images; every other one is forged.
        size: side in pixels.
        seed: same seed, same files.
        difficulty: 0 to 100, see `make_forgery`.

    Raises:
        FileExistsError: the folder has a manifest already.
    """
    manifest = folder / "manifest.csv"
    if manifest.exists():
        raise FileExistsError(f"{manifest} exists; remove the folder or choose another --output")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_csv(manifest, COLUMNS, _write_images(folder, split, count, size, seed, difficulty))
    return manifest


def _write_images(
    folder: Path, split: str, count: int, size: int, seed: int, difficulty: int
) -> Iterator[tuple[str, str, int, str, str]]:
    """Writes each image and mask; yields its manifest row."""
    for index in range(count):
        sample = make_sample(split, seed, index, size, difficulty)
        stem = f"{split}_{index:06d}"
        storage = np.random.default_rng((SPLITS.index(split), seed, index, 1))
        image = Image.fromarray(sample.image)
        if storage.random() < _JPEG_SHARE:
            name = f"images/{stem}.jpg"
            image.save(folder / name, quality=int(storage.integers(*_JPEG_QUALITIES)))
        else:
            name = f"images/{stem}.png"
            image.save(folder / name, compress_level=3)
        mask_name = ""
        if sample.label == 1:
            mask_name = f"masks/{stem}.png"
            Image.fromarray(sample.mask.astype(np.uint8) * 255).save(folder / mask_name)
        yield name, mask_name, sample.label, sample.technique, f"synthetic-{split}"
