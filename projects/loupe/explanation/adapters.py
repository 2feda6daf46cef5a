"""LoRA on a language model, and what must be saved with it.

Adapters fit one base model, one template and one alpha. All three are stored beside the weights, as
text in a tensor, so that every checkpoint of a run carries them, and are compared before use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loupe.checkpoint import CheckpointError

# Linear layers of the language model alone: the same names occur in vision towers.
TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
# Room for the settings, in bytes.
_ROOM = 2048
_PIECE = 2**20


def add_adapters(vlm: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Puts LoRA into the language model of a LLaVA-class model, in place, in float32.

    Raises:
        ValueError: A layer outside of the language model would be adapted, or none would.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # peft's annotation says int; it only divides.
    scale: Any = alpha
    config = LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=TARGETS, bias="none"
    )
    inject_adapter_in_model(config, vlm)
    names = [name for name, _ in vlm.named_parameters() if "lora_" in name]
    outside = [name for name in names if ".language_model." not in name]
    if outside or not names:
        raise ValueError(f"LoRA found {len(names)} tensors, outside of the language: {outside}")
    for name, parameter in vlm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def as_tensor(settings: dict[str, Any]) -> Tensor:
    """Settings as a tensor of bytes, (2048,) uint8."""
    text = json.dumps(settings, sort_keys=True).encode()
    if len(text) > _ROOM:
        raise ValueError(f"the settings have {len(text)} bytes, and there is room for {_ROOM}")
    return torch.tensor(list(text.ljust(_ROOM)), dtype=torch.uint8)


def as_settings(tensor: Tensor) -> dict[str, Any]:
    """Undoes `as_tensor`."""
    return json.loads(bytes(tensor.tolist()).decode())


def check_settings(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Compares what adapters were trained with and what the model is.

    Raises:
        CheckpointError: Names every difference.
    """
    lines = [
        f"  {name}: {saved.get(name)!r} in the file, {own.get(name)!r} here"
        for name in sorted({*saved, *own})
        if saved.get(name) != own.get(name)
    ]
    if lines:
        raise CheckpointError(
            "the adapters were trained with other settings:\n"
            + "\n".join(lines)
            + "\nUse the configuration and the base model that they were trained with"
        )


def digest(files: Iterable[Path]) -> str:
    """A short hash of weight files: names, sizes, first and last MiB of each.

    A whole hash of 26 GB takes a minute; these parts differ between models and between versions.
    """
    sha = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            sha.update(file.read(_PIECE))
            file.seek(max(0, size - _PIECE))
            sha.update(file.read())
    return sha.hexdigest()[:16]
