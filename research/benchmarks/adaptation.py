#!/usr/bin/env python3
"""What online adaptation costs: time and memory for each image, against plain inference.

    python -m research.benchmarks.adaptation [--config-file FILE] [--batch 16] [--rounds 7]
        [--output FILE]

Every round runs plain inference and then each variant on the same batch, in turn, in one process;
a ratio is the median of the rounds' ratios, of the processor's clock, which other programs disturb
less than the wall's. The phases say what a step of the whole segmenter is made of. Random weights
and random images; every image is called forged, which is the worst case: an image called authentic
has no mask to be matched and compared. Memory is the peak of a fresh process for each variant, less
what that process had after a plain batch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model

from loupe.adaptation import TestTimeAdaptation, adapted_predictions
from loupe.adaptation.parameters import gradients_for, graph_parameters
from loupe.adaptation.pseudo_labels import pseudo_targets
from loupe.config import load_config
from loupe.structures import LossCounts

VARIANTS: dict[str, dict[str, Any]] = {
    "segmenter": {},
    "pixel_decoder": {"parameters": "pixel_decoder"},
    "norms": {"parameters": "norms"},
    "embeddings": {"parameters": "embeddings"},
    "safe": {"parameters": "norms", "image_weight": "agreement", "patch_temperature": 0.2},
    "segmenter, agreement": {"image_weight": "agreement"},
    "segmenter, anchor": {"anchor": 0.1},
    "segmenter, teacher": {"teacher_decay": 0.9},
    # Never given up, so that every round pays for it.
    "segmenter, rollback": {"rollback": "patch_map", "rollback_patience": 0},
    "embeddings, rollback": {
        "parameters": "embeddings",
        "rollback": "patch_map",
        "rollback_patience": 0,
    },
}


def make_model(config_file: str, opts: list[str]) -> Any:
    """A model with random weights that calls every image forged."""
    torch.manual_seed(0)
    cfg = load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    model = build_model(cfg).eval()
    classify = model.classifier.forward

    def forward(**features: Any) -> Any:
        verdict = classify(**features)
        return verdict._replace(image_logits=torch.full_like(verdict.image_logits, 1.0))

    model.classifier.forward = forward
    return model, cfg.INPUT.SIZE


def make_batch(images: int, size: int) -> list[dict[str, Any]]:
    """Random images as the mapper gives them."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), generator=generator).byte(),
            "valid_size": (size, size),
            "height": size,
            "width": size,
        }
        for _ in range(images)
    ]


@torch.no_grad()
def plain(model: Any, batch: list[dict[str, Any]]) -> None:
    """Plain inference."""
    model(batch)


def adapted(adaptation: TestTimeAdaptation, batch: list[dict[str, Any]]) -> None:
    """One batch of online adaptation: adapt on it, predict it."""
    for _ in adapted_predictions(adaptation, [batch], mode="online", images_per_step=len(batch)):
        pass


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, float, Any]:
    """Processor's and wall's time of one call, and its result."""
    start = time.process_time(), time.perf_counter()
    result = function(*arguments)
    return time.process_time() - start[0], time.perf_counter() - start[1], result


def measure_variants(
    config_file: str, opts: list[str], images: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds for each image and ratios to plain inference; the first round warms up."""
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    adaptations = {
        name: TestTimeAdaptation(make_model(config_file, opts)[0], **settings)
        for name, settings in VARIANTS.items()
    }
    times: dict[str, list[tuple[float, float]]] = {"plain": [], **{name: [] for name in VARIANTS}}
    for _ in range(rounds + 1):
        times["plain"].append(seconds(plain, model, batch)[:2])
        for name, adaptation in adaptations.items():
            times[name].append(seconds(adapted, adaptation, batch)[:2])
    table = {}
    for name, pairs in times.items():
        processor = [pair[0] for pair in pairs[1:]]
        ratios = [own / base[0] for own, base in zip(processor, times["plain"][1:], strict=True)]
        table[name] = {
            "milliseconds_per_image": 1000 * statistics.median(processor) / images,
            "wall_milliseconds_per_image": 1000
            * statistics.median(pair[1] for pair in pairs[1:])
            / images,
            "ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
        }
    return table


def measure_phases(
    config_file: str, opts: list[str], images: int, rounds: int, parameters: str
) -> dict[str, float]:
    """Median milliseconds for each image of what a step is made of."""
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    segmenter = model.segmenter
    phases: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], Any], context: AbstractContextManager) -> Any:
        with context:
            processor, _, result = seconds(function)
        phases.setdefault(name, []).append(processor)
        return result

    counts = LossCounts(images, 1, images, segmenter.num_queries * images)
    for _ in range(rounds + 1):
        perception = timed("encoder and classifier", lambda: model.classify(batch), torch.no_grad())
        inputs, features, verdict = perception
        targets = pseudo_targets(verdict)
        with gradients_for(segmenter, graph_parameters(segmenter, parameters)):
            outputs = timed(
                "segmenter, forward",
                lambda f=features, t=targets: segmenter(f["patches"], t.labels),
                nullcontext(),
            )
            loss = timed(
                "matching and losses",
                lambda o=outputs, t=targets, i=inputs: sum(
                    model.mask_criterion(o, t, counts, i.extents).values()
                ),
                nullcontext(),
            )
            timed("backward", loss.backward, nullcontext())
        segmenter.zero_grad(set_to_none=True)
        timed("answer", lambda p=perception: model.predict(batch, p), torch.no_grad())
    return {k: 1000 * statistics.median(v[1:]) / images for k, v in phases.items()}


def processor() -> str:
    """The processor's name; "" where the system does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def print_tables(results: dict[str, Any]) -> None:
    """Prints the results as Markdown."""
    print("| what adapts | ms an image | ratio to plain (lowest, highest) | memory beyond plain |")
    print("|---|---:|---:|---:|")
    for name, row in results["variants"].items():
        more = results.get("memory", {}).get(name, {}).get("more_megabytes")
        memory = "" if more is None else f"{more:.0f} MB"
        ratio = f"{row['ratio']:.2f} ({row['lowest_ratio']:.2f}, {row['highest_ratio']:.2f})"
        print(f"| {name} | {row['milliseconds_per_image']:.1f} | {ratio} | {memory} |")
    names = list(results["phases"]["segmenter"])
    print("\n| phase, ms an image | " + " | ".join(results["phases"]) + " |")
    print("|---" + "|---:" * len(results["phases"]) + "|")
    for name in names:
        cells = [f"{phases[name]:.1f}" for phases in results["phases"].values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _peak_megabytes() -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _run_alone(variant: str, config_file: str, opts: list[str], images: int, answer: Any) -> None:
    torch.set_num_threads(1)
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    plain(model, batch)
    before = _peak_megabytes()
    adaptation = TestTimeAdaptation(model, **VARIANTS[variant])
    for _ in range(3):
        adapted(adaptation, batch)
    answer.put((before, _peak_megabytes() - before))


def measure_memory(config_file: str, opts: list[str], images: int) -> dict[str, dict[str, float]]:
    """Peak megabytes of plain inference, and by how much each variant exceeds it."""
    context = multiprocessing.get_context("spawn")
    table = {}
    for variant in VARIANTS:
        answer = context.Queue()
        process = context.Process(
            target=_run_alone, args=(variant, config_file, opts, images, answer)
        )
        process.start()
        peak, more = answer.get(timeout=600)
        process.join()
        table[variant] = {"plain_megabytes": peak, "more_megabytes": more}
    return table


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = str(Path(__file__).parents[2] / "configs" / "quick" / "loupe_adapt.yaml")
    parser.add_argument("--config-file", default=default)
    parser.add_argument("--batch", type=int, default=16, help="images in one step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    common = (arguments.config_file, arguments.opts, arguments.batch)
    config_name = Path(arguments.config_file)
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": 1,
        "rounds": arguments.rounds,
        "config": "/".join(config_name.parts[-2:]),
        "images_per_step": arguments.batch,
        "variants": measure_variants(*common, arguments.rounds),
        "phases": {
            name: measure_phases(*common, arguments.rounds, name)
            for name in ("segmenter", "pixel_decoder", "norms", "embeddings")
        },
    }
    if not arguments.no_memory:
        results["memory"] = measure_memory(*common)
    text = json.dumps(results, indent=1)
    print_tables(results)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
