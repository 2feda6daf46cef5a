"""Readers of the formats in which forgery data sets come. Each returns dataset dicts.

Paths in list files are relative to the list file, unless absolute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loupe.data.sources.pairing import (
    DatasetDict,
    DatasetError,
    make_dataset_dict,
    names,
    pair_by_stem,
    read_forged,
    read_unpaired,
)

_NO_MASK = ("Negative", "None", "none", "", None)
_IMAGE_AND_MASK_FOLDERS = (("images", "masks"), ("image", "mask"), ("images", "mask"))


def read_ddl_split(root: Path) -> list[DatasetDict]:
    """DDL: `real/`, `fake/` and `masks/` or `mask/`, the masks named as the forged images."""
    mask_folder = _one_of(root, ("masks", "mask"))
    return read_unpaired(root / "real", label=0) + read_forged(root / "fake", mask_folder)


def read_tampered_ground_truth(root: Path) -> list[DatasetDict]:
    """`Tp/` forged, `Gt/` masks (`<stem>` or `<stem>_gt`), and perhaps `Au/` authentic."""
    authentic = read_unpaired(root / "Au", label=0) if (root / "Au").is_dir() else []
    return authentic + read_forged(root / "Tp", root / "Gt")


def read_sid_split(root: Path) -> list[DatasetDict]:
    """SID-Set: `real/`, `full_synthetic/` (wholly forged, no masks), `tampered/`, `masks/`."""
    synthetic = root / "full_synthetic"
    return (
        read_unpaired(root / "real", label=0)
        + (
            read_unpaired(synthetic, label=1, technique="full_synthetic", wholly_forged=True)
            if synthetic.is_dir()
            else []
        )
        + read_forged(root / "tampered", root / "masks", technique="tampered")
    )


def has_fakeshield_folders(root: Path) -> bool:
    """Whether a folder holds FakeShield's `<set>_Tp/image/`."""
    return any(root.glob("*_Tp/image"))


def read_fakeshield(root: Path) -> list[DatasetDict]:
    """FakeShield: `<set>_Tp/{image,mask}/` forged, `<set>_Au/image/` authentic."""
    parts = [(part, read_unpaired(part / "image", label=0)) for part in root.glob("*_Au")]
    parts += [(part, read_forged(part / "image", part / "mask")) for part in root.glob("*_Tp")]
    return [
        entry | {"image_id": f"{part.name}/{entry['image_id']}", "source": part.name[:-3]}
        for part, entries in sorted(parts, key=lambda item: item[0])
        for entry in entries
    ]


def has_images_and_masks(root: Path) -> bool:
    """Whether a folder holds `images/` and `masks/`, or the singular of both."""
    return any(
        (root / image).is_dir() and (root / mask).is_dir()
        for image, mask in _IMAGE_AND_MASK_FOLDERS
    )


def read_images_and_masks(root: Path) -> list[DatasetDict]:
    """`images/` and `masks/`: an image with a mask is forged, one without is authentic."""
    image_folder, mask_folder = next(
        (root / image, root / mask)
        for image, mask in _IMAGE_AND_MASK_FOLDERS
        if (root / image).is_dir() and (root / mask).is_dir()
    )
    return [
        make_dataset_dict(
            image_folder / image,
            image,
            label=int(mask is not None),
            mask_file_name=None if mask is None else mask_folder / mask,
        )
        for image, mask in pair_by_stem(image_folder, mask_folder)
    ]


def read_json_list(path: Path) -> list[DatasetDict]:
    """JSON of IMDL-BenCo (`[[image, mask], ...]`) or ForensicHub (`[{"path", "mask", "label"}]`).

    Raises:
        DatasetError: the content is neither.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DatasetError(
            f"{path}: the JSON must be a list of [image, mask] or of "
            f'{{"path", "mask", "label"}}; it is a {type(rows).__name__}'
        )
    return [_json_entry(path, row, position) for position, row in enumerate(rows)]


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error}); correct the file") from None


def read_collection(path: Path) -> list[tuple[str, Path]] | None:
    """Parts (name, path) of an IMDL-BenCo list of data sets; None if the file is none.

    Known: `[["ManiDataset" | "JsonDataset", path], ...]` for training, `{name: path}` for tests.
    """
    content = read_json(path)
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return [(name, path.parent / part) for name, part in content.items()]
    if isinstance(content, list) and content and all(_is_part(row) for row in content):
        return [(Path(part).stem, path.parent / part) for _, part in content]
    return None


def _is_part(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and row[0] in ("ManiDataset", "JsonDataset")


def read_text_list(path: Path) -> list[DatasetDict]:
    """Text lines `image mask label` of MVSS-Net (mask `None` for an authentic image)."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=2)
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise DatasetError(
                f"{path}: line {number} is {line!r}; it must be: image, mask or None, 0 or 1"
            )
        entries.append(_entry(path, words[0], words[1], int(words[2])))
    return entries


def _json_entry(path: Path, row: Any, position: int) -> DatasetDict:
    if isinstance(row, dict) and "path" in row:
        return _entry(path, row["path"], row.get("mask"), row.get("label"))
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str):
        return _entry(path, row[0], row[1], None)
    raise DatasetError(
        f"{path}: entry {position} is {str(row)[:80]}; it must be [image, mask or "
        '"Negative"] or {"path", "mask", "label"}'
    )


def _entry(path: Path, image: str, mask: str | None, label: int | None) -> DatasetDict:
    has_mask = mask not in _NO_MASK
    return make_dataset_dict(
        path.parent / image,
        image,
        label=int(has_mask) if label is None else int(label),
        mask_file_name=path.parent / str(mask) if has_mask else None,
    )


def _one_of(root: Path, folders: tuple[str, ...]) -> Path:
    found = [root / folder for folder in folders if (root / folder).is_dir()]
    if len(found) != 1:
        raise DatasetError(
            f"{root}: needs one folder of masks, named {' or '.join(folders)}; "
            f"there are {len(found)} ({names(str(folder) for folder in found)})"
        )
    return found[0]
