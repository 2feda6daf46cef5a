"""A list of CVIP's copies, with masks of the copies alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from loupe.data.sources.catalog import load_dataset
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("datasets/prepare_cvip.py")


@pytest.fixture
def cvip(tmp_path: Path) -> Path:
    """Two images; of the second, original and copy touch."""
    rng = np.random.default_rng(0)
    for folder in ("Dataset 0", "Dataset 3"):
        (tmp_path / "CVIP" / folder).mkdir(parents=True)
    for name, left in (("im1", 60), ("im2", 26)):
        original = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        forged, ends = original.copy(), np.zeros((64, 96), np.uint8)
        forged[10:30, left : left + 20] = original[10:30, 6:26]
        ends[10:30, 6:26] = ends[10:30, left : left + 20] = 255
        cv2.imwrite(str(tmp_path / "CVIP" / "Dataset 3" / f"{name}.bmp"), original)
        cv2.imwrite(str(tmp_path / "CVIP" / "Dataset 0" / f"{name}_t.bmp"), forged)
        cv2.imwrite(str(tmp_path / "CVIP" / "Dataset 0" / f"{name}_t_mask.bmp"), ends)
    return tmp_path / "CVIP"


@pytest.mark.parametrize("quality", [None, 80])
def test_the_copy_is_forged_and_its_original_is_not(
    script: ModuleType, cvip: Path, tmp_path: Path, quality: int | None
):
    output = tmp_path / "output"
    assert script.prepare(cvip, output, quality) == ["im2_t.bmp"]
    entries = load_dataset(str(output / "manifest.csv"))
    assert [entry["label"] for entry in entries] == [1, 0, 0]
    mask = cv2.imread(str(output / "masks" / "im1.png"), 0) > 127
    assert mask[10:30, 60:80].all()
    assert mask.sum() == 400
    suffixes = {Path(entry["file_name"]).suffix for entry in entries}
    assert suffixes == {".bmp" if quality is None else ".jpg"}


def test_another_folder_is_refused(script: ModuleType, tmp_path: Path):
    with pytest.raises(ValueError, match="Dataset 3"):
        script.prepare(tmp_path, tmp_path / "output")
