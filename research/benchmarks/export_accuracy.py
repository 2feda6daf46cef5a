#!/usr/bin/env python3
"""What graphs of `loupe export`, int8 among them, lose in accuracy against PyTorch.

Windows of SIDE pixels are cut out of a list's images, around the forgery where there is one, and
given to the model and to each graph. The probability is the network's, without calibration.

Example:
    loupe export --output exported --size 256 --quantise dynamic
    python -m research.benchmarks.export_accuracy LIST.csv --graphs exported/*.onnx --side 256
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from loupe.commands.command_line import DEFAULT_CONFIG
from loupe.config import load_config
from loupe.data.images.decoding import read_image
from loupe.data.images.masks import read_mask
from loupe.evaluation.curves import area_under_roc, count_levels, curve_of
from loupe.export.graph import open_graph
from loupe.export.network import INPUT, ExportedLoupe
from loupe.inference import LoupePredictor
from loupe.structures import THRESHOLD
from research.measuring import machine, parser_of, write_results


class Window(NamedTuple):
    """A part of an image: `pixels` (1, 3, S, S) float32, `mask` (S, S) bool."""

    pixels: np.ndarray
    mask: np.ndarray


class Outcome(NamedTuple):
    """What an engine says of a window: probability and forgery map."""

    probability: float
    forgery_map: np.ndarray


def windows_of(table: Path, side: int, most: int) -> list[Window]:
    """Windows of the first `most` forged and authentic images that are large enough."""
    found: list[Window] = []
    counts = {False: 0, True: 0}
    with table.open(newline="") as lines:
        for row in csv.DictReader(lines):
            forged = row["label"] == "1"
            image = read_image(table.parent / row["image"])
            height, width = image.shape[:2]
            if counts[forged] >= most or min(height, width) < side:
                continue
            mask = np.zeros((height, width), bool)
            if row["mask"]:
                mask = read_mask(table.parent / row["mask"]) > THRESHOLD
            rows, columns = np.nonzero(mask) if mask.any() else (range(height), range(width))
            top = _start(int(np.mean(rows)), side, height)
            left = _start(int(np.mean(columns)), side, width)
            place = np.s_[top : top + side, left : left + side]
            pixels = image[place].transpose(2, 0, 1)[None].astype(np.float32)
            found.append(Window(pixels, mask[place]))
            counts[forged] += 1
    return found


def _start(middle: int, side: int, length: int) -> int:
    return min(max(0, middle - side // 2), length - side) // 8 * 8


def summary(windows: list[Window], outcomes: list[Outcome], own: list[Outcome]) -> dict[str, Any]:
    """Accuracy of an engine, and how far it is from PyTorch."""
    forged = np.array([window.mask.any() for window in windows])
    scores = np.array([one.probability for one in outcomes], np.float32)
    f1 = [
        2 * (called & window.mask).sum() / (called.sum() + window.mask.sum())
        for window, one in zip(windows, outcomes, strict=True)
        if window.mask.any()
        for called in [one.forgery_map > THRESHOLD]
    ]
    pairs = list(zip(outcomes, own, strict=True))
    return {
        "image/AUC": round(float(area_under_roc(curve_of(count_levels(scores, forged)))), 4),
        "F1 of forged windows": round(float(np.mean(f1)), 4),
        "largest difference of a probability": max(
            abs(a.probability - b.probability) for a, b in pairs
        ),
        "largest difference of a map": max(
            float(np.abs(a.forgery_map - b.forgery_map).max()) for a, b in pairs
        ),
        "mean difference of maps": float(
            np.mean([np.abs(a.forgery_map - b.forgery_map).mean() for a, b in pairs])
        ),
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Prints the table, and writes it with `--output`."""
    parser = parser_of(__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--graphs", nargs="+", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--most", type=int, default=60, help="forged, and authentic windows")
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG))
    parser.add_argument("--weights")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    predictor = LoupePredictor(load_config(arguments.config_file), arguments.weights)
    network = ExportedLoupe(predictor.model, (arguments.side, arguments.side))
    windows = windows_of(arguments.table, arguments.side, arguments.most)
    own = []
    for window in windows:
        with torch.no_grad():
            probability, forgery_map, _ = network(torch.from_numpy(window.pixels))
        own.append(Outcome(float(probability[0]), forgery_map[0].numpy()))
    told = {"PyTorch": summary(windows, own, own)}
    for graph in arguments.graphs:
        session = open_graph(graph, threads=1)
        outcomes = []
        for window in windows:
            probability, forgery_map, _ = session.run(None, {INPUT: window.pixels})
            outcomes.append(Outcome(float(probability[0]), forgery_map[0]))
        told[graph.name] = summary(windows, outcomes, own)
    counts = {"forged": sum(window.mask.any() for window in windows), "all": len(windows)}
    for name, values in told.items():
        print(name, values)
    found = {"list": arguments.table.parent.name, "windows": counts, "side": arguments.side}
    write_results(machine() | found | {"engines": told}, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
