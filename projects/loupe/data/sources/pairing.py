"""Pairs images with masks by stem, never by position: one missing mask shifts nothing."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.entries import Listing, Problem, make_dataset_dict, names
from loupe.data.sources.files import list_images

# What data sets append to a mask's stem.
MASK_STEM_ENDINGS = ("", "_gt", "_mask")

_logger = logging.getLogger(__name__)


class ImageAndMask(NamedTuple):
    """Paths relative to the folders of images and of masks.

    Attributes:
        image: the image.
        mask: the mask that has its stem; None = there is none, or it cannot be told which.
        is_forged: there is such a mask, even if it cannot be told which.
    """

    image: str
    mask: str | None
    is_forged: bool


def pair_by_stem(image_folder: Path, mask_folder: Path) -> tuple[list[ImageAndMask], list[Problem]]:
    """Pairs each image below a folder with the mask of its stem, at the same relative path.

    Returns:
        The pairs; masks that belong to no image, and stems that several files share. Such images
        are paired with no mask.
    """
    images, masks = _by_stem(image_folder), _by_stem(mask_folder)
    pairs, used = [], set()
    for stem, files in images.items():
        found = next((stem + end for end in MASK_STEM_ENDINGS if stem + end in masks), None)
        used.add(found)
        candidates = [] if found is None else masks[found]
        is_clear = len(files) == len(candidates) == 1
        pairs += [
            ImageAndMask(image, candidates[0] if is_clear else None, bool(candidates))
            for image in files
        ]
    problems = [
        Problem(
            f"{folder.name}/{' = '.join(files)}",
            "files share their stem, so that masks cannot be paired",
            "rename all but one of each, or write a manifest.csv",
        )
        for folder, stems in ((image_folder, images), (mask_folder, masks))
        for files in stems.values()
        if len(files) > 1
    ]
    problems += [
        Problem(
            f"{mask_folder.name}/{mask}",
            f"a mask of no image in {image_folder.name}/",
            "add the image or remove the mask",
        )
        for stem, files in masks.items()
        if stem not in used
        for mask in files
    ]
    return pairs, problems


def list_forged(image_folder: Path, mask_folder: Path, *, technique: str = "") -> Listing:
    """Forged images and their masks. One whose mask is missing keeps its label, without a mask."""
    pairs, problems = pair_by_stem(image_folder, mask_folder)
    warn_of_missing_masks(image_folder, [pair.image for pair in pairs if not pair.is_forged])
    entries = [
        make_dataset_dict(
            os.path.join(image_folder, image),
            f"{image_folder.name}/{image}",
            label=1,
            mask_file_name=None if mask is None else os.path.join(mask_folder, mask),
            technique=technique,
        )
        for image, mask, _ in pairs
    ]
    return Listing(entries, problems)


def list_unpaired(
    folder: Path, *, label: int | None, technique: str = "", wholly_forged: bool = False
) -> Listing:
    """Images that have no mask files: authentic, unlabelled or wholly forged."""
    entries = [
        make_dataset_dict(
            os.path.join(folder, image),
            image if label is None else f"{folder.name}/{image}",
            label=label,
            technique=technique,
            wholly_forged=wholly_forged,
        )
        for image in list_images(folder)
    ]
    return Listing(entries)


def warn_of_missing_masks(place: Path, images: list[str]) -> None:
    """Says which forged images have no mask, if there are any."""
    if images:
        _logger.warning(
            "%s: %d forged images have no mask (%s); only their label is used",
            place,
            len(images),
            names(images),
        )


def _by_stem(folder: Path) -> dict[str, list[str]]:
    stems = defaultdict(list)
    for file in list_images(folder):
        stems[os.path.splitext(file)[0]].append(file)
    return stems
