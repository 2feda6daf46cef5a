r"""The data sets that have names, and the trees in which they are published, as tables.

A layout is a list of groups. A group names its images by a pattern on the path without suffix,
relative to the root, and their masks by templates on the same path (`\1` = the pattern's first
group). Files that no pattern names (masks, donors, notes) are left alone.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    make_dataset_dict,
)
from loupe.data.sources.files import list_images
from loupe.data.sources.pairing import warn_of_missing_masks


class Group(NamedTuple):
    """Images of one kind.

    Attributes:
        images: pattern of the paths, without suffix.
        label: 1 = forged.
        masks: templates of the mask's path without suffix; the first that exists is taken.
        technique: how they were forged.
        mask_rule: how a mask is read, see `loupe.data.images.masks.MASK_RULES`.
    """

    images: str
    label: int
    masks: tuple[str, ...] = ()
    technique: str = ""
    mask_rule: str = ""


LAYOUTS: dict[str, tuple[Group, ...]] = {
    "casia_v1": (
        Group(r"Au/.+", 0),
        Group(r"Tp/CM/(.+)", 1, (r"CASIA 1.0 groundtruth/CM/\1_gt", r"Gt/CM/\1_gt"), "copy-move"),
        Group(r"Tp/Sp/(.+)", 1, (r"CASIA 1.0 groundtruth/Sp/\1_gt", r"Gt/Sp/\1_gt"), "splicing"),
    ),
    "casia_v2": (
        Group(r"Au/.+", 0),
        Group(r"Tp/(Tp_S.+)", 1, (r"CASIA 2 Groundtruth/\1_gt", r"Gt/\1_gt"), "copy-move"),
        Group(r"Tp/(Tp_D.+)", 1, (r"CASIA 2 Groundtruth/\1_gt", r"Gt/\1_gt"), "splicing"),
    ),
    "columbia": (
        Group(r"4cam_auth/[^/]+", 0),
        Group(r"4cam_splc/([^/]+)", 1, (r"4cam_splc/edgemask/\1_edgemask",), "splicing", "green"),
    ),
    "coverage": (
        Group(r"image/\d+", 0),
        Group(r"image/(\d+)t", 1, (r"mask/\1forged",), "copy-move"),
    ),
    "dso1": (
        Group(r"DSO-1/normal.+", 0),
        Group(r"DSO-1/(splicing.+)", 1, (r"DSO-1-Fake-Images-Masks/\1",), "splicing", "inverted"),
    ),
    "imd2020": (
        Group(r"[^/]+/.+_orig", 0),
        Group(r"([^/]+/(?!.*_(?:orig|mask)$).+)", 1, (r"\1_mask",)),
    ),
    "korus": (
        Group(r"[^/]+/pristine/.+", 0),
        Group(r"([^/]+)/tampered-realistic/(.+)", 1, (r"\1/ground-truth/\2",)),
    ),
    "autosplice": (
        Group(r"Authentic/.+", 0),
        Group(r"Forged_JPEG100/([^_]+)_?.*", 1, (r"Mask/\1_mask",), "inpainting"),
    ),
    "defacto": (
        Group(r"copymove_img/img/(.+)", 1, (r"copymove_annotations/probe_mask/\1",), "copy-move"),
        Group(
            r"splicing_(\d+)_img/img/(.+)",
            1,
            (r"splicing_\1_annotations/probe_mask/\2",),
            "splicing",
        ),
        Group(r"inpainting_img/img/(.+)", 1, (r"inpainting_annotations/probe_mask/\1",), "removal"),
    ),
}


def read_layout(root: Path, groups: tuple[Group, ...]) -> Listing:
    """Lists a published tree. A forged image whose mask is missing has none.

    Raises:
        DatasetError: no file below the root fits.
    """
    by_stem = {os.path.splitext(name)[0]: name for name in list_images(root)}
    entries = [
        _make_entry(root, by_stem, group, match)
        for group in groups
        for match in map(re.compile(group.images).fullmatch, by_stem)
        if match
    ]
    if not entries:
        raise DatasetError(
            f"{root}: no image fits the expected tree; see the README of the datasets folder"
        )
    warn_of_missing_masks(
        root,
        [e["image_id"] for e in entries if e["label"] == 1 and e["mask_file_name"] is None],
    )
    return Listing(entries)


def read_nist16(root: Path) -> Listing:
    """NIST Nimble 2016, by its reference list `reference/manipulation/*-ref.csv`.

    Its masks have 0 where the image is forged.

    Raises:
        DatasetError: there is not exactly one list, or it lacks a column.
    """
    lists = sorted((root / "reference/manipulation").glob("*-ref.csv"))
    if len(lists) != 1:
        raise DatasetError(
            f"{root}: needs one reference/manipulation/*-ref.csv, there are {len(lists)}"
        )
    entries = []
    with open(lists[0], newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file, delimiter="|"):
            try:
                image, mask = row["ProbeFileName"].strip(), row["ProbeMaskFileName"].strip()
                forged = row["IsTarget"].strip().upper() in ("Y", "TRUE")
            except (KeyError, AttributeError) as error:
                raise DatasetError(
                    f"{lists[0]}: a row lacks {error}; it must have the columns ProbeFileName, "
                    "ProbeMaskFileName and IsTarget, divided by |"
                ) from None
            has_mask = forged and mask
            entry = make_dataset_dict(
                root / image,
                image,
                label=int(forged),
                mask_file_name=root / mask if has_mask else None,
            )
            entries.append(entry | {"mask_rule": "inverted"} if has_mask else entry)
    return Listing(entries)


def _make_entry(
    root: Path, by_stem: dict[str, str], group: Group, match: re.Match[str]
) -> DatasetDict:
    image = by_stem[match.string]
    stems = (match.expand(template) for template in group.masks)
    mask = next((by_stem[stem] for stem in stems if stem in by_stem), None)
    entry = make_dataset_dict(
        root / image,
        image,
        label=group.label,
        mask_file_name=None if mask is None else root / mask,
        technique=group.technique,
    )
    return entry | {"mask_rule": group.mask_rule} if mask and group.mask_rule else entry


class PublishedDataset(NamedTuple):
    """One data set with a name.

    Attributes:
        path: folder or list file below the root.
        tree: what is expected there, for people.
        read: how it is listed; None = as a folder of that form without a name.
    """

    path: str
    tree: str
    read: Callable[[Path], Listing] | None = None


def _laid_out(name: str, path: str, tree: str) -> PublishedDataset:
    return PublishedDataset(path, tree, partial(read_layout, groups=LAYOUTS[name]))


PUBLISHED = {
    "ddl_train": PublishedDataset("ddl/train", "real/ fake/ masks/"),
    "ddl_valid": PublishedDataset("ddl/valid", "real/ fake/ masks/"),
    "ddl_test": PublishedDataset("ddl/test", "images, without labels"),
    "casia_v1": _laid_out(
        "casia_v1", "CASIA1", "Au/ Tp/CM/ Tp/Sp/ and 'CASIA 1.0 groundtruth/{CM,Sp}/' (or Gt/)"
    ),
    "casia_v2": _laid_out("casia_v2", "CASIA2", "Au/ Tp/ and 'CASIA 2 Groundtruth/' (or Gt/)"),
    "columbia": _laid_out("columbia", "Columbia", "4cam_auth/ 4cam_splc/ 4cam_splc/edgemask/"),
    "coverage": _laid_out("coverage", "COVERAGE", "image/ mask/"),
    "nist16": PublishedDataset("NC2016_Test0613", "probe/ reference/", read_nist16),
    "imd2020": _laid_out("imd2020", "IMD2020", "<scene>/: <x>_orig, <y>, <y>_mask"),
    "dso1": _laid_out("dso1", "tifs-database", "DSO-1/ DSO-1-Fake-Images-Masks/"),
    "korus": _laid_out("korus", "Korus", "<camera>/{pristine,tampered-realistic,ground-truth}/"),
    "cocoglide": PublishedDataset("CocoGlide", "real/ fake/ mask/"),
    "autosplice": _laid_out("autosplice", "AutoSplice", "Authentic/ Forged_JPEG100/ Mask/"),
    "defacto": _laid_out("defacto", "DEFACTO", "<technique>_img/img/ <technique>_annotations/"),
    "sid_set_train": PublishedDataset("SID_Set/train", "real/ full_synthetic/ tampered/ masks/"),
    "sid_set_validation": PublishedDataset(
        "SID_Set/validation", "real/ full_synthetic/ tampered/ masks/"
    ),
}
