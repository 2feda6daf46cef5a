"""Condenses recorded tensors of the released stage 2 into `explainer.npz`.

    python -m tests.reference.condense_explainer FOLDER

FOLDER holds what the released code computed on the CPU in float32, at a tiny size, with every
parameter filled by name (`fill` below). Weights are not kept, for they are filled again; adapters
are.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

FILE = Path(__file__).with_name("explainer.npz")
_WIDE = ("class_embedding", "position_embedding")
# Gradients of these say whether all paths are right; the rest is left out for size.
_LEFT_OUT = ("masked_image.e", "masked_image.f", "masked_image.o", "masked_image.b", "wrong_dims")
_GRADIENTS = ("mm_projector", "lora_", "norm", "layers.1.mlp.down", "layers.0.self_attn.q")


def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a parameter: a function of its released name and its shape."""
    # The tower was filled on its own, before it was a part of the whole.
    name = name.removeprefix("model.vision_tower.vision_tower.")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    if any(word in name for word in _WIDE):
        return drawn
    if len(shape) == 1:
        return 1 + 0.1 * drawn if name.endswith("weight") else 0.1 * drawn
    return drawn / math.sqrt(math.prod(shape[1:]))


def main() -> None:
    """Writes the file."""
    folder = Path(sys.argv[1])
    kept: dict[str, np.ndarray] = {}
    for part in ("ravfe_inputs", "ravfe", "vlm_inputs", "vlm_train", "vlm_lora", "vlm_generate"):
        for name, value in load_file(folder / f"{part}.safetensors").items():
            wanted = not name.startswith(("grad.", "region.", "layer", "inputs_embeds"))
            if any(word in name for word in _LEFT_OUT):
                continue
            if wanted or (name.startswith("grad.") and any(w in name for w in _GRADIENTS)):
                kept[f"{part}/{name}"] = value.numpy()
    weights = load_file(folder / "state_dict.safetensors")
    for name, value in weights.items():
        assert torch.equal(fill(name, value.shape), value), name
    info = json.loads((folder / "info.json").read_text())["config"]
    shapes = {name: list(value.shape) for name, value in weights.items()}
    kept["config"] = np.frombuffer(json.dumps(info | {"shapes": shapes}).encode(), np.uint8)
    np.savez_compressed(FILE, **kept)


if __name__ == "__main__":
    main()
