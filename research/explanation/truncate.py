"""Lowers the rank of trained adapters, so that their file is smaller.

    python -m research.explanation.truncate output/explain/run/model_final.pth \
        weights/explain_tiny.safetensors --rank 7

Each product B A of an adapter is replaced by its best approximation of the lower rank (singular
value decomposition), its scale alpha / rank stays. Writes half precision, with the settings that
the smaller adapters belong to: MODEL.EXPLAINER.LORA_RANK and LORA_ALPHA must say the same. Prints
the largest relative error of a product.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from loupe.checkpoint import load_weights, save_weights
from loupe.explanation.adapters import as_settings, as_tensor
from research.measuring import parser_of


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rank", type=int, required=True)
    return parser.parse_args(words)


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Smaller A (rank, in) and B (out, rank), and the relative error of their product."""
    left, values, right = torch.linalg.svd(b.float() @ a.float(), full_matrices=False)
    root = values[:rank].sqrt()
    lost = float(values[rank:].norm() / values.norm().clamp(min=1e-12))
    return root[:, None] * right[:rank], left[:, :rank] * root, lost


def main(words: list[str] | None = None) -> None:
    """Truncates and writes."""
    arguments = parse_arguments(words)
    weights = load_weights(arguments.weights)
    worst = 0.0
    for name in [name for name in weights if ".lora_A." in name]:
        partner = name.replace(".lora_A.", ".lora_B.")
        before = weights[name].shape[0]
        weights[name], weights[partner], lost = truncated(
            weights[name], weights[partner], arguments.rank
        )
        worst = max(worst, lost)
    settings = as_settings(weights["saved_settings"])
    settings["lora_alpha"] *= arguments.rank / before
    weights["saved_settings"] = as_tensor(settings)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_weights(halved, arguments.output)
    print(f"rank {before} to {arguments.rank}: a product loses at most {worst:.1%}; {settings}")


if __name__ == "__main__":
    main()
