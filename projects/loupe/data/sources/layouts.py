r"""The trees in which the common forgery data sets are published, as a table.

A layout is a list of groups. A group names its images by a pattern on the path without suffix,
relative to the root, and their masks by templates on the same path (`\1` = the pattern's first
group). Files that no pattern names (masks, donors, notes) are left alone.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.pairing import (
    DatasetDict,
    DatasetError,
    list_images,
    make_dataset_dict,
    names,
)

_logger = logging.getLogger(__name__)


class Group(NamedTuple):
    """Images of one kind.

    Attributes:
        images: pattern of the paths, without suffix.
        label: 1 = forged.
        masks: templates of the mask's path without suffix; the first that exists is taken.
        technique: how they were forged.
        mask_rule: how a mask is read, see `loupe.data.images.decoding.MASK_RULES`.
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


def read_layout(root: Path, groups: tuple[Group, ...]) -> list[DatasetDict]:
    """Dataset dicts of a published tree. A forged image whose mask is missing has none.

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
    bare = [e["image_id"] for e in entries if e["label"] == 1 and e["mask_file_name"] is None]
    if bare:
        _logger.warning(
            "%s: %d forged images have no mask (%s); they count for the image's verdict only",
            root,
            len(bare),
            names(bare),
        )
    return entries


def read_nist16(root: Path) -> list[DatasetDict]:
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
    return entries


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
