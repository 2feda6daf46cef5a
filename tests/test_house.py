"""The house rules that a machine can check: sizes, types, and nothing of one person's machine."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "projects" / "loupe"

LONGEST_FILE = 400
LONGEST_FUNCTION = 60

SOURCES = sorted(
    path
    for path in PACKAGE.rglob("*")
    if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"} and path.is_file()
)
RESEARCH = sorted(
    path for folder in ("research", "tools", "datasets") for path in (ROOT / folder).rglob("*.py")
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"] + RESEARCH

FOLDERS = [
    ".ci",
    ".github",
    "research",
    "configs",
    "datasets",
    "docs",
    "projects",
    "tests",
    "tools",
]
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cfg", ".sh", ""}
TEXT_SUFFIXES |= {".h", ".cpp", ".cu", ".cuh", ".csv", ".svg"}

# Hosts that outlive a project. Data sets are where they are, so their documents are exempt.
LINK_HOSTS = {
    "127.0.0.1",
    "arxiv.org",
    "docs.pytorch.org",
    "doi.org",
    "github.com",
    "huggingface.co",
    "keepachangelog.com",
    "opensource.org",
    "semver.org",
    "www.apache.org",
    "www.w3.org",
}
# First folders of absolute paths that exist everywhere, or that stand for "yours" in examples.
COMMON_ROOTS = {"bin", "data", "dev", "etc", "opt", "path", "proc", "sys", "tmp", "usr", "var"}
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'`(=])/([A-Za-z_][\w.-]{2,})/""", re.M)
LINK = re.compile(r"https?://([\w.-]+)")
DOCUMENT = re.compile(r"(?<![\w*<{}-])((?:[\w-]+/|\.\.?/)*[\w-]+\.md)\b")
# Documents that the project's programs write rather than contain.
WRITTEN_DOCUMENTS = {
    # Pages of the documentation site.
    *("changelog.md", "contributing.md", "first_steps.md", "model_card.md", "preparing.md"),
    "NAME.md",
    "scores.md",
    "diagnosis.md",
    "families.md",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_files() -> list[Path]:
    """Every text file of the repository, as far as it belongs to the project."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in files
        if path.suffix in TEXT_SUFFIXES
        and not {"__pycache__", ".git"} & set(path.parts)
        and not any(part.endswith(".egg-info") for part in path.parts)
        and path.name not in {"LICENSE", ".git"}
    )


def assert_none(faults: dict[str, object]) -> None:
    """Fail with one line for each fault, all of them."""
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def untyped(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the function's parts that lack a type; a typed __init__ may omit its None."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    missing = [
        argument.arg
        for position, argument in enumerate(named)
        if argument.annotation is None and not (position == 0 and argument.arg in {"self", "cls"})
    ]
    if function.returns is None and (function.name != "__init__" or len(named) == 1):
        missing.append("the result")
    return missing


def test_no_file_is_longer_than_can_be_read_at_one_sitting():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES + RESEARCH}
    assert_none({name: length for name, length in lengths.items() if length > LONGEST_FILE})


def test_no_function_is_longer_than_a_screen():
    lengths = {
        f"{relative(path)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in PYTHON
        for node in functions(path)
    }
    assert_none({name: length for name, length in lengths.items() if length > LONGEST_FUNCTION})


def test_every_function_is_typed():
    missing = {
        f"{relative(path)}:{node.lineno} {node.name}": untyped(node)
        for path in PYTHON
        for node in functions(path)
    }
    assert_none({name: parts for name, parts in missing.items() if parts})


def test_no_search_path_is_changed():
    assert [relative(path) for path in PYTHON if "sys.path" in path.read_text()] == []


def test_no_file_has_a_name_that_says_nothing():
    empty_names = {"utils.py", "misc.py", "helpers.py", "common.py"}
    assert [relative(path) for path in SOURCES if path.name in empty_names] == []


def test_what_opens_with_its_interpreter_can_be_run():
    assert_none(
        {
            relative(path): "not executable"
            for path in text_files()
            if path.read_text(encoding="utf-8").startswith("#!") and not os.access(path, os.X_OK)
        }
    )


def test_no_file_names_an_absolute_path_of_one_machine():
    found = {
        relative(path): sorted(set(ABSOLUTE_PATH.findall(path.read_text())) - COMMON_ROOTS)
        for path in text_files()
        if path != Path(__file__) and path.name != ".gitignore"  # whose paths start at its folder
    }
    assert_none({name: roots for name, roots in found.items() if roots})


def test_every_link_leads_to_a_lasting_public_host():
    found = {
        relative(path): sorted(set(LINK.findall(path.read_text())) - LINK_HOSTS)
        for path in text_files()
        if "datasets" not in relative(path)
    }
    assert_none({name: hosts for name, hosts in found.items() if hosts})


def test_every_document_that_is_mentioned_exists():
    documents = {path.name for path in text_files() if path.suffix == ".md"} | WRITTEN_DOCUMENTS
    found = {
        relative(path): sorted(
            name
            for name in set(DOCUMENT.findall(path.read_text()))
            if Path(name).name not in documents
        )
        for path in text_files()
    }
    assert_none({name: missing for name, missing in found.items() if missing})


def test_nothing_is_left_to_do():
    marker = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        relative(path)
        for path in text_files()
        if path.name != Path(__file__).name and marker.search(path.read_text())
    ]
    assert found == []


def test_no_retired_word_is_used():
    table = (ROOT / "docs" / "glossary.md").read_text().partition("## Retired words")[2]
    words = [word for line in table.splitlines() for word in re.findall(r"`([^`]+)`", line[:40])]
    retired = re.compile(rf"(?<![A-Za-z])({'|'.join(words)})(s|d|ed|r)?(?![a-z])", re.I)
    assert {"answer", "lest"} <= set(words)
    texts = [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = {
        relative(path): sorted({match[0] for match in retired.finditer(path.read_text())})
        for path in texts
        if path.name != "glossary.md"
    }
    assert_none({name: used for name, used in found.items() if used})
