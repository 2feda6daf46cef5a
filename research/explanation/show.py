"""Prints explanations with picture, map and truth, chosen by a rule, good and bad.

    python -m research.explanation.show --held HELD/photographs.csv --output docs/explanations.jpg

The rule: of the test examples of seed 1 in their order, the first twelve forged and the first eight
authentic ones. Below each picture are the text, its warnings, and what is true.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from loupe import load_config
from loupe.data.explanations.truth import claims_of
from loupe.explanation.writer import Writer
from loupe.model_zoo import CONFIGS
from loupe.visualization import panel, sheet, text_block
from loupe.writing import write_json
from research.explanation.features import Task, predictor, render
from research.measuring import parser_of

FORGED, AUTHENTIC = 12, 8


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--held", required=True)
    parser.add_argument("--config-file", default=str(CONFIGS / "explain_tiny.yaml"))
    parser.add_argument("--weights", default="")
    parser.add_argument("--width", type=int, default=220)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Writes the sheet, and the texts beside it as JSON."""
    arguments = parse_arguments(words)
    options = ["MODEL.WEIGHTS", arguments.weights] if arguments.weights else []
    writer = Writer.from_config(load_config(arguments.config_file, options))
    wanted = {True: FORGED, False: AUTHENTIC}
    panels, rows, index = [], [], 0
    while any(wanted.values()):
        image, mask, technique, _ = render(Task("test", 1, index, arguments.held, True, 0.0, 0.75))
        index += 1
        forged = bool(mask.any())
        if not wanted[forged]:
            continue
        wanted[forged] -= 1
        prediction = predictor()(image)
        start = time.perf_counter()
        text = writer.write(image, prediction)
        seconds = time.perf_counter() - start
        verdict = "forged" if forged else "authentic"
        truth = claims_of(image, mask, verdict, technique if forged else "")
        told = ", ".join(word for word in truth if word)
        size = (arguments.width, arguments.width)
        shown = [
            np.asarray(Image.fromarray(one).resize(size))
            for one in (image, 255 * mask.astype(np.uint8))
        ]
        forgery_map = Image.fromarray(prediction.forgery_map).resize(size)
        row = panel(shown[0], shown[1] > 127, np.asarray(forgery_map), prediction.score)
        lines = [text.text, *text.warnings, f"Truth: {told}"]
        panels.append(np.vstack([row, *(text_block(line, row.shape[1]) for line in lines)]))
        rows.append(
            {
                "index": index - 1,
                "score": prediction.score,
                "verdict": prediction.verdict,
                "text": text.text,
                "warnings": text.warnings,
                "truth": truth._asdict(),
                "seconds": round(seconds, 2),
            }
        )
    Image.fromarray(sheet(panels, 2)).save(arguments.output, quality=80)
    write_json(arguments.output.with_suffix(".json"), rows)


if __name__ == "__main__":
    main()
