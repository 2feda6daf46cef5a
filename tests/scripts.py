"""Scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """Imports `tools/NAME.py` or `datasets/NAME.py` by path, as a module of its own each time.

    By path, for other packages install modules named `tools` and `datasets`.
    """
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # NamedTuple looks its module up
    specification.loader.exec_module(module)
    return module
