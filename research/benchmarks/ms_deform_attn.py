"""Times the deformable-attention operator against the ways to write it in PyTorch.

Everything that is compared is timed in turn in one process, call by call, so that a busy machine
slows all alike; a ratio is the median over rounds of (time of the rival / our time). Each allocator
setting has a process of its own: with glibc's defaults most of grid_sample's time goes into fresh
pages for its temporaries, and what remains with a warm heap is the work itself.

    python -m research.benchmarks.ms_deform_attn          everything, 10 to 20 minutes on two cores
    python -m research.benchmarks.ms_deform_attn --quick  the goals' cases only, half of that
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loupe.ops import BACKENDS, ms_deform_attn, ms_deform_attn_fused
from loupe.ops.backends import describe
from research.benchmarks.deformable_attention_rivals import RIVALS, EncoderLayer, fused_with
from research.measuring import machine, parser_of, write_results

RESULTS = Path(__file__).parent / "results"
WARM_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 36), "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
HEADS, CHANNELS, POINTS = 8, 32, 4
FORMS = ["plain", "fused", "layer"]


class Case(NamedTuple):
    """One row of the table: what is computed, on what, with how many threads."""

    form: str  # plain, fused or layer
    pixels: int  # side of the image
    batch: int
    threads: int
    locations: str  # encoder or uniform

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Levels of the pixel decoder with patches of 14 (336) or 16 (512), coarse first."""
        finest = {336: 48, 512: 64}[self.pixels]
        return [(finest // 4, finest // 4), (finest // 2, finest // 2), (finest, finest)]


class Inputs(NamedTuple):
    """Arguments of the fused form; the plain form's follow from them."""

    value: Tensor
    shapes: list[tuple[int, int]]
    reference: Tensor
    offsets: Tensor
    logits: Tensor


def make_inputs(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
    """Random values; locations as an encoder's at the start of training, or anywhere."""
    generator = torch.Generator().manual_seed(0)
    shapes = case.shapes
    pixels = sum(height * width for height, width in shapes)
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
        for h, w in shapes
    ]
    reference = torch.cat(centres)[None, :, None].expand(case.batch, pixels, len(shapes), 2)
    size = (case.batch, pixels, HEADS, len(shapes), POINTS, 2)
    if case.locations == "uniform":
        sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)
        targets = torch.rand(size, generator=generator)
        offsets = (targets - reference[:, :, None, :, None]) * sizes[:, None]
    else:
        angles = torch.arange(HEADS) * (2 * torch.pi / HEADS)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)[:, None]
        offsets = ring[:, None, None] * steps + torch.randn(size, generator=generator)
    value = torch.randn(case.batch, pixels, HEADS, CHANNELS, generator=generator).to(dtype)
    logits = torch.randn(case.batch, pixels, HEADS, len(shapes) * POINTS, generator=generator)
    tensors = (value, reference.contiguous(), offsets.contiguous(), logits)
    value, reference, offsets, logits = (tensor.to(device) for tensor in tensors)
    return Inputs(value, shapes, reference, offsets, logits)


def plain_arguments(inputs: Inputs) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """The same problem for the unfused operator."""
    sizes = inputs.offsets.new_tensor([[w, h] for h, w in inputs.shapes])
    locations = inputs.reference[:, :, None, :, None] + inputs.offsets / sizes[:, None]
    weights = inputs.logits.softmax(-1).unflatten(-1, (len(inputs.shapes), POINTS))
    return inputs.value, inputs.shapes, locations, weights


# Stamps (wall, processor seconds) before and after inference, and around training's two halves.
Stamps = list[tuple[float, float]]
Step = Callable[[], Stamps]
PARTS = {"inference": (0, 1), "backward": (3, 4), "forward_backward": (2, 4)}


def stamp() -> tuple[float, float]:
    """Now, on the wall and in this process's processor time."""
    return perf_counter(), process_time()


def spent(stamps: Stamps, part: str, clock: int) -> float:
    """Seconds of one part of a step, by the wall (0) or the processor (1)."""
    first, last = PARTS[part]
    return stamps[last][clock] - stamps[first][clock]


def stepper(
    function: Callable[..., Tensor],
    arguments: tuple,
    frozen: tuple[int, ...] = (),
    parameters: tuple[Tensor, ...] = (),
) -> Step:
    """A call that infers once, then goes forward and backward once, and returns its stamps.

    Gradients are those of the arguments that are tensors, but for the frozen ones, and of the
    parameters that the function holds.
    """
    tensors = [
        a.clone().requires_grad_(index not in frozen) if isinstance(a, Tensor) else a
        for index, a in enumerate(arguments)
    ]
    trained = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    trained += parameters

    def step() -> Stamps:
        stamps = [stamp()]
        with torch.no_grad():
            output = function(*tensors)
        stamps.append(stamp())
        gradient = torch.ones_like(output)
        del output
        stamps.append(stamp())
        output = function(*tensors)
        stamps.append(stamp())
        torch.autograd.grad(output, trained, gradient)
        stamps.append(stamp())
        return stamps

    return step


def steps_of(case: Case) -> dict[str, Step]:
    """Our operator and its rivals on one problem."""
    inputs = make_inputs(case)
    if case.form == "layer":
        torch.manual_seed(0)
        layer = EncoderLayer(HEADS, CHANNELS, len(inputs.shapes), POINTS)
        memory = inputs.value.flatten(2)
        position = torch.randn_like(memory)
        operators = {"ours": ms_deform_attn_fused, "grid_sample": fused_with("grid_sample")}
        steps = {
            name: stepper(
                lambda x, attend=attend: layer(
                    x, position, inputs.reference, inputs.shapes, attend
                ),
                (memory,),
                parameters=tuple(layer.parameters()),
            )
            for name, attend in operators.items()
        }
        # The operator alone beside the layer, to know its share.
        steps["operator"] = stepper(ms_deform_attn_fused, tuple(inputs), frozen=(2,))
        return steps
    if case.form == "fused":
        functions = {"ours": ms_deform_attn_fused, "grid_sample": fused_with("grid_sample")}
        return {n: stepper(f, tuple(inputs), frozen=(2,)) for n, f in functions.items()}
    arguments = plain_arguments(inputs)
    functions = {"ours": ms_deform_attn, **RIVALS}
    if case.batch > 1:  # seconds for each call
        del functions["gather"]
    return {name: stepper(function, arguments) for name, function in functions.items()}


def measure(steps: dict[str, Step], seconds: float) -> dict[str, Any]:
    """Rounds of one call each until the time is up, at least three after one to warm up."""
    for step in steps.values():
        step()
    rounds: list[dict[str, Stamps]] = []
    begun = perf_counter()
    while len(rounds) < 3 or (perf_counter() - begun < seconds and len(rounds) < 25):
        rounds.append({name: step() for name, step in steps.items()})
    result: dict[str, Any] = {"rounds": len(rounds)}
    for part in PARTS:
        result[part] = {}
        for name in steps:
            wall, work = ([spent(r[name], part, clock) for r in rounds] for clock in (0, 1))
            ratios = [spent(r[name], part, 0) / spent(r["ours"], part, 0) for r in rounds]
            ours = median(spent(r["ours"], part, 1) for r in rounds)
            result[part][name] = {
                "milliseconds": round(1e3 * median(wall), 3),
                "fastest": round(1e3 * min(wall), 3),
                "ratio": round(median(ratios), 3),
                # Less shaken by other programs than the wall's.
                "processor_milliseconds": round(1e3 * median(work), 3),
                "processor_ratio": round(median(work) / max(ours, 1e-9), 3),
            }
    return result


def kernel_steps(case: Case) -> Iterator[tuple[str, Step]]:
    """The same call with each build of the CPU kernels."""
    arguments = plain_arguments(make_inputs(case))
    step = stepper(ms_deform_attn, arguments)
    for name in ("baseline", "avx2", "avx512"):
        known = name in KERNELS

        def with_kernels(name: str = name) -> Stamps:
            torch.ops.loupe.use_cpu_kernels(name)
            return step()

        if known:
            yield name, with_kernels
    rival = stepper(RIVALS["grid_sample"], arguments)
    yield "grid_sample", rival
    yield "ours", lambda: with_kernels(KERNELS[-1])


KERNELS = {
    "AVX512": ["baseline", "avx2", "avx512"],
    "AVX2": ["baseline", "avx2"],
}.get(torch.backends.cpu.get_cpu_capability(), ["baseline"])


def accuracy(case: Case) -> dict[str, dict[str, float]]:
    """Largest error relative to the largest value, against grid_sample in float64."""
    inputs = make_inputs(case)
    rows = {}
    for dtype in (torch.float32, torch.bfloat16):
        value, shapes, locations, weights = plain_arguments(inputs)
        exact = [t.to(dtype).double().requires_grad_() for t in (value,)]
        exact += [t.double().requires_grad_() for t in (locations, weights)]
        truth = RIVALS["grid_sample"](exact[0], shapes, *exact[1:])
        gradient = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        wanted = [truth, *torch.autograd.grad(truth, exact, gradient.double())]
        ours = [
            value.to(dtype).requires_grad_(),
            *(t.requires_grad_() for t in (locations, weights)),
        ]
        output = ms_deform_attn(ours[0], shapes, *ours[1:])
        got = [output, *torch.autograd.grad(output, ours, gradient)]
        names = ("output", "grad_value", "grad_locations", "grad_weights")
        rows[str(dtype).removeprefix("torch.")] = {
            name: float(f"{((g.double() - w).abs().max() / w.abs().max()).item():.2e}")
            for name, g, w in zip(names, got, wanted, strict=True)
        }
    return rows


def cases(quick: bool, warm: bool, threads: list[int]) -> list[Case]:
    """What is measured; the largest batch only once, since grid_sample takes gigabytes for it."""
    result = [
        Case(form, 336, batch, threads, "encoder")
        for form in FORMS
        for batch in (1, 8)
        for threads in (1, 2)
    ]
    if not quick:
        result += [Case("plain", 336, b, t, "uniform") for b in (1, 8) for t in (1, 2)]
        result += [Case("plain", 512, b, t, "encoder") for b in (1, 8) for t in (1, 2)]
        if not warm:
            result += [Case("plain", 336, 40, 2, "encoder"), Case("fused", 336, 40, 2, "encoder")]
    return [case for case in result if case.threads in threads]


def run_here(arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases in this process, with whatever allocator settings it was started with."""
    rows = []
    warm = arguments.allocator == "warm"
    for case in cases(arguments.quick, warm, arguments.threads):
        if case.form not in arguments.forms:
            continue
        torch.set_num_threads(case.threads)
        row = case._asdict() | {"allocator": arguments.allocator}
        row |= measure(steps_of(case), arguments.seconds)
        rows.append(row)
        print(table_row(row), flush=True)
    result: dict[str, Any] = {"cases": rows}
    torch.set_num_threads(1)
    if BACKENDS["cpu"].compiled:
        builds = {}
        for batch in (1, 8):
            steps = dict(kernel_steps(Case("plain", 336, batch, 1, "encoder")))
            builds[f"batch {batch}"] = measure(steps, 2 * arguments.seconds)
        result["kernels"] = builds
    if not warm:
        result["accuracy"] = accuracy(Case("plain", 336, 1, 1, "encoder"))
    return result


def table_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [row["allocator"], row["form"], row["pixels"], row["batch"], row["threads"]]
    cells.append(row["locations"])
    for part in ("inference", "backward", "forward_backward"):
        measured = row[part]
        ours = measured["ours"]
        cells.append(f"{ours['milliseconds']:.2f} ({ours['processor_milliseconds']:.2f})")
        cells += [
            f"{measured[name]['ratio']:.1f} ({measured[name]['processor_ratio']:.1f})"
            if name in measured
            else "-"
            for name in ("grid_sample", "embedding_bag", "gather")
        ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure with both allocators and write one JSON file."""
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="the goals' cases only")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="1, 2 or both")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--allocator", choices=["default", "warm"], help="only this one, here")
    arguments = parser.parse_args()
    if arguments.allocator:
        result = run_here(arguments)
        write_results(result, arguments.output)
        return
    report: dict[str, Any] = {
        **machine(),
        "torch": torch.__version__,
        "paths": describe().splitlines(),
    }
    for allocator in ("default", "warm"):
        environment = os.environ | (WARM_HEAP if allocator == "warm" else {})
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [
                sys.executable,
                "-m",
                "research.benchmarks.ms_deform_attn",
                "--allocator",
                allocator,
                "--output",
                file.name,
            ]
            command += ["--seconds", str(arguments.seconds)] + ["--quick"] * arguments.quick
            command += ["--threads", *map(str, arguments.threads), "--forms", *arguments.forms]
            subprocess.run(command, env=environment, check=True)
            report[allocator] = json.loads(Path(file.name).read_text())
    write_results(report, arguments.output or RESULTS / "ms_deform_attn_cpu.json")


if __name__ == "__main__":
    main()
