"""Condenses what the released IFDL-VLM computes into `parity_ifdl.npz`, for the repository.

    python -m tests.reference.condense_parity_ifdl FOLDER

FOLDER holds the full record of stage 1 at a tiny size. Kept of its batch of tampered images are the
inputs, the final outputs, all losses, the norm of every gradient and some whole ones; of the
evaluation of eight images what the printed metrics are made of. Parameters are not kept: both sides
fill them by name (`released_value` in tests/modeling/expert/test_parity.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.reference.condense_parity import gradients_of, write

CASE = "train_tampered"
# Gradients kept whole: each of another part of the network, and all of them small.
WHOLE = (
    "clip_model.vision_model.embeddings.class_embedding",
    "clip_model.vision_model.encoder.layers.0.self_attn.out_proj.bias",
    "cls_projection.2.weight",
    "seg_projection.0.bias",
    "sida_fc1.weight",
    "attention_layer.out_proj.bias",
    "visual_model.mask_decoder.mask_tokens.weight",
    "visual_model.mask_decoder.transformer.layers.0.norm2.weight",
    "visual_model.mask_decoder.transformer.layers.1.cross_attn_image_to_token.v_proj.bias",
    "visual_model.mask_decoder.output_upscaling.0.bias",
    "visual_model.mask_decoder.output_hypernetworks_mlps.0.layers.2.weight",
)


def condensed(folder: Path) -> dict[str, np.ndarray]:
    """Picks the tensors that a test compares with."""
    kept = {
        f"inputs/{name.removeprefix(CASE + '.')}": value
        for name, value in load_file(folder / "inputs.safetensors").items()
        if name.startswith(CASE)
    }
    tensors = load_file(folder / f"{CASE}.safetensors")
    kept |= gradients_of(tensors, WHOLE)
    kept |= {
        name: value
        for name, value in tensors.items()
        if name.startswith(("loss.", "decoder.low_res_masks.", "sam.sparse.", "cls_logits"))
    }
    return kept | _evaluation(folder)


def _evaluation(folder: Path) -> dict[str, np.ndarray]:
    """Class logits, maps and 8-bit masks of the eight images, and the metrics printed of them."""
    units = load_file(folder / "units.safetensors")
    kept = {f"units/{name}": value for name, value in units.items() if name.startswith("loss.")}
    record = json.loads((folder / "units.json").read_text())
    for name in record["test"]["order"]:
        kept[f"units/{name}.logits"] = units[f"test.{name}.logits"]
        if f"test.{name}.pred_mask" in units:
            kept[f"units/{name}.forged"] = units[f"test.{name}.pred_mask"] > 0
            kept[f"units/{name}.mask"] = np.rint(units[f"item.{name}.mask"] * 255).astype(np.uint8)
    scalars = record["test"]["scalars"]
    kept["units/names"] = np.array(sorted(scalars))
    kept["units/values"] = np.array([scalars[name] for name in sorted(scalars)])
    return kept


if __name__ == "__main__":
    write("parity_ifdl.npz", condensed)
