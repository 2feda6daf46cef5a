from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.toy import write_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small data set and an empty `output`."""
    write_dataset(tmp_path)
    (tmp_path / "output").mkdir()
    return tmp_path
