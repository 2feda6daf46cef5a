"""What became slower? Parts of Loupe against a stored table of the same machine, in a minute.

    python -m research.benchmarks.quick             compares; exit status 1 where a part is slower
    python -m research.benchmarks.quick --update    stores this machine's ratios

Each part is timed in turn with a fixed piece of PyTorch (matrix products and a pass over memory) in
one process on one thread. What is compared is the median ratio of processor times, part to fixed
piece, which a busy machine moves less than times. The table has a row for each processor and
version of PyTorch, since ratios differ between them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from loupe.writing import write_json
from research.measuring import parser_of, processor, ratios, take_turns

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).parent / "results" / "quick.json"
FIXED = "fixed piece"
# A part moved if its ratio changed by more than this fraction.
TOLERANCE = 0.15


def fixed_piece() -> Callable[[], Any]:
    """About 30 ms: 3 GFLOP of matrix products, and 8 passes over 16 MB."""
    left, right, memory = torch.randn(768, 768), torch.randn(768, 768), torch.randn(1 << 22)

    def call() -> None:
        for _ in range(4):
            torch.mm(left, right)
        for _ in range(8):
            memory.mul_(1.0)

    return call


def parts() -> dict[str, Callable[[], Any]]:
    """The parts, ready to be called; all of the small model that comes with the code."""
    from loupe.config import load_config
    from loupe.inference import LoupePredictor
    from loupe.ops import ms_deform_attn_fused
    from research.benchmarks.ms_deform_attn import Case, make_inputs

    predictor = LoupePredictor(load_config(str(ROOT / "configs" / "loupe_tiny.yaml")))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (384, 512, 3), generator=generator, dtype=torch.uint8).numpy()
    model = predictor.model
    classified = model.classify([predictor.mapper.map_image(pixels)])
    vit = model.backbone.vit
    images, valid = classified.inputs.images, torch.ones(1, 384, 512, dtype=torch.bool)
    tokens, rope = torch.randn(1, 769, vit.embed_dim), vit.rope.get_embed((24, 32))
    inputs = make_inputs(Case("fused", 336, 1, 1, "encoder"), "cpu", torch.float32)
    trained = [inputs.value, inputs.reference, inputs.offsets, inputs.logits]
    value, reference, offsets, logits = (one.clone().requires_grad_() for one in trained)
    branches = {
        f"stem: {name}": lambda branch=branch: branch(images, valid)
        for name, branch in vit.patch_embed.proj.named_children()
    }

    def attend_and_learn() -> None:
        output = ms_deform_attn_fused(value, inputs.shapes, reference, offsets, logits)
        torch.autograd.grad(output.sum(), [value, offsets, logits])

    without_graph = {
        **branches,
        "encoder block": lambda: vit.blocks[0](tokens, rope=rope),
        "segmenter": lambda: model.segment(classified),
        "deformable attention": lambda: ms_deform_attn_fused(
            inputs.value, inputs.shapes, inputs.reference, inputs.offsets, inputs.logits
        ),
        "whole prediction": lambda: predictor(pixels),
    }
    return {name: torch.no_grad()(call) for name, call in without_graph.items()} | {
        "deformable attention and gradients": attend_and_learn
    }


def moved(ratio: float, stored: float | None) -> str:
    """A word on a part: new, slower, faster or as before.

    Example:
        >>> moved(1.3, 1.0), moved(0.5, 1.0), moved(1.1, 1.0), moved(1.0, None)
        ('slower', 'faster', '', 'new')
    """
    if stored is None:
        return "new"
    change = ratio / stored - 1
    return "slower" if change > TOLERANCE else "faster" if change < -TOLERANCE else ""


def main() -> int:
    """Measures, compares or stores; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--update", action="store_true", help="store instead of comparing")
    parser.set_defaults(output=TABLE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        functions = parts()
    times = take_turns({FIXED: fixed_piece()} | functions, arguments.rounds)
    found = {name: round(median(ratios(times[name], times[FIXED])), 3) for name in functions}
    table = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    machine = f"{processor()}, torch {torch.__version__}"
    stored = table.get(machine, {})
    words = {name: moved(ratio, stored.get(name)) for name, ratio in found.items()}
    print(f"{machine}\n{'part':36}{'ratio':>8}{'stored':>8}")
    for name, ratio in found.items():
        print(f"{name:36}{ratio:8.3f}{stored.get(name, float('nan')):8.3f} {words[name]}")
    if arguments.update:
        write_json(arguments.output, table | {machine: found})
        return 0
    if not stored:
        print("this machine is not in the table; store it with --update before a change")
    return 1 if "slower" in words.values() else 0


if __name__ == "__main__":
    sys.exit(main())
