"""`loupe://FILE` for Detectron2's own `DetectionCheckpointer`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

from loupe.checkpoint.files import load_weights, save_weights
from loupe.model_zoo import SCHEME


class ShippedWeightsHandler(PathHandler):
    """Gives the weights of the repository as torch files, since Detectron2 reads no safetensors."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, **_: Any) -> str:
        # Not beside the weights: that folder may be read-only.
        folder = tempfile.mkdtemp(prefix="loupe-")
        copy = Path(folder) / f"{Path(path.removeprefix(SCHEME)).stem}.pth"
        save_weights(load_weights(path), copy)
        return str(copy)

    def _open(self, path: str, mode: str = "r", **_: Any) -> Any:
        return Path(self._get_local_path(path)).open(mode)


def register_shipped_weights() -> None:
    """Tells Detectron2 what `loupe://` means; doing so again changes nothing."""
    PathManager.register_handler(ShippedWeightsHandler())
