#!/usr/bin/env python3
"""Times one image in PyTorch and in the graphs of `loupe export`, call by call in turn.

Example:
    loupe export --output exported --size 512 --quantise dynamic
    python -m research.benchmarks.export exported/*.onnx --size 512 --threads 1
    python -m research.benchmarks.export exported/*.onnx --size 512 --compiled
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from loupe.commands.command_line import DEFAULT_CONFIG
from loupe.config import load_config
from loupe.export.graph import example_images, open_graph
from loupe.export.network import ExportedLoupe
from loupe.inference import LoupePredictor
from research.measuring import machine, parser_of, take_turns, write_results


def main(words: list[str] | None = None) -> int:
    """Prints the medians, and writes them with `--output`."""
    parser = parser_of(__doc__)
    parser.add_argument("graphs", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="also torch.compile")
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG))
    parser.add_argument("--weights")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    predictor = LoupePredictor(load_config(arguments.config_file), arguments.weights)
    size = (arguments.size, arguments.size)
    images = example_images(size, 1)
    height, width = size
    item = {"image": images[0].byte(), "valid_size": size, "height": height, "width": width}

    def pytorch() -> None:
        with torch.no_grad():
            predictor.model([item])

    calls: dict[str, Callable[[], Any]] = {"PyTorch": pytorch}
    network = ExportedLoupe(predictor.model, size)
    calls["the exported network in PyTorch"] = lambda: network(images)
    if arguments.compiled:
        compiled = torch.compile(network)
        calls["torch.compile of it"] = lambda: compiled(images)
    for file in arguments.graphs:
        session = open_graph(file, threads=arguments.threads)
        calls[file.stem] = lambda session=session: session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        times = take_turns(calls, arguments.rounds)
    # The processor's clock of this process: the wall's says more of what else runs.
    medians = {name: median(one.processor for one in taken) for name, taken in times.items()}
    wall = {name: median(one.wall for one in taken) for name, taken in times.items()}
    for name, seconds in medians.items():
        print(
            f"{name:<34}{1000 * seconds:8.0f} ms of a core, {1000 * wall[name]:8.0f} ms by the "
            f"wall, {medians['PyTorch'] / seconds:5.2f} times"
        )
    told = {
        "size": arguments.size,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "processor seconds": medians,
        "wall seconds": wall,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }
    write_results(machine() | told, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
