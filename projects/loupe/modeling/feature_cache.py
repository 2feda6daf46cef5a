"""Features of a frozen encoder on disk, so that each image is encoded once.

SAM-H at 1024 px costs 3 TFLOP an image; its features are 2 MB in half precision. A file is named by
a hash of what it depends on: the encoder's weights and structure, and the numbers that the encoder
is given (so the image's content, size and normalisation, the way of resizing, the padding). Another
of these has another name, so nothing stale is ever read.

B images, D channels.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from loupe.writing import write_bytes

PRECISIONS = ("float16", "float32")
# Of images (b, ...) and, where there is padding, what of them is valid.
Encode = Callable[[Tensor, Tensor | None], Tensor]

_log = logging.getLogger(__name__)
# Files between two looks at the size of the folder, which other processes fill, too.
_LOOK_AFTER = 256


class FeatureCache:
    """Gives an encoder's features, from the folder where they are there.

    Half precision keeps 3 decimal digits; features are rounded also when they are first computed,
    so that the first pass over the data equals the later ones. Numbers beyond its range are kept
    in float32.

    Args:
        folder: Made when the first file is written.
        precision: One of PRECISIONS.
        limit_gb: Largest size of the folder in GB (1e9 bytes); what comes after it is encoded each
            time. Files in it are never thrown out: passes over the data would throw out each file
            just before it is needed.
    """

    def __init__(self, folder: str | Path, *, precision: str, limit_gb: float) -> None:
        self.folder = Path(folder)
        self.precision, self.limit_gb = precision, limit_gb
        self._encoder = ""
        self._watched: nn.Module | None = None
        self._bytes, self._written, self._is_full = 0, 0, False

    @torch.no_grad()
    def __call__(
        self, encoder: nn.Module, images: Tensor, valid: Tensor | None, encode: Encode
    ) -> Tensor:
        """Features (B, ...) of a batch, of the images' type.

        Args:
            encoder: What `encode` runs; frozen.
            images: (B, 3, H, W).
            valid: (B, H, W) bool, False = padding; None = all valid.
            encode: Gives the features of those images that are not there.
        """
        rows = [None if valid is None else valid[i] for i in range(len(images))]
        paths = [self.path(encoder, *row) for row in zip(images, rows, strict=True)]
        found = [self._read(path) for path in paths]
        missing = [i for i, features in enumerate(found) if features is None]
        if missing:
            computed = encode(images[missing], None if valid is None else valid[missing])
            for i, features in zip(missing, computed, strict=True):
                found[i] = self._kept(paths[i], features)
        return torch.stack([one.to(images) for one in found if one is not None])

    def path(self, encoder: nn.Module, image: Tensor, valid: Tensor | None) -> Path:
        """Where the features of an image (3, H, W) lie: two letters make a folder of their own."""
        digest = hashlib.blake2b(self._fingerprint(encoder).encode(), digest_size=20)
        kind = image.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        digest.update(f"{self.precision} {autocast} {image.dtype} {tuple(image.shape)}".encode())
        digest.update(image.detach().cpu().contiguous().numpy().tobytes())
        # A batch marks padding wherever one of its images has some.
        if valid is not None and not bool(valid.all()):
            digest.update(np.packbits(valid.cpu().numpy()).tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"

    def _fingerprint(self, encoder: nn.Module) -> str:
        # Weights of a frozen encoder change only where others are loaded.
        if self._watched is not encoder:
            encoder.register_load_state_dict_post_hook(self._forget)
            self._watched, self._encoder = encoder, ""
        self._encoder = self._encoder or fingerprint(encoder)
        return self._encoder

    def _forget(self, *_: object) -> None:
        self._encoder = ""

    def _read(self, path: Path) -> Tensor | None:
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False)).float()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            _log.warning(f"{path}: cannot be read ({error}); the image is encoded again")
            return None

    def _kept(self, path: Path, features: Tensor) -> Tensor:
        """The features as they will be read, written if there is room."""
        stored = features.detach().float()
        if self.precision == "float16" and bool(stored.half().isfinite().all()):
            stored = stored.half()
        if not self._is_full:
            buffer = io.BytesIO()
            np.save(buffer, stored.cpu().numpy(), allow_pickle=False)
            if self._has_room(len(buffer.getvalue())):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, buffer.getvalue())
        return stored.float()

    def _has_room(self, size: int) -> bool:
        if self._written % _LOOK_AFTER == 0:
            self._bytes = sum(path.stat().st_size for path in self.folder.glob("*/*.npy"))
        self._written += 1
        self._bytes += size
        if self._bytes > self.limit_gb * 1e9:
            self._is_full = True
            _log.warning(
                f"{self.folder} has reached its limit of {self.limit_gb} GB; further images are "
                "encoded each time: raise the LIMIT_GB of MODEL.FEATURE_CACHE, or clear the folder"
            )
        return not self._is_full


def fingerprint(encoder: nn.Module) -> str:
    """Hash of an encoder's structure and of names and values of all its weights."""
    digest = hashlib.blake2b(repr(encoder).encode(), digest_size=20)
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
