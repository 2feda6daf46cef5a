"""Loupe: was a photograph forged, and where? A Detectron2 project.

The public names load when they are first used, so that `import loupe` is quick and works before
Detectron2 is installed. The first of them registers the meta-architecture and the backbone with
Detectron2.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loupe.config import add_loupe_config, load_config
    from loupe.inference import LoupePredictor, predict
    from loupe.modeling.backbone import PerceptionEncoder
    from loupe.modeling.loupe import Loupe

__version__ = "0.2.0"

__all__ = [
    "Loupe",
    "LoupePredictor",
    "PerceptionEncoder",
    "add_loupe_config",
    "load_config",
    "predict",
]

_HOMES = {
    "Loupe": "loupe.modeling.loupe",
    "LoupePredictor": "loupe.inference",
    "PerceptionEncoder": "loupe.modeling.backbone",
    "add_loupe_config": "loupe.config",
    "load_config": "loupe.config",
    "predict": "loupe.inference",
}


def __getattr__(name: str) -> object:
    """Loads a public name, and with it everything that Detectron2 must know."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loupe' has no attribute {name!r}")
    import_module("loupe.modeling")
    import_module("loupe.checkpoint").register_shipped_weights()
    return getattr(import_module(_HOMES[name]), name)
