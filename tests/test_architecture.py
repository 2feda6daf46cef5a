"""Imports flow downwards: a package uses only those listed for it; no modules form a cycle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "projects"

# Every package may also use `writing`, `child_processes` and `threads`. The commands compose
# everything, and nothing imports them.
MAY_IMPORT = {
    "writing": set(),
    "structures": set(),
    "vocabulary": set(),
    "config": set(),
    "solver": set(),
    "model_zoo": set(),
    "child_processes": set(),
    "threads": set(),
    "ops": set(),
    "install_detectron2": set(),
    "checkpoint": {"model_zoo"},
    "modeling": {"structures", "ops", "checkpoint"},
    "explanation": {
        *("structures", "vocabulary", "model_zoo", "checkpoint", "modeling"),
        *("evaluation", "data.images"),
    },
    "synthesis": {"structures"},
    "data.images": {"structures", "synthesis"},
    "data.sources": {"structures", "synthesis", "data.images"},
    "data.training": {"structures", "data.sources", "data.images"},
    "data.explanations": {
        *("structures", "vocabulary", "synthesis", "explanation"),
        *("data.sources", "data.images", "data.training"),
    },
    "evaluation": {"structures", "vocabulary", "data.images"},
    "visualization": {"structures"},
    "doctor": {"structures", "data.sources", "data.images"},
    "challenge": {"structures", "data.sources", "data.images", "evaluation"},
    "robustness": {
        *("structures", "modeling", "evaluation"),
        *("data.sources", "data.images", "data.training"),
    },
    "adaptation": {"structures", "modeling"},
    "inference": {
        *("structures", "config", "checkpoint", "model_zoo", "modeling"),
        *("evaluation", "visualization"),
        *("data.sources", "data.images", "data.training"),
    },
    "service": {
        *("structures", "config", "model_zoo", "explanation", "inference", "report"),
        "data.images",
    },
    "report": {"structures", "explanation", "inference", "data.images"},
    "export": {"ops", "modeling"},
    "trainer": {
        *("structures", "config", "solver", "checkpoint", "modeling", "adaptation", "evaluation"),
        *("data.sources", "data.images", "data.training", "data.explanations"),
        *("explanation", "visualization"),
    },
}
MAY_IMPORT["commands"] = MAY_IMPORT.keys() - {"install_detectron2", "solver", "synthesis"}
MAY_IMPORT["__main__"] = {"commands"}


def dotted_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The row of the table that a module belongs to: one for each part of `data`."""
    names = module.split(".")[1:]
    return ".".join(names[:2]) if names[0] == "data" else names[0]


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


def test_imports_point_downwards():
    wrong = {}
    for module in MODULES.keys() - {"loupe", "loupe.data"}:
        package = package_of(module)
        used = {package_of(name) for name in imported_modules(module) - {"loupe"}}
        assert package in MAY_IMPORT, f"{package} is new: say in MAY_IMPORT what it may import"
        if not used <= MAY_IMPORT[package] | {package, "writing", "child_processes", "threads"}:
            wrong[module] = used - MAY_IMPORT[package] - {package}
    assert wrong == {}


def test_the_document_has_the_same_table():
    document = (SOURCE.parent / "docs" / "architecture.md").read_text()
    text = document.partition("## Imports run one way")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|(.*?)\| [^|]+ \|$", text, re.M)
    table = {package: set(re.findall(r"`([\w.]+)`", uses)) for package, uses in rows}
    commands = table.pop("commands")
    assert table == {name: uses for name, uses in MAY_IMPORT.items() if name != "commands"}
    assert commands == set()


def test_modules_form_no_cycle():
    TopologicalSorter({module: imported_modules(module) for module in MODULES}).prepare()


def test_the_package_needs_nothing_of_the_rest_of_the_repository():
    outside = re.compile(r"^\s*(from|import) (research|tools|tests|datasets)\b", re.M)
    assert [name for name, path in MODULES.items() if outside.search(path.read_text())] == []
