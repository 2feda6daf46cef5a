"""Whole models at PE-L/14 and 336 px: inference and training steps, ours against the release.

    python -m research.benchmarks.models --release FOLDER --output FILE
    python -m research.benchmarks.models --only ours --threads 2

Each measurement runs in a process of its own, ours and the release's in turn; a ratio is the median
of the rounds' ratios of processor time, which other programs disturb less than the wall's clock.
Memory is the peak of the process. Random weights, random images, batches of 1 (inference) and 2.
The release's inference is without the losses that it computes there, which counts in its favour.

FOLDER is a checkout of github.com/Kamichanw/Loupe; PYTHONPATH must hold transformers 4.x for it,
and its `src` folder where one part is measured by itself (`--part`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from research.measuring import (
    ROOT,
    machine,
    output_of,
    parser_of,
    peak_megabytes,
    seconds,
    write_results,
)

PARTS = ("inference", "stage 1", "stage 2")
PRECISIONS = ("float32", "bfloat16")
SIDE = 336

Step = Callable[[int], Any]


def batch_of(size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) uint8 and masks (B, H, W); every other image is forged."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(size, SIDE, SIDE)
    masks[::2, SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 1
    return images.to(device), masks.to(device)


def items_of(images: torch.Tensor, masks: torch.Tensor) -> list[dict[str, Any]]:
    """The same batch as our dataset mapper gives it."""
    shared = {"valid_size": (SIDE, SIDE), "height": SIDE, "width": SIDE}
    return [
        {"image": image, "label": float(mask.max()), "mask": mask, "regions": mask.int()} | shared
        for image, mask in zip(images.cpu(), masks.cpu(), strict=True)
    ]


def our_model(part: str, device: str, changes: tuple[Any, ...] = ()) -> nn.Module:
    """Ours with random weights, as the stage's config file builds it, without the box head."""
    from detectron2.modeling import build_model

    import loupe.modeling  # noqa: F401  Registers the meta-architecture with Detectron2.
    from loupe.config import load_config

    stage = 1 if part == "stage 1" else 2
    fixed = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.PERCEPTION_ENCODER.WEIGHTS", ""]
    path = ROOT / "configs" / "released" / f"loupe_stage{stage}.yaml"
    return build_model(load_config(str(path), [*fixed, *changes]))


def our_step(model: nn.Module, part: str, size: int, precision: str, device: str) -> Step:
    """One call of our model: a prediction, or a whole optimiser step."""
    items = items_of(*batch_of(size, device))
    model.train(part != "inference")
    return _step(part, model, precision, device, lambda: model(items))


def released_step(model: nn.Module, part: str, size: int, precision: str, device: str) -> Step:
    """The same of the released model."""
    from research.benchmarks import released_model

    images, masks = batch_of(size, device)
    images = (images.float() - 127.5) / 127.5
    if part == "inference":
        return _step(
            part, model, precision, device, lambda: released_model.predict(model.eval(), images)
        )
    trained = getattr(model, released_model.TRAINED[part])
    model.requires_grad_(False)
    trained.requires_grad_(True)
    trained.train()
    loss = partial(released_model.losses, model, part, images, masks)
    return _step(part, model, precision, device, lambda: {"loss": loss()})


def _step(
    part: str, model: nn.Module, precision: str, device: str, call: Callable[[], Any]
) -> Step:
    dtype = getattr(torch, precision)
    autocast = partial(torch.autocast, device, dtype=dtype, enabled=precision != "float32")
    if part == "inference":

        def predict(_: int) -> Any:
            with torch.no_grad(), autocast():
                return call()

        return predict
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def train(_: int) -> float:
        with autocast():
            losses = call()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(sum(losses.values()))

    return train


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one part, in this process."""
    torch.set_num_threads(arguments.threads)
    part, size = arguments.part, arguments.batch or (1 if arguments.part == "inference" else 2)
    if arguments.only == "ours":
        layers = ["MODEL.PERCEPTION_ENCODER.DEPTH", arguments.layers] if arguments.layers else []
        model = our_model(part, "cpu", (*layers, *arguments.opts))
        step = our_step(model, part, size, arguments.precision, "cpu")
    else:
        from research.benchmarks import released_model

        model = released_model.build(arguments.layers)
        step = released_step(model, part, size, arguments.precision, "cpu")
    step(0)
    taken = [seconds(step, 1 + index)[0] for index in range(arguments.calls)]
    return {
        "processor": round(median(one.processor for one in taken), 3),
        "wall": round(median(one.wall for one in taken), 3),
        "gigabytes": round(peak_megabytes() / 1024, 2),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts of both models in turn, round by round, each in a child process."""
    result: dict[str, Any] = {}
    sides = [arguments.only] if arguments.only else ["release", "ours"]
    for part in arguments.parts:
        for precision in arguments.precisions:
            rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side in sides:
                    rows[side].append(_child(arguments, side, part, precision))
            row: dict[str, Any] = {
                side: {key: median(one[key] for one in taken) for key in taken[0]}
                for side, taken in rows.items()
            }
            if len(sides) == 2:
                pairs = list(zip(rows["release"], rows["ours"], strict=True))
                row["ratio"] = {
                    key: round(median(ours[key] / theirs[key] for theirs, ours in pairs), 3)
                    for key in ("processor", "gigabytes")
                }
            result[f"{part}, {precision}"] = row
            print(f"{part}, {precision}", json.dumps(row), flush=True)
    return result


def _child(arguments: argparse.Namespace, side: str, part: str, precision: str) -> dict[str, float]:
    command = [sys.executable, "-m", "research.benchmarks.models", "--only", side, "--part", part]
    command += ["--precision", precision, "--threads", str(arguments.threads)]
    command += ["--layers", str(arguments.layers)]
    command += ["--calls", str(arguments.calls), "--batch", str(arguments.batch)]
    paths = [str(arguments.release / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"GOMP_SPINCOUNT": "2000", "PYTHONPATH": os.pathsep.join(paths)}
    output = output_of([*command, "--opts", *arguments.opts], f"{side}, {part}", environment)
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Compares, or measures one part where `--part` names it."""
    parser = parser_of(__doc__)
    parser.add_argument("--release", type=Path, default=ROOT / "output" / "release")
    parser.add_argument("--only", choices=("ours", "release"), help="one of the two")
    parser.add_argument("--part", choices=PARTS, help="in this process")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=2, help="of each process")
    parser.add_argument("--batch", type=int, default=0, help="default: 1, and 2 in training")
    parser.add_argument("--layers", type=int, default=0, help="of the encoder; default: all")
    parser.add_argument("--opts", nargs="*", default=[], help="keys of our configuration")
    arguments = parser.parse_args()
    arguments.only = arguments.only or ""
    if arguments.part:
        print(json.dumps(measure(arguments)))
        return
    write_results({**machine(), **compare(arguments)}, arguments.output)


if __name__ == "__main__":
    main()
