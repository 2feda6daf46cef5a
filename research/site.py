"""What the documentation site needs beside its pages (a hook of MkDocs, see mkdocs.yml).

- Documents that lie elsewhere in the repository become pages, and links to them follow.
- The notebook becomes a page, and the model zoo gets its table, made from the files of weights.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
# Documents elsewhere, by the names of their pages.
ELSEWHERE = {
    "model_card.md": "weights/README.md",
    "preparing.md": "datasets/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
NOTEBOOK = "first_steps"
PLACE = "<!-- table of weights -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made."""
    for page, document in ELSEWHERE.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        folder = Path(document).parent
        files.append(File.generated(config, page, content=relinked(text, folder)))
    notebook = json.loads((ROOT / "docs" / f"{NOTEBOOK}.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, f"{NOTEBOOK}.md", content=notebook_text(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes links of a page lead to pages of the site, and puts in the table."""
    if page.file.src_uri in ELSEWHERE or page.file.src_uri == f"{NOTEBOOK}.md":
        return markdown
    return relinked(markdown, Path("docs")).replace(PLACE, table_of_weights(ROOT / "weights"))


def relinked(text: str, folder: Path) -> str:
    """Links of a document in a folder of the repository as links between pages.

    A link to a file that is no page becomes its name as code.
    """
    pages = {document: page for page, document in ELSEWHERE.items()}

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target:
            return match[0]
        place = Path(os.path.normpath(folder / target)).as_posix()
        if place == f"docs/{NOTEBOOK}.ipynb":
            return f"[{words}]({NOTEBOOK}.md)"
        if place in pages:
            return f"[{words}]({pages[place]}{anchor})"
        if Path(place).parent.as_posix() == "docs":
            return f"{picture}[{words}]({Path(place).name}{anchor})"
        return f"{words} (`{place}`)"

    return _LINK.sub(link, text)


def notebook_text(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def table_of_weights(folder: Path) -> str:
    """A row for each file of `SHA256SUMS`: parameters, size, verdict, hash."""
    lines = ["| file | parameters | size | verdict | SHA-256 |", "|---|---:|---:|---|---|"]
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split()
        with safe_open(folder / name, "np") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
            rule = json.loads((file.metadata() or {}).get("verdict", "{}"))
        count = sum(int(_product(shape)) for shape in shapes)
        size = (folder / name).stat().st_size / 1e6
        verdict = rule.get("statement", "carries no rule")
        lines.append(
            f"| `{name}` | {count / 1e6:.2f} M | {size:.1f} MB | {verdict} | `{digest[:16]}`... |"
        )
    return "\n".join(lines)


def _product(shape: list[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result
