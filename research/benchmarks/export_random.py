#!/usr/bin/env python3
"""Exports a configuration with random weights, and checks both graphs on batches of several sizes.

For models whose weights are not at hand, as Loupe on the Perception Encoder L/14: the graphs are
those of a trained model, only their numbers are not. Every parameter gets noise, so that no layer
stays at the zeros that it starts from.

Example:
    python -m research.benchmarks.export_random --config-file configs/loupe_stage2.yaml --size 336
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import nn

from loupe.checkpoint import save_weights
from loupe.commands import export
from loupe.config import load_config
from loupe.export.graph import FORMATS, ONNX, TORCH_EXPORT, example_images, open_graph
from loupe.export.network import INPUT, ExportedLoupe
from research.measuring import machine, parser_of, peak_megabytes, seconds, write_results

TOLERANCE = 1e-4
# Against the standard deviation of a parameter; for parameters that are constant.
_RELATIVE, _ABSOLUTE = 0.1, 0.02
# (B, 3, H, W) -> probability, forgery map, patch map.
Run = Callable[[torch.Tensor], list[np.ndarray]]


def add_noise(model: nn.Module, seed: int = 0) -> None:
    """Moves every parameter, so that the outputs depend on all layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter += noise * (_RELATIVE * spread or _ABSOLUTE)


def runner(graph: Path) -> Run:
    """Runs a graph in onnxruntime."""
    session = open_graph(graph)
    return lambda images: session.run(None, {INPUT: images.numpy()})


def runner_of(module: nn.Module) -> Run:
    """Runs a module of torch.export."""

    @torch.no_grad()
    def run(images: torch.Tensor) -> list[np.ndarray]:
        return [value.numpy() for value in module(images)]

    return run


def compared(network: ExportedLoupe, run: Run, batches: list[int]) -> dict[str, Any]:
    """Largest differences of a graph from PyTorch over batches of these sizes."""
    found: dict[str, Any] = {"probability": 0.0, "forgery map": 0.0}
    for count in batches:
        images = example_images(network.size, count)
        with torch.no_grad():
            probability, forgery_map, _ = (value.numpy() for value in network(images))
        own_probability, own_map, _ = run(images)
        found["probability"] = max(
            found["probability"], float(np.abs(own_probability - probability).max())
        )
        found["forgery map"] = max(found["forgery map"], float(np.abs(own_map - forgery_map).max()))
        found["deviation of the map's pixels"] = float(forgery_map.std())
    return found


def main(words: list[str] | None = None) -> int:
    """Prints the differences; the exit status is 1 if one is above the tolerance."""
    parser = parser_of(__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 3])
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    cfg = load_config(arguments.config_file, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    add_noise(model)
    size = (arguments.size, arguments.size)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "random.safetensors"
        save_weights(model.state_dict(), weights)
        command = ["--config-file", arguments.config_file, "--weights", str(weights)]
        command += ["--size", str(arguments.size), "--output", place]
        command += ["--format", f"{ONNX},{TORCH_EXPORT}", "MODEL.DEVICE", "cpu"]
        taken, status = seconds(export.main, command)
        weights.unlink()
        network = ExportedLoupe(model, size)
        del model
        graph = Path(place) / FORMATS[ONNX]
        told: dict[str, Any] = {
            "configuration": Path(arguments.config_file).name,
            "size": arguments.size,
            "batches": arguments.batches,
            "parameters": sum(one.numel() for one in network.parameters()),
            "exit status of loupe export": status,
            "processor seconds of loupe export": round(taken.processor),
            "megabytes": {
                f.name: round(f.stat().st_size / 1e6) for f in Path(place).glob("model*")
            },
        }
        told["onnxruntime"] = compared(network, runner(graph), arguments.batches)
        module = torch.export.load(Path(place) / FORMATS[TORCH_EXPORT]).module()
        told["torch.export"] = compared(network, runner_of(module), arguments.batches)
    told["peak megabytes"] = round(peak_megabytes())
    told["versions"] = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    write_results(machine() | told, arguments.output)
    for name, value in told.items():
        print(name, value)
    worst = max(
        told[name][what]
        for name in ("onnxruntime", "torch.export")
        for what in ("probability", "forgery map")
    )
    return int(status != 0 or worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
