"""Models by name: of the model zoo, of a folder that training wrote, of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from loupe.config import load_config
from loupe.inference.verdict import TileRule
from loupe.model_zoo import CONFIGS, FOLDER, SUMS, is_shipped

# Names of the model zoo and their configurations, which name their weights.
PRETRAINED = {"tiny": "loupe_tiny.yaml"}
# What training and Detectron2 call their files, best first.
_WEIGHTS = (
    *("model_best.pth", "model_best.safetensors", "model_final_ema.pth", "model_final.pth"),
    *("model.safetensors", "model.pth"),
)
_CONFIG = "config.yaml"
_TILE_RULES = Path(__file__).with_name("tile_rules.json")


def pretrained(name: str | Path, options: Sequence[str] = ()) -> tuple[CfgNode, str]:
    """The configuration and the weights of a model.

    Raises:
        ValueError: There is no such model.
    """
    if str(name) in PRETRAINED:
        cfg = load_config(CONFIGS / PRETRAINED[str(name)], options)
        return cfg, cfg.MODEL.WEIGHTS
    path = Path(name)
    folder = path if path.is_dir() else path.parent
    weights = _weights_in(path) if path.is_dir() else path
    if weights is None or not weights.is_file():
        raise ValueError(
            f"{name}: there is no such model; give one of {', '.join(PRETRAINED)}, a folder with "
            f"{_CONFIG} and {_WEIGHTS[0]}, or a file of weights"
        )
    if not (folder / _CONFIG).is_file():
        raise ValueError(
            f"{folder}: there is no {_CONFIG} beside the weights; use LoupePredictor(load_config("
            f"FILE), {str(weights)!r})"
        )
    return load_config(folder / _CONFIG, options), str(weights)


def _weights_in(folder: Path) -> Path | None:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    return found[0] if len(found) == 1 else None


def tile_rule_of(weights: str) -> TileRule | None:
    """The rule for cut images of shipped weights whose own file carries none.

    `tile_rules.json` names the weights by their SHA-256, so a rule never meets other weights.
    """
    if not is_shipped(weights) or not (FOLDER / SUMS).is_file():
        return None
    lines = [line.split() for line in (FOLDER / SUMS).read_text().splitlines() if line.strip()]
    digests = {name: digest for digest, name in lines}
    rules = json.loads(_TILE_RULES.read_text(encoding="utf-8"))
    values = rules.get(digests.get(weights.removeprefix("loupe://"), ""))
    return None if values is None else TileRule(**values)
