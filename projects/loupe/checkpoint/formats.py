"""The two file formats of weights, read as data and written whole, with checksums.

Nothing is unpacked before its size is known from the headers, no pickled code is run, and a file
that differs by one byte from what was written is refused: torch files carry a CRC-32 for each of
their records, which PyTorch itself does not check, and ours in safetensors a SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loupe.checkpoint.weights import CheckpointError, Weights
from loupe.writing import replacing, write_bytes

# Index of a torch file and header of a safetensors file; a Loupe's have 0.5 MB with optimiser.
LARGEST_INDEX = 8_000_000
# Tensors may share memory, as tied weights do, but not unfold into much more than the file holds.
MOST_COPIES = 4

_CHECKSUM = "sha256"
# Attribute of a folder in a zip archive (MS-DOS).
_FOLDER = 0x10
# What the index of a torch file may name: tensors and plain containers.
_NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}


def read_torch(path: Path) -> Any:
    """Reads a file of `torch.save` that holds tensors, numbers, text and containers of these.

    Raises:
        CheckpointError: The file is damaged, holds anything else, or would take more memory than
            its size allows.
    """
    # One handle for checks and data: the file may be replaced in between.
    with path.open("rb") as file:
        try:
            _check_archive(path, file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # zipfile, pickletools and torch raise many types.
            raise CheckpointError(
                f"{path}: damaged, or no torch file of tensors alone ({error}). Copy it again, or "
                "ask for a .safetensors file"
            ) from error
        size = file.seek(0, 2)
    try:
        tensors = list(_tensors_in(content))
    except RecursionError as error:
        raise CheckpointError(f"{path}: its containers nest without end; refused") from error
    if sum(map(_bytes_of, tensors)) > MOST_COPIES * size:
        raise CheckpointError(f"{path}: its tensors unfold into more than the file holds; refused")
    return content


def _check_archive(path: Path, file: IO[bytes]) -> None:
    """Checks sizes, checksums and the names in the index before anything is unpacked."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > file.seek(0, 2):
            raise CheckpointError(
                f"{path}: unpacks to more than its size, as no torch file does; refused"
            )
        # PyTorch does not read records marked as folders: their tensors would hold old memory.
        if any(member.external_attr & _FOLDER for member in members):
            raise CheckpointError(f"{path}: damaged, it holds a folder in the place of a record")
        indices = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(indices) != 1 or indices[0].file_size > LARGEST_INDEX:
            raise CheckpointError(f"{path}: has no index, several, or one too large; refused")
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path}: damaged, {damaged} differs from its checksum")
        for name in _names_in(archive.read(indices[0])):
            if name not in _NAMES and not _is_storage(name):
                raise CheckpointError(
                    f"{path}: holds more than tensors ({name}), and reading that could run code; "
                    "refused. Ask for a .safetensors file, or save the state_dict alone"
                )


def _names_in(index: bytes) -> Iterator[str]:
    """The functions and classes that a pickle names, without running it."""
    for opcode, argument, _ in pickletools.genops(index):
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument)
        elif opcode.name in {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}:
            yield opcode.name


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module == "torch" and kind.endswith("Storage") and kind.isidentifier()


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors_in(value)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def write_torch(content: Any, path: Path) -> None:
    """Writes a torch file, whole or not at all."""
    with replacing(path) as file:
        torch.save(content, file)


def read_safetensors(path: Path) -> Weights:
    """Reads a `.safetensors` file, and checks its tensors if it says what they must be.

    Raises:
        CheckpointError: The file is damaged, or its header is too large.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        size = file.seek(0, 2)
    if header > min(size, LARGEST_INDEX):
        raise CheckpointError(
            f"{path}: damaged, or no safetensors file: its header is {header} bytes long"
        )
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(_CHECKSUM)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error
    if expected is not None and expected != _checksum(weights):
        raise CheckpointError(f"{path}: damaged, its tensors differ from their checksum")
    return weights


def write_safetensors(
    weights: Weights, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file with a checksum of its tensors, whole or not at all.

    `metadata` are further words that the file carries.
    """
    words = dict(metadata or {}) | {_CHECKSUM: _checksum(weights)}
    write_bytes(path, save(weights, metadata=words))


def _checksum(weights: Weights) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
