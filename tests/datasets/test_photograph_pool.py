"""Packing photographs into a pool, and reading it."""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from loupe.data.sources.entries import DatasetError
from loupe.data.sources.photographs import gather_photographs
from loupe.data.sources.pool import PhotographPool
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("datasets/photograph_pool.py")


def picture(seed: int, height: int = 150, width: int = 130) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cameras_of(script: ModuleType, split: str, number: int) -> list[str]:
    names = (f"Camera {index}" for index in range(1000))
    return [name for name in names if script.split_of(name, []) == split][:number]


def write_list(path: Path, fields: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([fields, *rows])


@pytest.fixture
def pool(script: ModuleType, tmp_path: Path) -> Path:
    """Two lossless photographs, one of a camera for tests, and an original in a repository."""
    for seed in range(2):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    (camera,) = cameras_of(script, "test", 1)
    rows = [["0.png", "a", ""], ["1.png", "b", camera]]
    write_list(tmp_path / "photographs.csv", ["file", "source", "camera"], rows)
    repository = tmp_path / "clones" / "owner" / "name"
    repository.mkdir(parents=True)
    data = io.BytesIO()
    Image.fromarray(picture(2, 200, 300)).save(data, "JPEG", quality=90)
    (repository / "photo.JPG").write_bytes(data.getvalue())
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    originals = [["owner/name", "HEAD", "photo.JPG", ""], ["owner/gone", "HEAD", "a.jpg", ""]]
    write_list(tmp_path / "full.csv", ["repo", "commit", "path", "camera"], originals)
    script.main(
        [
            str(tmp_path / "photographs.csv"),
            *("--originals", str(tmp_path / "full.csv")),
            *("--repositories", str(tmp_path / "clones")),
            *("--output", str(tmp_path / "pool")),
        ]
    )
    return tmp_path / "pool"


def test_a_pool_holds_the_pixels_of_its_photographs(pool: Path) -> None:
    photographs = gather_photographs("train", str(pool / "train.csv"))
    assert isinstance(photographs, PhotographPool)
    assert [photograph.shape for photograph in photographs] == [(150, 130, 3), (200, 300, 3)]
    np.testing.assert_array_equal(photographs[0], picture(0))
    np.testing.assert_array_equal(PhotographPool(pool / "test.csv")[0], picture(1))
    with pytest.raises(ValueError, match="read-only"):
        photographs[0][0, 0] = 0


def test_originals_are_kept_as_files_and_their_tables_are_read(pool: Path) -> None:
    (row,) = csv.DictReader((pool / "train_originals.csv").open())
    assert row["source"] == "owner/name@HEAD:photo.JPG"
    with Image.open(pool / row["image"]) as original:
        tables = [tuple(original.quantization[number]) for number in (0, 1)]
    assert PhotographPool(pool / "train.csv").tables == (tuple(tables),)


def test_what_is_missing_is_named(script: ModuleType, pool: Path, tmp_path: Path, capsys) -> None:
    clones, layout = tmp_path / "clones", "{owner}/{name}"
    assert len(list(script.read_originals(tmp_path / "full.csv", clones, layout))) == 1
    assert "owner/gone@HEAD:a.jpg: no repository" in capsys.readouterr().err


def test_a_pool_without_its_pixels_is_refused(pool: Path) -> None:
    (pool / "train.pixels").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"train\.pixels: 0 bytes"):
        PhotographPool(pool / "train.csv")


def test_a_camera_model_is_in_one_split(script: ModuleType) -> None:
    assert script.split_of("Canon EOS 6D", []) == script.split_of(" canon eos 6d ", [])
    assert script.split_of("", []) == "train"
    (camera,) = cameras_of(script, "test", 1)
    assert script.split_of(camera, [camera.upper()]) == "train"
    numbers = [len(cameras_of(script, split, 1000)) for split in ("test", "valid", "train")]
    assert 290 < numbers[0] < 390
    assert 120 < numbers[1] < 200
