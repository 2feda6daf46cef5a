"""Condenses what the released model computes into `parity.npz`, small enough for the repository.

    python -m tests.reference.condense_parity FOLDER

FOLDER holds the full record of the released model at a tiny size (84 px, patch 14): its inputs,
every intermediate tensor, every gradient and every random draw, as safetensors. Kept are the
inputs, the draws, the final outputs, all losses, the norm of every gradient and some whole ones.
Parameters are not kept: both sides fill them by name (`released_value` in
tests/modeling/test_parity.py). Names are the released ones, so nothing here depends on the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

# Gradients kept whole: each of another part of the network, and all of them small.
WHOLE = (
    "classifier.fuser.fuse.weight",
    "classifier.patch_classifier.layers.1.weight",
    "segmentor.label_embedding.0",
    "segmentor.label_embedding.1",
    "segmentor.fpn.scale_layers.0.0.conv2.weight",
    "segmentor.fpn.scale_layers.3.0.norm.weight",
    "segmentor.pixel_decoder.level_embed",
    "segmentor.pixel_decoder.encoder.layers.0.self_attn.attention_weights.weight",
    "segmentor.pixel_decoder.encoder.layers.1.self_attn.sampling_offsets.bias",
    "segmentor.mask2former_decoder.queries_features.weight",
    "segmentor.class_predictor.weight",
)
EVALUATIONS = ("eval_test", "eval_nolabels", "eval_gtlabels")
CLASSIFIER_OUTPUTS = (
    "cls.global_logits",
    "cls.fused_logits",
    "cls.patch_logits",
    "backbone.pooled",
)
FINAL = 3  # Predictions are numbered 0, 1, 2 and 3; the last counts.


def condensed(folder: Path) -> dict[str, np.ndarray]:
    """Picks the tensors that a test compares with, under `file/name`."""
    kept = {
        f"inputs/{name}": value for name, value in load_file(folder / "inputs.safetensors").items()
    }
    for file in EVALUATIONS:
        tensors = load_file(folder / f"{file}.safetensors")
        kept[f"{file}/mask_logits"] = tensors[f"seg.mask_logits.call{FINAL}"]
        for call in range(FINAL + 1):
            kept[f"{file}/class_logits.{call}"] = tensors[f"seg.class_logits.call{call}"]
        for name in CLASSIFIER_OUTPUTS:
            kept[f"{file}/{name}"] = tensors[name]
    for file in ("train_cls", "train_seg", "train_tta"):
        kept |= _training(file, load_file(folder / f"{file}.safetensors"))
    units = load_file(folder / "units.safetensors")
    for name, value in units.items():
        if name.startswith(("loss.", "poly.", "tversky.", "post.class", "post.masks")):
            kept[f"units/{name}"] = value
        elif name.startswith("post."):
            kept[f"units/{name}"] = np.packbits(value.astype(bool), axis=1)
            kept[f"units/{name}.width"] = np.int64(value.shape[1])
    return kept


def gradients_of(tensors: dict[str, np.ndarray], whole: Sequence[str]) -> dict[str, np.ndarray]:
    """The norm of every gradient, and those that are kept whole."""
    gradients = {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")}
    norms = [np.linalg.norm(gradients[name].astype(np.float64)) for name in sorted(gradients)]
    kept = {"gradient_names": np.array(sorted(gradients)), "gradient_norms": np.array(norms)}
    return kept | {f"grad.{name}": gradients[name] for name in whole if name in gradients}


def _training(file: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {f"{file}/{name}": value for name, value in gradients_of(tensors, WHOLE).items()}
    for name, value in tensors.items():
        # The two segmentation cases share their draws.
        if name.startswith(("loss.", "match.")) or (
            file == "train_seg" and name.startswith("rand.")
        ):
            kept[f"{file}/{name}"] = value
    return kept


def write(name: str, condense: Callable[[Path], dict[str, np.ndarray]]) -> None:
    """Condenses the folder of the command line, and writes a file beside this one."""
    output = Path(__file__).with_name(name)
    np.savez_compressed(output, **condense(Path(sys.argv[1])))
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    write("parity.npz", condensed)
