"""The rows of every ablation table: which configuration, started from which stage 1, read how."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "ablations"

# Groups of keys that make an ablation; the others (SOLVER, DATASETS, ...) make its size.
CARRIED = ("MODEL", "INPUT")

DETECTION = ("image/AUC", "image/AP", "image/bAcc", "image/ECE")
LOCALISATION = (
    "pixel/F1-pooled",
    "pixel/mIoU2-pooled",
    "pixel/IoU-pooled",
    "pixel/F1-image",
    "pixel/AUC-image",
    "pixel/FPR-authentic",
)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        name: short, also the run's name.
        text: what people read.
        config: file in configs/ablations, without its suffix.
        first: file of the stage 1 it starts from; "" = it is a stage 1 itself.
    """

    name: str
    text: str
    config: str
    first: str = "stage1"


class Table(NamedTuple):
    """One table: the first row is the reference that the others are compared with."""

    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = LOCALISATION


def _row(config: str, text: str, first: str = "stage1") -> Row:
    return Row(config, text, config, first)


REFERENCE = _row("stage2", "reference: token condition, poly focal + Tversky, one mask, no box")

TABLES = {
    "table2": Table(
        "Table 2: the patch-aware classifier (stage 1)",
        (
            _row("stage1", "reference: patch prediction and fusion", ""),
            _row("without_fusion", "without fusion", ""),
            _row(
                "without_patch_prediction", "without patch prediction (and so without fusion)", ""
            ),
        ),
        DETECTION,
    ),
    "table2-from-scratch": Table(
        "Table 2 with an encoder that learns with the classifier (stage 1)",
        (
            _row("from_scratch_stage1", "reference: patch prediction and fusion", ""),
            _row("from_scratch_without_fusion", "without fusion", ""),
            _row(
                "from_scratch_without_patch_prediction",
                "without patch prediction (and so without fusion)",
                "",
            ),
        ),
        DETECTION,
    ),
    "table3": Table(
        "Table 3: conditional queries and training objectives (stage 2)",
        (
            REFERENCE,
            _row("without_condition", "without conditional queries"),
            _row("loss_bce_dice", "BCE + dice"),
            _row("loss_bce_tversky", "BCE + Tversky"),
            _row("loss_poly_dice", "poly focal + dice"),
            _row("with_box", "with the box loss"),
        ),
    ),
    "condition": Table(
        "The condition: direction of the cross-attention, soft or hard, number of embeddings",
        (
            REFERENCE,
            _row("without_condition", "no condition"),
            _row("condition_pixel", "pixels ask the embeddings"),
            _row("condition_soft", "soft in training"),
            _row("condition_tokens_4", "4 embeddings for each verdict"),
            _row("condition_tokens_16", "16 embeddings for each verdict"),
        ),
    ),
    "queries": Table(
        "Number of mask queries",
        tuple(
            _row(f"queries_{n}", f"{n} queries{' (paper, reference)' if n == 20 else ''}")
            for n in (20, 1, 5, 50)
        ),
    ),
    "patches": Table(
        "Side of a patch (both stages)",
        (
            Row("patch_16_stage2", "16 px (reference)", "stage2", "from_scratch_stage1"),
            *(
                _row(f"patch_{side}_stage2", f"{side} px", f"patch_{side}_stage1")
                for side in (8, 32)
            ),
        ),
        ("image/AUC", *LOCALISATION),
    ),
    "targets": Table(
        "Targets: their union or regions",
        (
            REFERENCE,
            _row("regions", "regions (connected components)"),
            _row("regions_with_box", "regions, with the box loss"),
        ),
    ),
}


def carried_options(config: str) -> list[str]:
    """The `KEY VALUE` pairs by which a row differs, to be put on a configuration of another size.

    Args:
        config: file in configs/ablations, without its suffix.

    Returns:
        All MODEL and INPUT keys of the file and of those of its bases that lie beside it.
    """
    content = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    base = content["_BASE_"]
    options = [] if "/" in base else carried_options(Path(base).stem)
    for group in CARRIED:
        options += _flat(content.get(group, {}), f"{group}.")
    return options


def _flat(node: dict[str, object], prefix: str) -> list[str]:
    options = []
    for key, value in node.items():
        name = prefix + key
        if isinstance(value, dict):
            options += _flat(value, f"{name}.")
        elif name != "MODEL.WEIGHTS":
            options += [name, str(value)]
    return options
