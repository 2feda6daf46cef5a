"""Features of a frozen segmentation encoder on disk, so that each image is encoded once.

SAM-H at 1024 px costs 3 TFLOP an image; its features are 2 MB in half precision. A file is named by
a hash of the encoder's weights and of the pixels that it gets: another image, another size or way
of resizing, or another encoder has another name, so nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from loupe.writing import write_bytes


class FeatureCache:
    """Gives an encoder's features, from the folder where they are there.

    Half precision loses 3 decimal digits; features are rounded also when they are first computed,
    so that the first pass over the data equals the later ones.

    Args:
        folder: Made when the first file is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._encoder = ""

    def __call__(self, encoder: nn.Module, pixels: Tensor, valid: Tensor | None) -> Tensor:
        """(1, D, h, w) features of one image; see `SamEncoder.forward`."""
        path = self.path(encoder, pixels, valid)
        if path.is_file():
            stored = torch.from_numpy(np.load(path, allow_pickle=False))
            return stored.to(pixels.device, torch.float32)
        features = encoder(pixels, valid).half()
        buffer = io.BytesIO()
        np.save(buffer, features.detach().cpu().numpy(), allow_pickle=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
        return features.float()

    def path(self, encoder: nn.Module, pixels: Tensor, valid: Tensor | None) -> Path:
        """Where the features of these pixels lie: two letters make a folder of their own."""
        # Weights of a frozen encoder change only before its first image.
        self._encoder = self._encoder or _fingerprint(encoder)
        digest = hashlib.blake2b(self._encoder.encode(), digest_size=20)
        digest.update(str(tuple(pixels.shape)).encode())
        digest.update(pixels.to(torch.uint8).cpu().numpy().tobytes())
        if valid is not None:
            digest.update(np.packbits(valid.cpu().numpy()).tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"


def _fingerprint(encoder: nn.Module) -> str:
    """Hash of names and values of all weights."""
    digest = hashlib.blake2b(digest_size=20)
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
