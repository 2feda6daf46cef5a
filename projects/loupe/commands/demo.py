"""Shows all of Loupe on synthetic forgeries: `make demo` runs it on the CPU, in minutes.

    loupe demo --output output/demo

It types what a user would type, and says so: makes synthetic forgeries, trains stages 1 and 2 of
`configs/quick/` on the frozen encoder that comes with the repository, evaluates on photographs that
training never saw, plainly and with test-time adaptation, predicts, and draws. Ends with one table,
metrics.json and sheet.png (input | truth | prediction), and fails if the results are outside the
tolerance of configs/quick/loupe_stage2.yaml.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from loupe.commands.command_line import add_options, positive, run_command
from loupe.model_zoo import CONFIGS
from loupe.writing import write_json

# As in configs/quick/Base-Quick.yaml.
SIZE, DIFFICULTY = 128, 60
SHOWN = (
    "image/AUC",
    "image/Acc",
    "pixel/F1-pooled",
    "pixel/IoU-pooled",
    "pixel/AUC-image",
    "ddl2025/Overall",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--images", type=positive, default=400, help="number of test images")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs all steps and times them."""
    output: Path = arguments.output.resolve()
    opts = [*arguments.opts, "MODEL.DEVICE", "cpu"]
    data = output / "data"
    manifest = data / "test" / "manifest.csv"
    first, second = (str(output / stage / "model_best.pth") for stage in ("stage1", "stage2"))
    test = ["DATASETS.TEST", f"('{manifest}',)", "MODEL.WEIGHTS", second, "MODEL.NEW_PARTS", "[]"]
    start = time.perf_counter()

    if not manifest.exists():
        size = ["--size", str(SIZE), "--difficulty", str(DIFFICULTY)]
        counts = ["--train", "0", "--valid", "0", "--test", str(arguments.images)]
        command("synthesize", "--output", str(data), *counts, *size)
    train("loupe_stage1.yaml", output / "stage1", opts)
    train("loupe_stage2.yaml", output / "stage2", [*opts, "MODEL.WEIGHTS", first])
    # Adaptation first: the plain evaluation may end the demo.
    train("loupe_adapt.yaml", output / "adapted", [*opts, *test], "--eval-only")
    train("loupe_stage2.yaml", output / "plain", [*opts, *test], "--eval-only")
    options = ["--config-file", str(CONFIGS / "quick" / "loupe_stage2.yaml")]
    options += ["--weights", second, "--output", str(output / "predictions")]
    command("predict", *options, str(data / "test" / "images"), *opts)

    draw(manifest, output)
    report: dict[str, Any] = {name: metrics_of(output / name) for name in ("plain", "adapted")}
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    report |= {
        "test_images": arguments.images,
        "seconds": round(time.perf_counter() - start),
        "peak_memory_gb": round(usage.ru_maxrss / 2**20, 2),
    }
    write_json(output / "metrics.json", report)
    print_table(report)
    print(f"\n{report['seconds']} s, largest process {report['peak_memory_gb']} GB")
    print(f"pictures: {output / 'sheet.png'}")
    return 0


def command(name: str, *words: str) -> None:
    """Runs a command as a user would; its failure ends the demo."""
    print("\n$", "loupe", name, *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "loupe", name, *words], check=False)
    if done.returncode:
        raise ValueError(f"loupe {name} ended with status {done.returncode}; see above")


def train(config: str, output: Path, opts: list[str], *flags: str) -> None:
    """Trains or evaluates with one of the quick configurations."""
    path = str(CONFIGS / "quick" / config)
    command("train", "--config-file", path, *flags, "OUTPUT_DIR", str(output), *opts)


def metrics_of(folder: Path) -> dict[str, Any]:
    """Reads the metrics, with their intervals, that an evaluation wrote."""
    (path,) = (folder / "inference").glob("*.json")
    return json.loads(path.read_text())


def draw(manifest: Path, output: Path) -> None:
    """Draws panels of the first test images, three forged for each authentic one."""
    import cv2
    import numpy as np

    from loupe.data.images.decoding import read_image
    from loupe.data.images.masks import read_mask
    from loupe.data.sources.catalog import load_dataset
    from loupe.evaluation.map_files import read_map
    from loupe.visualization import panel, sheet

    with (output / "predictions" / "predictions.csv").open(newline="") as file:
        scores = {Path(row["file"]).name: float(row["probability"]) for row in csv.DictReader(file)}
    entries = load_dataset(str(manifest))
    forged = [entry for entry in entries if entry["label"] == 1][:12]
    authentic = [entry for entry in entries if entry["label"] == 0][:4]
    panels = []
    for entry in [*forged, *authentic]:
        name = Path(entry["file_name"])
        image = read_image(name)
        truth = np.zeros(image.shape[:2], bool)
        if entry["mask_file_name"]:
            truth = read_mask(entry["mask_file_name"]) >= 0.5
        path = output / "predictions" / "maps" / f"{name.stem}.png"
        forgery_map = read_map(path).forgery_map / np.float32(255)
        panels.append(panel(image, truth, forgery_map, scores[name.name]))
    picture = sheet(panels, columns=2)
    cv2.imwrite(str(output / "sheet.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def print_table(report: dict[str, Any]) -> None:
    """Prints the metrics and their 95% intervals, with and without adaptation."""
    print(f"\n{report['test_images']} test images, photographs never trained on:")
    print(f"{'metric':<20}{'plain':>24}{'adapted':>24}")
    for name in SHOWN:
        cells = [report[kind][name] for kind in ("plain", "adapted")]
        text = [f"{c['value']:.3f} [{c['ci95'][0]:.3f}, {c['ci95'][1]:.3f}]" for c in cells]
        print(f"{name:<20}" + "".join(f"{cell:>24}" for cell in text))


main = partial(run_command, "demo", __doc__, add_arguments, run)
