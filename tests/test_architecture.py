"""Imports flow downwards: a package uses only those listed for it; no modules form a cycle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "projects"

MAY_IMPORT = {
    "writing": set(),
    "structures": set(),
    "config": set(),
    "solver": set(),
    "model_zoo": set(),
    "ops": set(),
    "install_detectron2": set(),
    "checkpoint": {"model_zoo"},
    "modeling": {"structures", "ops", "checkpoint"},
    "synthesis": {"structures"},
    "data": {"structures", "synthesis"},
    "evaluation": {"structures"},
    "visualization": {"structures"},
    "doctor": {"structures", "data"},
    "challenge": {"structures", "data", "evaluation"},
    "adaptation": {"structures", "modeling"},
    "inference": {"structures", "config", "modeling", "data", "checkpoint", "visualization"},
    "trainer": {
        "structures",
        "modeling",
        "data",
        "evaluation",
        "solver",
        "adaptation",
        "visualization",
        "checkpoint",
    },
}
# Everything may write files.
for _uses in MAY_IMPORT.values():
    _uses.add("writing")
# The commands compose everything, and nothing imports them.
MAY_IMPORT["commands"] = MAY_IMPORT.keys() - {"install_detectron2"}


def dotted_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted_name(path): path for path in SOURCE.rglob("*.py")}


def imported_modules(module: str) -> set[str]:
    """Absolute names of this project's modules that `module` imports, at any depth of nesting."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join(parents + ([node.module] if node.module else []))
            # A name after `import` is either a module of its own or something defined in `source`.
            submodules = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= submodules or {source}
    return names & MODULES.keys() - {module}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"loupe"}))
def test_imports_point_downwards(module: str):
    package = module.split(".")[1]
    used = {name.split(".")[1] for name in imported_modules(module) if name != "loupe"}
    assert package in MAY_IMPORT, f"{package} is new: say in MAY_IMPORT what it may import"
    assert used <= MAY_IMPORT[package] | {package}


def test_modules_form_no_cycle():
    TopologicalSorter({module: imported_modules(module) for module in MODULES}).prepare()
