"""The configuration: its keys, what they may be, and reading it safely from files."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from loupe.config.files import ConfigError, read_settings
from loupe.config.keys import DETECTRON2_RANGES, KEYS
from loupe.config.ranges import wrong_type

__all__ = ["ConfigError", "add_loupe_config", "check_config", "load_config", "merge_file"]


def add_loupe_config(cfg: CfgNode) -> CfgNode:
    """Adds Loupe's keys to a Detectron2 config, in place, and returns it."""
    for name, key in KEYS.items():
        *groups, last = name.split(".")
        node = cfg
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[last] = copy.copy(key.default)
    return cfg


def load_config(config_file: str | Path, options: Sequence[str] = ()) -> CfgNode:
    """Reads a config file, then `KEY VALUE` pairs, and settles the device.

    Returns:
        A frozen config whose MODEL.DEVICE is a device.

    Raises:
        ConfigError: The file is not plain data, a key is unknown (the message names the nearest
            known one) or lacks a value, or a value makes no sense.
    """
    cfg = add_loupe_config(get_cfg())
    if config_file:
        merge_file(cfg, config_file)
    if len(options) % 2:
        raise ConfigError(
            f"the options: {' '.join(map(str, options))}: each KEY needs a VALUE behind it, and "
            "one has none"
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        _explained(cfg, "the options", {key: value}, partial(cfg.merge_from_list, [key, value]))
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    check_config(cfg)
    cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, config_file: str | Path) -> None:
    """Puts the settings of a file over those of `cfg`, in place.

    Use it in place of `cfg.merge_from_file`, which runs the code that a file holds.

    Raises:
        ConfigError: The file is not plain data, or a key is unknown.
    """
    settings = read_settings(config_file)
    source = str(config_file)
    _explained(cfg, source, settings, lambda: cfg.merge_from_other_cfg(CfgNode(settings)))


def check_config(cfg: CfgNode) -> None:
    """Checks that every setting makes sense.

    Raises:
        ConfigError: Names all settings at fault, their values, and what they may be.
    """
    ranges = {name: key.range for name, key in KEYS.items()} | DETECTRON2_RANGES
    values = {name: _value(cfg, name) for name in ranges}
    faults = [
        f"{name} is {values[name]!r}; it must be {allowed.words}"
        for name, allowed in ranges.items()
        if not allowed.holds(values[name])
    ]
    faults = faults or list(_faults_of_pairs(cfg))
    if faults:
        raise ConfigError("\n".join(faults))


def _faults_of_pairs(cfg: CfgNode) -> Iterator[str]:
    """Settings that make sense alone, but not together."""
    warmup, decay = cfg.SOLVER.WARMUP_FRACTION, cfg.SOLVER.DECAY_FRACTION
    if warmup + decay > 1 + 1e-9:
        yield (
            f"SOLVER.WARMUP_FRACTION {warmup} and SOLVER.DECAY_FRACTION {decay} exceed 1 together"
        )
    if cfg.MODEL.META_ARCHITECTURE == "ForgeryExpert" and cfg.ADAPTATION.MODE != "none":
        yield (
            f"ADAPTATION.MODE is {cfg.ADAPTATION.MODE!r}; it must be 'none': the expert has no "
            "patch map that it could be adapted to"
        )
    if cfg.MODEL.BACKBONE.NAME != "build_perception_encoder":
        return
    encoder = cfg.MODEL.PERCEPTION_ENCODER
    published = re.search(r"patch(\d+)", encoder.NAME)
    patch = encoder.PATCH_SIZE or (int(published[1]) if published else 1)
    if patch > cfg.INPUT.SIZE:
        yield f"INPUT.SIZE is {cfg.INPUT.SIZE}; it must be at least the side of a patch, {patch}"
    if cfg.TEST.TILES.MODE == "on" and cfg.INPUT.RESIZE == "crop":
        yield "TEST.TILES.MODE is on, but INPUT.RESIZE crop shows no whole image; give native"


def _value(cfg: CfgNode, name: str) -> Any:
    node = cfg
    for word in name.split("."):
        node = node[word]
    return node


def _explained(
    cfg: CfgNode, source: str, settings: Mapping[str, Any], merge: Callable[[], None]
) -> None:
    """Merges; names the source of an error, and the nearest known key of an unknown one."""
    try:
        merge()
    except (KeyError, AssertionError, ValueError, TypeError) as error:
        message = str(error.args[0])
        mistyped = re.match(r"Type mismatch .* for config key: (\S+)$", message, re.DOTALL)
        if mistyped:
            key = mistyped[1]
            message = wrong_type(key, _given(settings, key), _value(cfg, key))
            raise ConfigError(f"{source}: {message}") from error
        if isinstance(error, TypeError):  # A key that goes on behind a value.
            message = f"Non-existent key: {next(iter(settings))}"
        _, separator, key = message.partition("key: ")
        near = difflib.get_close_matches(key, list(_known_keys(cfg)), n=1) if separator else []
        hint = f". Did you mean {near[0]}?" if near and near[0] != key else ""
        raise ConfigError(f"{source}: {message}{hint}") from error


def _given(settings: Mapping[str, Any], key: str) -> Any:
    """What a file or the options say for a key, whose groups may be tables or joined by dots."""
    if key in settings:
        return settings[key]
    group, _, rest = key.partition(".")
    return _given(settings[group], rest)


def _known_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _known_keys(value, f"{prefix}{name}.")
