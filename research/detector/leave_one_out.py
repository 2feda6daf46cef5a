"""What each of five choices is worth: training without it, beside training with all of them.

    python -m research.detector.leave_one_out output/leave_one_out \
        --weights output/loupe_tiny_copies.safetensors --arms all no-copies
    python -m research.detector.leave_one_out output/leave_one_out --table

Every arm goes on from the same weights, which have seen neither views nor real forgeries nor
controls, for the same number of steps of `configs/pretrain_tiny_real.yaml`, with one thing left
out. It is then measured on camera photographs and on two sets of real forgeries, with raw scores
and with the patch classifier's maps, for no segmenter is trained. An arm may end in `-SEED`: the
table takes the mean of the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from loupe.checkpoint import load_weights, save_weights
from loupe.checkpoint.weights import Weights
from loupe.commands.train import main as train
from loupe.modeling.forensic import patch_embedding
from loupe.writing import markdown_table
from research.detector.measure import main as measure
from research.detector.summary import Rows, forged_mean, image_auc, read_rows, resampled_ends

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain_tiny_real.yaml"
STEM = "forensic-copies"
SEED = 11
VERSIONS = ("whole", "shrunk512", "crop512")
SETS = ("casia_s", "lalonde")
# What stands in place of `&views=1`: the photographs as the versions before saw them, no twins.
_VIEWS, _PLAIN = "&views=1", "&difficulty=100&uncropped=70&reshared=40"
_FOUND_AT = 0.1
_RESAMPLES = 1000


class Arm(NamedTuple):
    """What an arm leaves out.

    Attributes:
        text: what people read.
        branch: of the stem; "" = none.
        training: word in the names of training sets that are left out; "" = none.
        views: whether photographs are seen as people meet them, beside their forged twins.
    """

    text: str
    branch: str = ""
    training: str = ""
    views: bool = True


ARMS = {
    "all": Arm("all five"),
    "no-steps": Arm("without the sense for quantisation steps", branch="quantisation"),
    "no-copies": Arm("without the sense for copies", branch="copies"),
    "no-views": Arm("without views and authentic twins", views=False),
    "no-real": Arm("without real forgeries", training="output/real/"),
    "no-controls": Arm("without authentic images stored as those", training="output/controls/"),
}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--weights", help="checkpoint that every arm goes on from")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="default: all, in turn")
    parser.add_argument("--cameras", type=Path, default=Path("output/pool/test_originals.csv"))
    parser.add_argument("--sets", nargs="*", default=[], metavar="NAME=MANIFEST")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--table", action="store_true", help="print what was measured")
    return parser.parse_args(words)


def arm_of(name: str) -> tuple[Arm, int]:
    """The arm of a name and its seed: `all-12` is the arm `all` with seed 12.

    Raises:
        ValueError: There is no such arm.
    """
    base, _, seed = name.rpartition("-")
    arm, seed = (base, seed) if seed.isdigit() else (name, str(SEED))
    if arm not in ARMS:
        raise ValueError(f"no arm {arm}; they are {', '.join(ARMS)}")
    return ARMS[arm], int(seed)


def training_settings(arm: Arm) -> list[str]:
    """KEY VALUE pairs of the training sets and of how often each gives a batch."""
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    sets = content["DATASETS"]["TRAIN"]
    loader = content["DATALOADER"]
    kept = [i for i, name in enumerate(sets) if not arm.training or arm.training not in name]
    names = [sets[i] if arm.views else sets[i].replace(_VIEWS, _PLAIN) for i in kept]
    settings = ["DATASETS.TRAIN", str(names), "DATASETS.TEST", "()"]
    for key in ("GROUP_SIZES", "GROUP_SHARES"):
        settings += [f"DATALOADER.{key}", str([loader[key][i] for i in kept])]
    return settings


def starting_weights(weights: Weights, arm: Arm) -> Weights:
    """Encoder and classifier, less the branch that an arm leaves out."""
    left_out = ["segmenter."]
    if arm.branch:
        left_out.append(f"backbone.vit.patch_embed.proj.{arm.branch}.")
    return {
        name: value.float()
        for name, value in weights.items()
        if not name.startswith(tuple(left_out))
    }


def run_arm(name: str, arguments: argparse.Namespace) -> None:
    """Trains an arm and measures it; a finished part is passed over."""
    arm, seed = arm_of(name)
    folder = arguments.output / name
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / "model_final_ema.pth"
    # A stem without one of its branches is of no use elsewhere: it has no name of its own.
    stems: dict[str, tuple[str, ...]] = patch_embedding.STEMS
    branches = tuple(branch for branch in stems[STEM] if branch != arm.branch)
    patch_embedding.STEMS = {**stems, STEM: branches}
    try:
        if not final.exists():
            start = folder / "start.safetensors"
            save_weights(starting_weights(load_weights(arguments.weights), arm), start)
            words = ["--config-file", str(CONFIG), *training_settings(arm)]
            words += ["MODEL.WEIGHTS", str(start), "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            words += ["SOLVER.MAX_ITER", str(arguments.steps), "SOLVER.BASE_LR", "0.0005"]
            if train([*words, "SOLVER.EMA_DECAY", "0.99"]):
                raise SystemExit(f"error: the training of {name} failed")
        words = [str(folder / "measured"), "--config-file", str(CONFIG), "--weights", str(final)]
        words += ["--cameras", str(arguments.cameras), "--per-camera", "6"]
        words += ["--versions", *VERSIONS, "--sets", *arguments.sets]
        measure([*words, "--", "TEST.TILES.MODE", "off"])
    finally:
        patch_embedding.STEMS = stems


def found(rows: Rows) -> Callable[[Rows], float]:
    """Share of forged images above the score that 10 of 100 camera photographs reach."""
    level = np.quantile(rows.where(rows.text("set") == "cameras").number("score"), 1 - _FOUND_AT)
    return lambda part: float((part.number("score")[part.number("label") == 1] > level).mean())


class Cell(NamedTuple):
    """One metric of the images of one table."""

    rows: Rows
    metric: Callable[[Rows], float]

    def value(self, chosen: np.ndarray | None = None) -> float:
        """Of all images, or of those chosen."""
        return self.metric(self.rows if chosen is None else self.rows.where(chosen))


def metrics_of(rows: Rows) -> dict[str, Cell]:
    """Every metric of an arm, by name."""
    cells = {}
    cameras = rows.where(rows.text("set") == "cameras")
    for version in VERSIONS:
        part = cameras.where(cameras.text("version") == version)
        cells[f"cameras, {version}: above .5"] = Cell(part, _above_half)
    for name in SETS:
        part = rows.where(rows.text("set") == name)
        cells[f"{name}: image/AUC"] = Cell(part, image_auc)
        cells[f"{name}: found"] = Cell(part, found(rows))
        cells[f"{name}: pixel/AUC-image"] = Cell(part, forged_mean("pixel_auc"))
    return cells


def _above_half(rows: Rows) -> float:
    return float((rows.number("score") >= 0.5).mean())


def difference(pairs: list[tuple[Cell, Cell]]) -> str:
    """What an arm has less than the arm with all, in the mean of the seeds, as text.

    The 95% interval draws source photographs, the same for all seeds and both arms; each seed's own
    difference stands in parentheses.

    Args:
        pairs: Of each seed the arm and the arm with all, measured on the same images.

    Raises:
        ValueError: The images differ.
    """
    files = pairs[0][0].rows.text("file").tolist()
    if any(cell.rows.text("file").tolist() != files for pair in pairs for cell in pair):
        raise ValueError("the arms were measured on different images; measure them again")

    def mean(chosen: np.ndarray) -> float:
        return float(np.mean([arm.value(chosen) - full.value(chosen) for arm, full in pairs]))

    low, high = resampled_ends(pairs[0][0].rows.text("group"), mean, _RESAMPLES)
    own = [arm.value() - full.value() for arm, full in pairs]
    seeds = ", ".join(f"{value:+.3f}" for value in own)
    return f"{np.mean(own):+.3f} [{low:+.3f}, {high:+.3f}] ({seeds})"


def table(output: Path) -> str:
    """Markdown: a row for each metric, with all five and then less each of them."""
    measured: dict[Arm, dict[int, dict[str, Cell]]] = {}
    for path in sorted(output.glob("*/measured/images.csv")):
        arm, seed = arm_of(path.parent.parent.name)
        measured.setdefault(arm, {})[seed] = metrics_of(read_rows(path))
    full = measured[ARMS["all"]]
    others = [arm for arm in ARMS.values() if arm in measured and arm != ARMS["all"]]
    lines = []
    for name in next(iter(full.values())):
        values = [cells[name].value() for cells in full.values()]
        seeds = ", ".join(f"{value:.3f}" for value in values)
        line = [name, f"{np.mean(values):.3f} ({seeds})"]
        for arm in others:
            shared = sorted(measured[arm].keys() & full.keys())
            line.append(difference([(measured[arm][s][name], full[s][name]) for s in shared]))
        lines.append(line)
    return markdown_table(["", ARMS["all"].text, *(arm.text for arm in others)], lines)


def main(words: list[str] | None = None) -> None:
    """Runs the arms, or prints the table."""
    arguments = parse_arguments(words)
    if arguments.table:
        print(table(arguments.output), end="")
        return
    for name in arguments.arms:
        arm_of(name)  # A mistake is told before hours of training.
    for name in arguments.arms:
        run_arm(name, arguments)


if __name__ == "__main__":
    main()
