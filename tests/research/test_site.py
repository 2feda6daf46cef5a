"""What the documentation site is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: .[docs]")
from research import site

ROOT = Path(__file__).parents[2]


def test_links_lead_to_pages_or_become_names():
    text = "[card](../weights/README.md#data) [op](ms_deform_attn.md) [code](../projects/a.py)"
    found = site.relinked(text, Path("docs"))
    assert found == "[card](model_card.md#data) [op](ms_deform_attn.md) code (`projects/a.py`)"
    assert site.relinked("[m](../docs/metrics.md)", Path("weights")) == "[m](metrics.md)"
    assert site.relinked("![d](docs/demo.jpg)", Path()) == "![d](demo.jpg)"
    assert site.relinked("[a](https://arxiv.org/x)", Path()) == "[a](https://arxiv.org/x)"


def test_every_file_of_weights_has_a_row():
    table = site.table_of_weights(ROOT / "weights")
    for line in (ROOT / "weights" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        (row,) = [row for row in table.splitlines() if f"`{name}`" in row]
        assert digest[:16] in row
        assert " M | " in row


def test_every_document_is_a_page_of_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = str(nav)
    documents = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in documents if name not in listed] == []
