"""What comes with Loupe: configuration files, and weights named `loupe://FILE`.

Weights lie in `weights/` beside a model card; `weights/SHA256SUMS` says what they must be.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SCHEME = "loupe://"


def _carried(name: str) -> Path:
    """A folder of the repository: a wheel has it inside the package, a clone at its top."""
    packed = Path(__file__).parent / name
    return packed if packed.is_dir() else Path(__file__).parents[2] / name


CONFIGS = _carried("configs")
FOLDER = _carried("weights")
SUMS = "SHA256SUMS"


class ShippedWeightsError(ValueError):
    """Shipped weights that are unknown, missing or not what they were; the message says which."""


def is_shipped(name: str) -> bool:
    """Whether a name means weights of the repository."""
    return name.startswith(SCHEME)


def shipped_file(name: str, folder: Path = FOLDER) -> Path:
    """The file of a name `loupe://FILE`, its hash checked.

    Raises:
        ShippedWeightsError: There is no such file, or it is not the one that was published.
    """
    expected = published_digest(name, folder)
    path = folder / name.removeprefix(SCHEME)
    if not path.is_file():
        raise ShippedWeightsError(f"{name}: {path} is missing; git checkout -- {path}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ShippedWeightsError(
            f"{path}: SHA-256 is {found}, must be {expected}; the file was changed or "
            f"damaged: git checkout -- {path}"
        )
    return path


def published_digest(name: str, folder: Path = FOLDER) -> str:
    """SHA-256 that the file of a name `loupe://FILE` must have.

    Raises:
        ShippedWeightsError: No such file was published.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise ShippedWeightsError(
            f"{name}: {sums} is missing; install Loupe from a clone (pip install --editable), or "
            "give a file of weights"
        )
    lines = [line.split() for line in sums.read_text().splitlines() if line.strip()]
    published = {entry: digest for digest, entry in lines}
    if name.removeprefix(SCHEME) not in published:
        raise ShippedWeightsError(f"{name}: unknown; {folder} has {', '.join(sorted(published))}")
    return published[name.removeprefix(SCHEME)]


def digest_of(weights: str) -> str:
    """SHA-256 of weights that were loaded; "" if they lie on no disk of this machine.

    Of shipped weights it is the published one: what loads them has checked that they have it.
    """
    if is_shipped(weights):
        return published_digest(weights)
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
