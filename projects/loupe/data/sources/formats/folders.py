"""Folders whose form says what they hold: `real/ fake/ masks/`, `Tp/ Gt/ Au/`, and so on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.entries import DatasetError, Listing, join, make_dataset_dict, names
from loupe.data.sources.pairing import list_forged, list_unpaired, pair_by_stem

_IMAGE_AND_MASK_FOLDERS = (("images", "masks"), ("image", "mask"), ("images", "mask"))


class FolderFormat(NamedTuple):
    """How a folder is recognised and listed.

    Attributes:
        name: for messages.
        matches: whether a folder has this format, by the folders in it.
        read: lists it.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Listing]


def detect_format(folder: Path) -> FolderFormat:
    """The first of FOLDER_FORMATS that a folder fits.

    Raises:
        DatasetError: the folder holds splits, of which one must be named.
    """
    splits = [split for split in ("train", "valid", "test") if (folder / split).is_dir()]
    if len(splits) > 1:
        raise DatasetError(
            f"{folder}: holds the splits {', '.join(splits)}; name one, as {folder / splits[0]}"
        )
    return next(known for known in FOLDER_FORMATS if known.matches(folder))


def read_ddl_split(root: Path) -> Listing:
    """DDL: `real/`, `fake/` and `masks/` or `mask/`, the masks named as the forged images."""
    found = [root / name for name in ("masks", "mask") if (root / name).is_dir()]
    if len(found) != 1:
        raise DatasetError(
            f"{root}: needs one folder of masks, named masks or mask; "
            f"there are {len(found)} ({names(str(folder) for folder in found)})"
        )
    return join([list_unpaired(root / "real", label=0), list_forged(root / "fake", found[0])])


def read_tampered_ground_truth(root: Path) -> Listing:
    """`Tp/` forged, `Gt/` masks (`<stem>` or `<stem>_gt`), and perhaps `Au/` authentic."""
    authentic = [list_unpaired(root / "Au", label=0)] if (root / "Au").is_dir() else []
    return join([*authentic, list_forged(root / "Tp", root / "Gt")])


def read_sid_split(root: Path) -> Listing:
    """SID-Set: `real/`, `full_synthetic/` (wholly forged, no masks), `tampered/`, `masks/`."""
    parts = [list_unpaired(root / "real", label=0)]
    name = "full_synthetic"
    if (root / name).is_dir():
        parts.append(list_unpaired(root / name, label=1, technique=name, wholly_forged=True))
    return join([*parts, list_forged(root / "tampered", root / "masks", technique="tampered")])


def has_fakeshield_folders(root: Path) -> bool:
    """Whether a folder holds FakeShield's `<set>_Tp/image/`."""
    return any(root.glob("*_Tp/image"))


def read_fakeshield(root: Path) -> Listing:
    """FakeShield: `<set>_Tp/{image,mask}/` forged, `<set>_Au/image/` authentic."""
    parts = [(part, list_unpaired(part / "image", label=0)) for part in root.glob("*_Au")]
    parts += [(part, list_forged(part / "image", part / "mask")) for part in root.glob("*_Tp")]
    return join(
        Listing(
            [
                entry | {"image_id": f"{part.name}/{entry['image_id']}", "source": part.name[:-3]}
                for entry in listing.entries
            ],
            listing.problems,
        )
        for part, listing in sorted(parts, key=lambda item: item[0])
    )


def has_images_and_masks(root: Path) -> bool:
    """Whether a folder holds `images/` and `masks/`, or the singular of one or both."""
    return any(_has(*pair)(root) for pair in _IMAGE_AND_MASK_FOLDERS)


def read_images_and_masks(root: Path) -> Listing:
    """`images/` and `masks/`: an image with a mask is forged, one without is authentic."""
    images, masks = next(
        (root / image, root / mask)
        for image, mask in _IMAGE_AND_MASK_FOLDERS
        if _has(image, mask)(root)
    )
    pairs, problems = pair_by_stem(images, masks)
    entries = [
        make_dataset_dict(
            images / image,
            image,
            label=int(is_forged),
            mask_file_name=None if mask is None else masks / mask,
        )
        for image, mask, is_forged in pairs
    ]
    return Listing(entries, problems)


def _has(*folders: str) -> Callable[[Path], bool]:
    return lambda root: all((root / folder).is_dir() for folder in folders)


FOLDER_FORMATS = (
    FolderFormat("SID-Set split", _has("real", "tampered"), read_sid_split),
    FolderFormat("DDL split", _has("real", "fake"), read_ddl_split),
    FolderFormat("Tp, Gt, Au", _has("Tp", "Gt"), read_tampered_ground_truth),
    FolderFormat("FakeShield", has_fakeshield_folders, read_fakeshield),
    FolderFormat("images, masks", has_images_and_masks, read_images_and_masks),
    FolderFormat("plain folder", lambda root: True, lambda root: list_unpaired(root, label=None)),
)
