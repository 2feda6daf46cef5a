"""Says of each image how probable it is that it was forged, and where.

    tools/predict.py photograph.jpg --output predictions
    tools/predict.py folder --output predictions --config-file FILE --weights FILE

Without a configuration it is the small Loupe that comes with the repository (weights/README.md).

Writes to the output folder, at each image's own size and under its name:

    predictions.csv      file, probability, error (why there is no probability, if so)
    maps/<stem>.png      probability of each pixel, 8 bit, 255 = forged
    masks/<stem>.png     0 or 255 = forged
    overlays/<stem>.png  the image with its map drawn on it

Exit status: 0 = all images predicted, 1 = some were not readable (the table says which and why).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from loupe.config import load_config
from loupe.inference import LoupePredictor, find_images, write_predictions

DEFAULT_CONFIG = Path(__file__).parents[3] / "configs" / "loupe_tiny.yaml"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="an image, or a folder of images")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--config-file", default=str(DEFAULT_CONFIG), help="configuration of the model"
    )
    parser.add_argument("--weights", help="checkpoint; by default MODEL.WEIGHTS")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode (default 1)")
    parser.add_argument("--no-overlays", action="store_true", help="do not draw overlays")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    return parser.parse_intermixed_args(words)


def main(arguments: argparse.Namespace) -> int:
    """Predicts and writes; returns the exit status."""
    names = find_images(arguments.images)
    cfg = load_config(arguments.config_file, arguments.opts)
    predictor = LoupePredictor(cfg, arguments.weights)
    start = time.perf_counter()
    predictions = predictor.predict_files(list(names), arguments.workers)
    done, failed = write_predictions(
        predictions, names, arguments.output, overlays=not arguments.no_overlays
    )
    seconds = time.perf_counter() - start
    print(f"{done} images predicted in {seconds:.1f} s, {failed} not readable: {arguments.output}")
    return 1 if failed else 0
