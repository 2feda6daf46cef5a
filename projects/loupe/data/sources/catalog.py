"""The data sets that have names, where their files are expected, and how any data set is loaded.

The root of the named ones is the folder in the environment variable DETECTRON2_DATASETS, by
default `datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from loupe.data.sources.index import DatasetIndex, make_index
from loupe.data.sources.index_cache import cached_index
from loupe.data.sources.layouts import LAYOUTS, read_layout, read_nist16
from loupe.data.sources.loading import load_path
from loupe.data.sources.pairing import DatasetDict, DatasetError
from loupe.data.sources.synthetic import is_synthetic, list_synthetic

ROOT_VARIABLE = "DETECTRON2_DATASETS"


class NamedDataset(NamedTuple):
    """One named data set.

    Attributes:
        path: folder or list file below the root.
        tree: what is expected there, for people.
        read: how it is read.
    """

    path: str
    tree: str
    read: Callable[[Path], list[DatasetDict]] = load_path


def _published(name: str, path: str, tree: str) -> NamedDataset:
    """A set that is read in the tree in which its authors publish it."""
    return NamedDataset(path, tree, partial(read_layout, groups=LAYOUTS[name]))


DATASETS = {
    "ddl_train": NamedDataset("ddl/train", "real/ fake/ masks/"),
    "ddl_valid": NamedDataset("ddl/valid", "real/ fake/ masks/"),
    "ddl_test": NamedDataset("ddl/test", "images, without labels"),
    "casia_v1": _published(
        "casia_v1", "CASIA1", "Au/ Tp/CM/ Tp/Sp/ and 'CASIA 1.0 groundtruth/{CM,Sp}/' (or Gt/)"
    ),
    "casia_v2": _published("casia_v2", "CASIA2", "Au/ Tp/ and 'CASIA 2 Groundtruth/' (or Gt/)"),
    "columbia": _published("columbia", "Columbia", "4cam_auth/ 4cam_splc/ 4cam_splc/edgemask/"),
    "coverage": _published("coverage", "COVERAGE", "image/ mask/"),
    "nist16": NamedDataset("NC2016_Test0613", "probe/ reference/", read_nist16),
    "imd2020": _published("imd2020", "IMD2020", "<scene>/: <x>_orig, <y>, <y>_mask"),
    "dso1": _published("dso1", "tifs-database", "DSO-1/ DSO-1-Fake-Images-Masks/"),
    "korus": _published("korus", "Korus", "<camera>/{pristine,tampered-realistic,ground-truth}/"),
    "cocoglide": NamedDataset("CocoGlide", "real/ fake/ mask/"),
    "autosplice": _published("autosplice", "AutoSplice", "Authentic/ Forged_JPEG100/ Mask/"),
    "defacto": _published("defacto", "DEFACTO", "<technique>_img/img/ <technique>_annotations/"),
    "sid_set_train": NamedDataset("SID_Set/train", "real/ full_synthetic/ tampered/ masks/"),
    "sid_set_validation": NamedDataset(
        "SID_Set/validation", "real/ full_synthetic/ tampered/ masks/"
    ),
}


def dataset_root() -> Path:
    """Folder of the named data sets."""
    return Path(os.environ.get(ROOT_VARIABLE, "datasets"))


def load_dataset(name_or_path: str) -> list[DatasetDict]:
    """Dataset dicts of a named set, a synthetic one, a folder in a known format or a list file.

    Raises:
        DatasetError: there is no such set, or its files do not fit.
    """
    if is_synthetic(name_or_path):
        return list_synthetic(name_or_path)
    if name_or_path in DATASETS:
        return load_named(name_or_path, dataset_root())
    if name_or_path in DatasetCatalog.list():
        return DatasetCatalog.get(name_or_path)
    if os.path.exists(name_or_path):
        return load_path(name_or_path)
    raise DatasetError(
        f"{name_or_path!r} is neither a data set's name nor an existing path; "
        f"names: {', '.join(DATASETS)}, synthetic://train?size=256&seed=0&count=1000"
    )


def load_index(name_or_path: str) -> DatasetIndex | list[DatasetDict]:
    """What `load_dataset` lists, in columns that processes share; kept in a file if it is large.

    A JSON file is listed anew each time, since it may name other sets. A set that somebody else has
    registered is a list if its dicts hold what columns cannot.

    Raises:
        DatasetError: there is no such set, or its files do not fit.
    """
    if name_or_path in DATASETS:
        path = _path_of(name_or_path, dataset_root())
        return cached_index(path, partial(DATASETS[name_or_path].read, path))
    registered = name_or_path in DatasetCatalog.list() or is_synthetic(name_or_path)
    path = Path(name_or_path)
    if not registered and path.exists() and path.suffix.lower() != ".json":
        return cached_index(path, partial(load_path, path))
    entries = load_dataset(name_or_path)
    return make_index(entries) or entries


def load_named(name: str, root: str | Path) -> list[DatasetDict]:
    """Dataset dicts of a named set below a root.

    Raises:
        DatasetError: its files are missing or do not fit.
    """
    return DATASETS[name].read(_path_of(name, root))


def _path_of(name: str, root: str | Path) -> Path:
    dataset = DATASETS[name]
    path = Path(root) / dataset.path
    if not path.exists():
        raise DatasetError(
            f"{name}: {path} does not exist; put there: {dataset.tree}, "
            f"or set {ROOT_VARIABLE} to the folder that holds {dataset.path}"
        )
    return path


def register_forgery_datasets(root: str | Path | None = None) -> None:
    """Makes the named sets known to Detectron2. May be called again; reads no file.

    Args:
        root: folder of the sets; None = the environment's.
    """
    for name, dataset in DATASETS.items():
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        folder = dataset_root() if root is None else Path(root)
        DatasetCatalog.register(name, partial(load_named, name, folder))
        MetadataCatalog.get(name).set(
            evaluator_type="forgery", dataset_path=str(folder / dataset.path)
        )
