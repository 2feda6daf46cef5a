"""Parquet files, of paths and of embedded images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.extract_parquet import main
from loupe.data.images.decoding import read_image
from loupe.data.images.masks import read_mask
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import DatasetError


@pytest.fixture
def write(tmp_path):
    """Writes a parquet file of columns."""

    def write(name: str = "set.parquet", **columns: list) -> Path:
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return write


def embed(value: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """File of a flat image."""
    stream = io.BytesIO()
    Image.new(mode, (8, 6), value if mode == "L" else (value,) * 3).save(stream, kind)
    return stream.getvalue()


def test_paths_are_relative_to_the_file(write, tmp_path):
    path = write(image=["a.png", "b.png"], mask=["m/a.png", None])
    forged, authentic = load_dataset(path)
    assert (forged["label"], authentic["label"]) == (1, 0)
    assert forged["file_name"] == str(tmp_path / "a.png")
    assert forged["mask_file_name"] == str(tmp_path / "m/a.png")
    assert authentic["mask_file_name"] is None


def test_the_column_path_stands_in_for_image(write):
    (entry,) = load_dataset(write(path=["a.png"], mask=["Negative"]))
    assert (entry["image_id"], entry["label"]) == ("a.png", 0)


def test_labels_techniques_and_sources_are_taken(write):
    columns = {"image": ["a", "b", "c"], "label": [1, 0, None], "technique": ["x", "", None]}
    entries = load_dataset(write(**columns, source=["s", "t", None]))
    assert [entry["label"] for entry in entries] == [1, 0, None]
    assert [entry["technique"] for entry in entries] == ["x", "", ""]
    assert [entry["source"] for entry in entries] == ["s", "t", ""]


def test_images_alone_are_unlabelled(write):
    (entry,) = load_dataset(write(image=["a.png"]))
    assert entry["label"] is None


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "set.parquet").write_text("text")
    with pytest.raises(DatasetError, match="is no parquet file"):
        load_dataset(tmp_path / "set.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": ["a"]}, "the columns are picture"),
        ({"image": ["a", None]}, "row 1: image is None"),
        ({"image": ["a"], "mask": [3]}, "row 0: image is 'a' and mask is 3"),
        ({"image": ["a"], "label": [2]}, "row 0: the label is 2"),
        ({"image": [b"\x89PNG"]}, "unpack it with datasets/extract_parquet"),
        ({"image": [{"bytes": b"\x89PNG", "path": "a"}]}, "unpack it with"),
    ],
)
def test_faults_are_refused_by_name(write, columns, message):
    path = write(**columns)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "columns", [{"image": ["x" * 1_000_000] * 200}, {"image": [None] * 20_000_000}]
)
def test_a_small_file_that_unpacks_to_much_is_refused_by_its_metadata(tmp_path, columns):
    path = tmp_path / "bomb.parquet"
    options = {"use_dictionary": False, "compression": "zstd", "row_group_size": 20_000_000}
    pq.write_table(pa.table(columns, schema=pa.schema({"image": pa.string()})), path, **options)
    assert path.stat().st_size < 50_000
    with pytest.raises(DatasetError, match=r"bomb\.parquet: \d+ bytes unpack to"):
        load_dataset(path)


def test_embedded_images_are_unpacked_byte_for_byte(write, tmp_path):
    images = [embed(10, "JPEG"), embed(20)]
    path = write(path=["x/a.jpg", "../b.png"], image=images, mask=[embed(255, mode="L"), None])
    main([str(path), "--output", str(tmp_path / "out")])
    forged, authentic = load_dataset(tmp_path / "out")
    assert (forged["label"], authentic["label"]) == (1, 0)
    assert Path(forged["file_name"]).read_bytes() == images[0]
    assert Path(forged["file_name"]).name == "0000000_a.jpg"
    assert Path(authentic["file_name"]).parent == tmp_path / "out/images"
    assert read_image(authentic["file_name"]).max() == 20
    assert read_mask(forged["mask_file_name"]).min() == np.float32(1)


def test_images_as_hugging_face_embeds_them_are_unpacked(write, tmp_path):
    cells = [{"bytes": embed(10), "path": "a.png"}, {"bytes": embed(20), "path": None}]
    path = write(image=cells, label=[1, None])
    main([str(path), "--output", str(tmp_path / "out")])
    entries = load_dataset(tmp_path / "out")
    assert [entry["label"] for entry in entries] == [1, None]
    names = [Path(entry["file_name"]).name for entry in entries]
    assert names == ["0000000_a.png", "0000001.png"]


def test_several_files_are_joined(write, tmp_path):
    paths = [write(f"{n}.parquet", image=[embed(n)], path=["same.png"]) for n in range(2)]
    main([*map(str, paths), "--output", str(tmp_path / "out")])
    assert len(load_dataset(tmp_path / "out")) == 2


def test_a_row_without_an_image_leaves_no_manifest(write, tmp_path):
    path = write(image=[embed(10), b"text"])
    with pytest.raises(SystemExit, match="row 1 embeds no image of a known format"):
        main([str(path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out/manifest.csv").exists()


def test_nothing_is_overwritten(write, tmp_path):
    words = [str(write(image=[embed(10)])), "--output", str(tmp_path / "out")]
    main(words)
    with pytest.raises(SystemExit, match="exists"):
        main(words)
