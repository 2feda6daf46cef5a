"""The notebook of the documentation runs, and says what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_steps.ipynb"


def test_first_steps_run(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    printed = str([cell.get("outputs") for cell in notebook.cells])
    assert "host.png" in printed
    assert "region" in printed
    assert "broken.jpg" in printed
