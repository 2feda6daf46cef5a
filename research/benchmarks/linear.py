#!/usr/bin/env python3
"""Float32 linear layers of Loupe on the CPU: PyTorch's own (MKL on x86) against oneDNN.

    python -m research.benchmarks.linear [--threads 1] [--rounds 9] [--output FILE]

Layers of the encoders and the segmenter, and whole models with random weights on one random image
of 336 px. Both ways run in turn in one process; a ratio is the median of the rounds' ratios of
processor time. It says nothing of other processors than the one it runs on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from detectron2.modeling import build_model
from ms_deform_attn import processor
from torch.nn import functional as F

from loupe.config import load_config
from loupe.ops import LINEAR_BACKEND, FastLinear, linear

# Rows, inputs, outputs.
LAYERS = {
    "encoder T, qkv": (441, 192, 576),
    "encoder B, first of the MLP": (441, 768, 3072),
    "encoder L, first of the MLP": (577, 1024, 4096),
    "pixel decoder, projection": (3024, 256, 256),
    "pixel decoder, feed-forward": (3024, 256, 1024),
    "pixel decoder, feed-forward, batch 8": (24192, 256, 1024),
    "mask decoder, feed-forward": (20, 256, 2048),
}
MODELS = {
    "Loupe PE-T": "vit_pe_core_tiny_patch16_384",
    "Loupe PE-B": "vit_pe_core_base_patch16_224",
}


def ratios(plain: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median milliseconds of both and median ratio, after one round to warm up."""
    plain(), fast()
    seconds = []
    for _ in range(rounds):
        begun = process_time()
        plain()
        middle = process_time()
        fast()
        seconds.append((middle - begun, process_time() - middle))
    return {
        "torch_ms": round(1e3 * median(a for a, _ in seconds), 3),
        "onednn_ms": round(1e3 * median(b for _, b in seconds), 3),
        "ratio": round(median(a / b for a, b in seconds), 2),
    }


def measure_layer(rows: int, inputs: int, outputs: int, rounds: int) -> dict[str, Any]:
    """One layer, forward and forward with backward; GFLOP/s of the forward."""
    layer = FastLinear(inputs, outputs)
    x = torch.randn(rows, inputs, requires_grad=True)
    repeats = max(1, 10**8 // (rows * inputs * outputs))

    def repeated(function: Callable[[], torch.Tensor], backward: bool) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                with torch.set_grad_enabled(backward):
                    output = function()
                if backward:
                    output.backward(torch.ones_like(output))

        return run

    ways = (lambda: F.linear(x, layer.weight, layer.bias), lambda: layer(x))
    result: dict[str, Any] = {"shape": [rows, inputs, outputs], "calls": repeats}
    for name, backward in (("forward", False), ("forward_backward", True)):
        result[name] = ratios(*(repeated(way, backward) for way in ways), rounds)
    operations = 2 * rows * inputs * outputs * repeats
    for way in ("torch", "onednn"):
        rate = operations / result["forward"][f"{way}_ms"] / 1e6
        result[f"{way}_gflops"] = round(rate)
    return result


def measure_model(encoder: str, rounds: int) -> dict[str, float]:
    """Inference of a whole model on one image."""
    options = ["MODEL.PERCEPTION_ENCODER.NAME", encoder, "MODEL.PERCEPTION_ENCODER.WEIGHTS", ""]
    options += ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = load_config("configs/loupe_stage2.yaml", options)
    model = build_model(cfg).eval()
    size = cfg.INPUT.SIZE
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    item = {"image": image, "valid_size": (size, size), "height": size, "width": size}

    def run(smallest: float) -> None:
        linear.SMALLEST = smallest
        with torch.no_grad():
            model([item])

    usual = linear.SMALLEST
    return ratios(lambda: run(float("inf")), lambda: run(usual), rounds)


def main() -> None:
    """Measures and prints; writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if not LINEAR_BACKEND.onednn:
        raise SystemExit(
            f"nothing to compare here: {LINEAR_BACKEND.reason}; LOUPE_LINEAR=onednn asks for it"
        )
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "load_before": round(os.getloadavg()[0], 1),
        "layers": {},
        "models": {},
    }
    for name, shape in LAYERS.items():
        report["layers"][name] = measure_layer(*shape, arguments.rounds)
        print(name, report["layers"][name], flush=True)
    for name, encoder in MODELS.items():
        report["models"][name] = measure_model(encoder, arguments.rounds)
        print(name, report["models"][name], flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
