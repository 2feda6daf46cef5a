"""Lists image files, pairs them with masks by stem (never by position), builds dataset dicts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

DatasetDict = dict[str, Any]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm"}
)
# What data sets append to a mask's stem.
MASK_STEM_ENDINGS = ("", "_gt", "_mask")

_logger = logging.getLogger(__name__)


class DatasetError(ValueError):
    """A folder or list file that is no data set: names the place, what is wrong and the remedy."""


def make_dataset_dict(
    file_name: str | Path,
    image_id: str,
    *,
    label: int | None,
    mask_file_name: str | Path | None = None,
    technique: str = "",
    source: str = "",
    wholly_forged: bool = False,
) -> DatasetDict:
    """One entry of a data set, as every part of Loupe expects it; files are not opened.

    Args:
        file_name: the image file.
        image_id: unique in the data set, and the same whenever it is listed.
        label: 1 = forged, 0 = authentic, None = unlabelled.
        mask_file_name: the mask file; None = authentic, or the mask is not known.
        technique: how it was forged, where the data set says so.
        source: where it comes from, where the data set says so.
        wholly_forged: every pixel is forged, so that no mask file is needed.
    """
    entry = {
        "file_name": str(file_name),
        "mask_file_name": None if mask_file_name is None else str(mask_file_name),
        "label": label,
        "image_id": image_id,
        "technique": technique,
        "source": source,
    }
    return entry | {"wholly_forged": True} if wholly_forged else entry


def list_images(folder: str | Path) -> list[str]:
    """Paths of all image files under a folder, relative to it, sorted; hidden ones left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the path")
    return sorted(_walk(str(folder), ""))


def names(items: Iterable[str], limit: int = 5) -> str:
    """The first names of a list, for a message."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def pair_by_stem(
    image_folder: Path,
    mask_folder: Path,
    *,
    mask_endings: Sequence[str] = MASK_STEM_ENDINGS,
) -> list[tuple[str, str | None]]:
    """Pairs each image of a folder with the mask that has its stem.

    Args:
        image_folder: images, at any depth.
        mask_folder: masks, at the same relative paths.
        mask_endings: what may follow the image's stem in the mask's.

    Returns:
        (image, mask) paths relative to their folders; mask None where there is none.

    Raises:
        DatasetError: two files have one stem, or a mask belongs to no image.
    """
    images = _by_stem(image_folder)
    masks = _by_stem(mask_folder)
    pairs: list[tuple[str, str | None]] = []
    used = set()
    for stem, image in images.items():
        found = next((stem + end for end in mask_endings if stem + end in masks), None)
        pairs.append((image, masks[found] if found is not None else None))
        used.add(found)
    orphans = [mask for stem, mask in masks.items() if stem not in used]
    if orphans:
        raise DatasetError(
            f"{mask_folder}: {len(orphans)} masks belong to no image of {image_folder} "
            f"({names(orphans)}); add the images or remove the masks"
        )
    return pairs


def read_forged(
    image_folder: Path, mask_folder: Path, *, technique: str = "", source: str = ""
) -> list[DatasetDict]:
    """Dataset dicts of forged images. One whose mask is missing keeps its label, without a mask."""
    pairs = pair_by_stem(image_folder, mask_folder)
    bare = [image for image, mask in pairs if mask is None]
    if bare:
        _logger.warning(
            "%s: %d of %d forged images have no mask in %s (%s); "
            "they count for the image's verdict only",
            image_folder,
            len(bare),
            len(pairs),
            mask_folder,
            names(bare),
        )
    return [
        make_dataset_dict(
            os.path.join(image_folder, image),
            f"{image_folder.name}/{image}",
            label=1,
            mask_file_name=None if mask is None else os.path.join(mask_folder, mask),
            technique=technique,
            source=source,
        )
        for image, mask in pairs
    ]


def read_unpaired(
    folder: Path,
    *,
    label: int | None,
    technique: str = "",
    source: str = "",
    wholly_forged: bool = False,
) -> list[DatasetDict]:
    """Dataset dicts of images that have no mask files: authentic, unlabelled or wholly forged."""
    return [
        make_dataset_dict(
            os.path.join(folder, image),
            image if label is None else f"{folder.name}/{image}",
            label=label,
            technique=technique,
            source=source,
            wholly_forged=wholly_forged,
        )
        for image in list_images(folder)
    ]


def _walk(root: str, prefix: str) -> Iterator[str]:
    # os.scandir: listing 1.5 million files must not call stat on each.
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(root, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + entry.name


def _by_stem(folder: Path) -> dict[str, str]:
    by_stem: dict[str, str] = {}
    twins = []
    for image in list_images(folder):
        stem = os.path.splitext(image)[0]
        if stem in by_stem:
            twins.append(f"{by_stem[stem]} = {image}")
        by_stem[stem] = image
    if twins:
        raise DatasetError(
            f"{folder}: {len(twins)} files share their stem with another ({names(twins)}), "
            "so that masks cannot be paired; rename one of each or write a manifest.csv"
        )
    return by_stem
