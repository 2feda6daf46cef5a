"""Everything about Loupe that needs a GPU, in one call of four minutes and one JSON file.

    python -m research.benchmarks.gpu --output FILE

In order: build of the CUDA operator, its tests (gradcheck, opcheck, CPU = CUDA gradients,
determinism); inference and training steps of whole models with PE-L/14 at 336 px in bfloat16, ours
and the release's (`research.benchmarks.models` says what PYTHONPATH needs for it), ours with a
compiled encoder, too; the operator against rivals. A part that fails is recorded with its error and
the next one runs; nothing starts after the time is up.

results/gpu.json is its first run; docs/ms_deform_attn.md has the table.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from loupe.writing import write_text
from research.measuring import machine, parser_of

ROOT = Path(__file__).parents[2]
LIMIT = 200.0  # Seconds; nothing starts afterwards.
STARTED = perf_counter()
BATCHES = (
    ("inference", 1),
    ("inference", 16),
    ("stage 2", 16),
    ("stage 2", 40),
    ("stage 1", 48),
)
LARGE = 100 << 20  # bytes; above the second-level cache of every GPU named here


def elapsed() -> float:
    """Seconds since the start."""
    return perf_counter() - STARTED


def run_tool(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command from the repository's root; its exit code and the end of what it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return {"exit_code": done.returncode, "output": done.stdout.splitlines()[-40:]}


def build() -> dict[str, Any]:
    """Compile the operator in place for this GPU."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    settings = {"LOUPE_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
    return {"capability": capability} | run_tool(command, 300, **settings)


def tests() -> dict[str, Any]:
    """The operator's tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/ops", "--durations=3"]
    return run_tool(command, 180)


def milliseconds(step: Callable[[int], Any], seconds: float = 0.15, least: int = 20) -> float:
    """Median time of one call on the GPU; `step` gets the number of the call, to rotate buffers."""
    for index in range(min(5, least)):
        step(index)
    torch.cuda.synchronize()
    times = []
    begun = perf_counter()
    while len(times) < least or (perf_counter() - begun < seconds and len(times) < 200):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        step(len(times))
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return round(median(times), 4)


def rivals(dtype: torch.dtype) -> dict[str, Callable[..., torch.Tensor]]:
    """What is installed or can be compiled here, behind the signature of our plain form."""
    from loupe.ops import ms_deform_attn
    from research.benchmarks.deformable_attention_rivals import RIVALS

    found: dict[str, Callable[..., torch.Tensor]] = {"ours": ms_deform_attn}
    found["grid_sample"] = lambda v, s, p, w: RIVALS["grid_sample"](
        v, s, p.to(v.dtype), w.to(v.dtype)
    )

    def with_tensors(
        function: Callable[..., torch.Tensor],
        value: torch.Tensor,
        shapes: list[tuple[int, int]],
        locations: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        sizes = torch.tensor(shapes, device=value.device)
        areas = sizes.prod(-1)
        return function(value, sizes, areas.cumsum(0) - areas, locations, weights)

    if dtype == torch.float32:
        from research.benchmarks.scalar_rival import build as build_scalar

        found["scalar kernel"] = partial(with_tensors, build_scalar().apply)
    if importlib.util.find_spec("deformops"):
        from deformops.registry import msda

        found["deformops"] = partial(
            with_tensors, lambda v, s, f, p, w: msda(v, s, f, p, w.flatten(-2))
        )
    if importlib.util.find_spec("MultiScaleDeformableAttention") and dtype == torch.float32:
        installed = importlib.import_module("MultiScaleDeformableAttention")
        found["MultiScaleDeformableAttention"] = partial(
            with_tensors, lambda v, s, f, p, w: installed.ms_deform_attn_forward(v, s, f, p, w, 1)
        )
    return found


def operator_case(pixels: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and backward times of all rivals on one problem, buffers rotated past the cache."""
    from loupe.ops import ms_deform_attn, ms_deform_attn_fused
    from research.benchmarks.ms_deform_attn import Case, make_inputs, plain_arguments

    inputs = make_inputs(Case("plain", pixels, batch, 1, "encoder"), "cuda", dtype)
    copies = max(2, LARGE // (inputs.value.numel() * inputs.value.element_size()) + 1)
    values = [inputs.value.clone().requires_grad_() for _ in range(copies)]
    _, shapes, locations, weights = plain_arguments(inputs)
    trained = [t.clone().requires_grad_() for t in (locations, weights)]
    row: dict[str, Any] = {}

    def measure(name: str, function: Callable[..., torch.Tensor], points: list) -> None:
        with torch.no_grad():
            forward = milliseconds(lambda i: function(values[i % copies], shapes, *points))
        output = function(values[0], shapes, *points)
        row[name] = {"forward": forward}
        if output.requires_grad:
            gradient = torch.randn_like(output)
            wanted = [values[0], *(p for p in points if p.requires_grad)]
            row[name]["backward"] = milliseconds(
                lambda _: torch.autograd.grad(output, wanted, gradient, retain_graph=True)
            )

    for name, function in rivals(dtype).items():
        try:
            measure(name, function, trained)
        except Exception as error:
            row[name] = {"error": repr(error)[:300]}
    points = [inputs.reference, *(t.requires_grad_() for t in (inputs.offsets, inputs.logits))]
    measure("ours fused", ms_deform_attn_fused, points)
    torch.use_deterministic_algorithms(True)
    measure("ours deterministic", ms_deform_attn, trained)
    torch.use_deterministic_algorithms(False)
    return row


def operator() -> dict[str, Any]:
    """All sizes and types, as far as the time goes."""
    result: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for pixels, batch in ((336, 40), (336, 8), (512, 8)):
            if elapsed() > LIMIT:
                break
            name = f"{pixels} px, batch {batch}, {str(dtype).removeprefix('torch.')}"
            result[name] = operator_case(pixels, batch, dtype)
            torch.cuda.empty_cache()
    return result


def model_row(step: Callable[[int], Any], seconds: float = 1.0) -> dict[str, Any]:
    """Milliseconds of a call of a whole model, and the peak of the GPU's memory."""
    torch.cuda.reset_peak_memory_stats()
    value = step(0)
    row: dict[str, Any] = {"milliseconds": milliseconds(step, seconds, least=3)}
    row["peak_gigabytes"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if isinstance(value, float):
        row |= {"first loss": round(value, 4), "last loss": round(step(1), 4)}
    return row


def guarded_row(make: Callable[[], Callable[[int], Any]]) -> dict[str, Any]:
    """The row, or its error: memory may not suffice for the release."""
    try:
        return model_row(make())
    except Exception as error:
        return {"error": repr(error)[:300]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def released_models() -> dict[str, Any]:
    """The release's inference and steps in bfloat16, in the batches of ours."""
    from research.benchmarks import models, released_model

    model = released_model.build().cuda()
    rows = {}
    for part, size in BATCHES:
        make = partial(models.released_step, model, part, size, "bfloat16", "cuda")
        rows[f"{part}, batch {size}"] = guarded_row(make)
    return rows


def our_models(mode: str = "") -> dict[str, Any]:
    """Ours: plain, with compiled blocks ("blocks"), or the whole encoder as a CUDA graph."""
    from research.benchmarks import models

    rows: dict[str, Any] = {}
    model, built = None, ""
    for part, size in BATCHES:
        if elapsed() > LIMIT:
            break
        kind = "stage 1" if part == "stage 1" else "stage 2"
        if kind != built:
            model, built = models.our_model(part, "cuda"), kind
            vit = model.backbone.vit
            if mode == "blocks":
                for block in vit.blocks:
                    block.compile()
            elif mode == "graph":
                vit.forward_features = torch.compile(vit.forward_features, mode="reduce-overhead")
        make = partial(models.our_step, model, part, size, "bfloat16", "cuda")
        rows[f"{part}, batch {size}"] = guarded_row(make)
    return rows


def main() -> None:
    """Run all parts and write the file after each, so that a stop loses nothing."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="default: all")
    parser.set_defaults(output=Path(__file__).parent / "results" / "gpu.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device; research.benchmarks.ms_deform_attn needs none")
    report: dict[str, Any] = {
        **machine(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "build": build,
        "tests": tests,
        "ours": our_models,
        "release": released_models,
        "ours, compiled blocks": partial(our_models, "blocks"),
        "operator": operator,
        "ours, CUDA graph": partial(our_models, "graph"),
    }
    for name in arguments.parts or parts:
        part = parts[name]
        begun = elapsed()
        if begun > LIMIT:
            report[name] = {"skipped": "the time was up"}
        else:
            try:
                report[name] = part()
            except Exception:
                report[name] = {"error": traceback.format_exc().splitlines()[-8:]}
            report[name]["seconds"] = round(elapsed() - begun, 1)
        text = json.dumps(report, indent=1).replace(str(ROOT), ".")
        write_text(arguments.output, text + "\n")
        print(name, json.dumps(report[name])[:2000], flush=True)


if __name__ == "__main__":
    main()
