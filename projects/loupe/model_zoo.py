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
    file_name = name.removeprefix(SCHEME)
    sums = folder / SUMS
    if not sums.is_file():
        raise ShippedWeightsError(
            f"{name}: {sums} is missing; install Loupe from a clone (pip install --editable), or "
            "give a file of weights"
        )
    lines = [line.split() for line in sums.read_text().splitlines() if line.strip()]
    expected = {entry: digest for digest, entry in lines}
    if file_name not in expected:
        raise ShippedWeightsError(f"{name}: unknown; {folder} has {', '.join(sorted(expected))}")
    path = folder / file_name
    if not path.is_file():
        raise ShippedWeightsError(f"{name}: {path} is missing; git checkout -- {path}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected[file_name]:
        raise ShippedWeightsError(
            f"{path}: SHA-256 is {found}, must be {expected[file_name]}; the file was changed or "
            f"damaged: git checkout -- {path}"
        )
    return path


def digest_of(weights: str) -> str:
    """SHA-256 of a file of weights, shipped or not; "" if it lies on no disk of this machine."""
    path = shipped_file(weights) if is_shipped(weights) else Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
