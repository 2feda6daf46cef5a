"""Sheets of the best, the median and the worst images of a measured detector, and of false alarms.

    python -m research.detector.sheets output/measured/images.csv output/sheets \
        --sets casia_s=casia_s/manifest.csv --cameras output/pool/test_originals.csv

For each set forged images by the F1 of their mask: some of the best, about the median, and of the
worst; authentic ones by their score, highest first. Of the camera photographs the highest scores,
as whole files. Each row shows image, truth and forgery map.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from loupe import load_config
from loupe.inference import LoupePredictor
from loupe.visualization import panel, sheet, text_block
from research.detector.measure import Case, read_case, read_cases
from research.detector.summary import Rows, read_rows
from research.measuring import parser_of

HEIGHT = 160


def chosen(rows: Rows, count: int) -> dict[str, list[str]]:
    """Files of one set by the part of the sheet that shows them."""
    forged, authentic = rows.number("label") == 1, rows.number("label") == 0
    files: dict[str, list[str]] = {}
    if forged.any():
        part = rows.where(forged)
        order = part.text("file")[np.argsort(-part.number("f1"), kind="stable")].tolist()
        start = max(0, (len(order) - count) // 2)
        files["best"] = order[:count]
        files["median"] = order[start : start + count]
        files["worst"] = order[-count:]
    part = rows.where(authentic)
    highest = np.argsort(-part.number("score"), kind="stable")[:count]
    files["false alarms"] = part.text("file")[highest].tolist()
    return files


def row_of(predictor: LoupePredictor, case: Case, title: str) -> np.ndarray:
    """Image, truth and map beside each other, (h, w, 3) uint8, with a line of text below."""
    image, mask = read_case(case)
    prediction = predictor(image)
    size = round(HEIGHT * image.shape[1] / image.shape[0]), HEIGHT
    truth = np.zeros(image.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    shown_map = cv2.resize(
        np.asarray(prediction.forgery_map, np.float32), size, interpolation=cv2.INTER_AREA
    )
    row = panel(small, cv2.resize(truth, size) > 0.5, shown_map, prediction.score)
    line = f"{title}: {case.name}, {prediction.verdict} {prediction.score:.2f}"
    return np.vstack([row, text_block(line, row.shape[1])])


def write_sheet(
    predictor: LoupePredictor, cases: list[Case], rows: Rows, path: Path, count: int
) -> None:
    """Writes the sheet of one set."""
    named = {case.name: case for case in cases}
    panels = [
        row_of(predictor, named[name], title)
        for title, names in chosen(rows, count).items()
        for name in names
    ]
    Image.fromarray(sheet(panels, 2)).save(path, quality=85)


def main(words: list[str] | None = None) -> None:
    """Writes NAME.jpg for each set and cameras.jpg."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("table", type=Path, help="images.csv of research.detector.measure")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--config-file", default="configs/loupe_tiny.yaml")
    parser.add_argument("--weights", help="checkpoint; by default MODEL.WEIGHTS")
    parser.add_argument("--sets", nargs="*", default=[], metavar="NAME=MANIFEST")
    parser.add_argument("--cameras", type=Path, help="manifest of camera files")
    parser.add_argument("--count", type=int, default=6)
    arguments = parser.parse_args(words)
    predictor = LoupePredictor(load_config(arguments.config_file, []), arguments.weights)
    rows = read_rows(arguments.table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    wanted = [(*entry.partition("=")[::2], "as is") for entry in arguments.sets]
    if arguments.cameras:
        wanted.append(("cameras", str(arguments.cameras), "whole"))
    for name, manifest, version in wanted:
        own = rows.where((rows.text("set") == name) & (rows.text("version") == version))
        path = arguments.output / f"{name}.jpg"
        write_sheet(predictor, read_cases(Path(manifest)), own, path, arguments.count)
        print(path)


if __name__ == "__main__":
    main()
