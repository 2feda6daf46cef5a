"""Reading configuration files as data: nothing in one is executed, fetched or unbounded.

Detectron2's own `merge_from_file` reads unsafe YAML by default, whose tags call functions, and
follows `_BASE_` to any address. These files are lists of settings, so plain YAML is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY

# A file of ours has 2 kB, and the longest chain of bases three files.
MOST_BYTES = 1_000_000
MOST_FILES = 20
DEEPEST = 16


class ConfigError(ValueError):
    """A configuration that is refused; the message names the file or key, and why."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file and the files it names under `_BASE_`, whose settings it overrides.

    Raises:
        ConfigError: The file is missing, is not plain YAML, or its bases are no local files, lead
            back to themselves or are too many.
    """
    return _read(Path(path), above=(), remaining=iter(range(MOST_FILES)))


def _read(path: Path, above: tuple[Path, ...], remaining: Iterator[int]) -> dict[str, Any]:
    path = path.expanduser()
    if path.resolve() in above:
        raise ConfigError(f"{path}: {BASE_KEY} leads back to the file itself")
    if next(remaining, None) is None:
        raise ConfigError(f"{path}: {BASE_KEY} names more than {MOST_FILES} files")
    settings = _load(path)
    bases = settings.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or "://" in base:
            raise ConfigError(f"{path}: {BASE_KEY} is {base!r}; it must be the path of a file here")
        _merge(_read(path.parent / base, (*above, path.resolve()), remaining), merged)
    _merge(settings, merged)
    return merged


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path}: larger than {MOST_BYTES} bytes; this is no configuration")
    try:
        text = path.read_text(encoding="utf-8")
        _check_plain(path, text)
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path}: holds no settings; write KEY: value, one a line")
    if isinstance(settings.get(BASE_KEY, []), str | list):
        return settings
    raise ConfigError(f"{path}: {BASE_KEY} must be a path or a list of paths")


def _check_plain(path: Path, text: str) -> None:
    """Refuses what plain settings do not need.

    Tags name types to build, aliases let a small file unfold into a huge one, and deep nesting
    exhausts the stack. The events of the parser show them before anything is built. An alias of a
    plain list unfolds into nothing large, and Detectron2 writes one into each `config.yaml`.
    """
    depth = 0
    lists: set[str] = set()
    inside: str | None = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None):
            raise ConfigError(
                f"{path}, line {line}: has the tag {event.tag}; a configuration is data, and tags "
                "can run code. Write the plain value"
            )
        if isinstance(event, yaml.SequenceStartEvent):
            inside = event.anchor
        elif isinstance(event, yaml.SequenceEndEvent) and inside is not None:
            lists.add(inside)
        if not isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent):
            inside = None
        if isinstance(event, yaml.AliasEvent) and event.anchor not in lists:
            raise ConfigError(f"{path}, line {line}: has the alias *{event.anchor}; write it out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{path}, line {line}: nested more than {DEEPEST} deep")


def _merge(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Puts the settings of `source` over those of `target`, in place."""
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value
