#!/usr/bin/env python3
"""Times one image in PyTorch and in the graphs of `loupe export`, call by call in turn.

Example:
    loupe export --output exported --size 512 --quantise dynamic
    python -m research.benchmarks.export exported/*.onnx --size 512
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import torch

from loupe.commands.command_line import DEFAULT_CONFIG
from loupe.config import load_config
from loupe.export.graph import example_images, open_graph
from loupe.inference import LoupePredictor
from loupe.writing import write_json
from research.measuring import machine, parser_of, take_turns


def main(words: list[str] | None = None) -> int:
    """Prints the medians, and writes them with `--output`."""
    parser = parser_of(__doc__)
    parser.add_argument("graphs", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG))
    parser.add_argument("--weights")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    predictor = LoupePredictor(load_config(arguments.config_file), arguments.weights)
    size = (arguments.size, arguments.size)
    images = example_images(size, 1)
    height, width = size
    item = {"image": images[0].byte(), "valid_size": size, "height": height, "width": width}

    def pytorch() -> None:
        with torch.no_grad():
            predictor.model([item])

    calls = {"PyTorch": pytorch}
    for file in arguments.graphs:
        session = open_graph(file, threads=1)
        calls[file.stem] = lambda session=session: session.run(None, {"images": images.numpy()})
    times = take_turns(calls, arguments.rounds)
    # The processor's clock of this process: the wall's says more of what else runs.
    medians = {name: median(one.processor for one in taken) for name, taken in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<24}{1000 * seconds:9.0f} ms  {medians['PyTorch'] / seconds:5.2f} times")
    if arguments.output:
        told = {"size": arguments.size, "processor seconds": medians}
        write_json(arguments.output, machine() | told)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
