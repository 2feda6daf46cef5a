"""Saved maps are read as they were saved; large, damaged and strange files are refused by name."""

from __future__ import annotations

import io
import re
import resource
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from loupe.evaluation.map_files import MAX_PIXELS, PredictionError, read_map, regions_to_map
from tests.data.images.files import png

MAP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def grey_png(height: int, width: int, rows: bytes, **options: int) -> bytes:
    return png(height, width, zlib.compress(rows, 9), **{"colour": 0} | options)


def npy(shape: tuple[int, ...], data: bytes = b"", kind: str = "<f4") -> bytes:
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def encode(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def region(counts: object, size: object = (2, 2), score: object = 1.0) -> list[dict]:
    return [{"segmentation": {"size": size, "counts": counts}, "score": score}]


@pytest.mark.parametrize(
    "pixels",
    [MAP, np.repeat(MAP[:, :, None], 3, axis=2), np.repeat(MAP[:, :, None], 4, axis=2)],
    ids=["grey", "RGB", "RGBA"],
)
def test_grey_pictures_are_maps_whatever_their_channels(pixels, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(pixels))
    assert (read_map(tmp_path / "a.png").forgery_map == MAP).all()


def test_sixteen_bits_arrays_and_their_probabilities_are_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(MAP.astype(np.uint16) * 257))
    assert (read_map(tmp_path / "a.png").forgery_map == MAP.astype(np.uint16) * 257).all()
    values = (MAP / 255).astype(np.float32)
    np.save(tmp_path / "a.npy", np.asfortranarray(values)[None])
    assert (read_map(tmp_path / "a.npy").forgery_map == values).all()
    np.savez_compressed(tmp_path / "a.npz", map=values, conf=values, score=0.625, imgsize=(4, 6))
    saved = read_map(tmp_path / "a.npz")
    assert (saved.forgery_map == values).all()
    assert saved.probability == 0.625


def test_run_lengths_are_decoded_as_pycocotools_does():
    generator = np.random.default_rng(0)
    for _ in range(40):
        shape = generator.integers(1, 60, 2)
        forged = np.kron(generator.random(shape) < 0.4, np.ones((3, 5), bool))
        encoded = coco_mask.encode(np.asfortranarray(forged.astype(np.uint8)))
        found = regions_to_map(region(encoded["counts"].decode(), encoded["size"], 0.5))
        np.testing.assert_array_equal(found, forged * np.float32(0.5))
    assert regions_to_map(region([1, 2, 1])).tolist() == [[0, 1], [1, 0]]


ZEROS = bytes(4 * 24)
FAULTY = {
    "text.png": (b"this is text", "not a readable PNG"),
    "empty.png": (b"", "not a readable PNG"),
    "cut.png": (encode(MAP)[:-9], "it is cut short"),
    "short.png": (grey_png(50, 40, bytes(41 * 20)), "not a readable PNG"),
    "large.png": (grey_png(60_000, 60_000, bytes(1000)), r"too many pixels \(60000 x 60000\)"),
    "deep.png": (grey_png(9000, 9000, bytes(1000), depth=16, colour=6), "540 MB to read"),
    "colour.png": (encode(np.dstack([MAP, MAP, MAP[::-1]])), "coloured picture"),
    "text.npy": (b"this is text", "magic string"),
    "pickle.npy": (npy((1,), b"x" * 8, "|O"), "an array of object"),
    "record.npy": (npy((3,), bytes(24), "<c8"), "an array of complex64"),
    "header.npy": (npy((10**6, 10**6)), "which it cannot hold"),
    "cut.npy": (npy((4, 6), ZEROS[:-1]), "which it cannot hold"),
    "text.npz": (b"this is text", "not a zip file"),
    "other.npz": (npz(heat=npy((4, 6), ZEROS)), "not `map`"),
    "header.npz": (npz(map=npy((10**6, 10**6))), "which it cannot hold"),
    "bomb.npz": (npz(map=npy((10**9,)) + bytes(300_000_000)), "unpacks to 300 MB"),
    "score.npz": (npz(map=npy((4, 6), ZEROS), score=bytes(9000)), "unpacks to"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_of_a_file_is_named_with_its_remedy(name, tmp_path):
    content, message = FAULTY[name]
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PredictionError, match=rf"{name}.*{message}.*; save the map again"):
        read_map(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_every_changed_byte_of_a_png_is_found_and_changes_nothing_else(tmp_path):
    data, path = encode(MAP), tmp_path / "a.png"
    for place in range(8, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(PredictionError, match=r"a\.png"):
            read_map(path)


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.npz").mkdir()
    for name in ("endless.png", "missing.png", "folder.npz"):
        with pytest.raises(PredictionError, match=rf"{name}: no regular file"):
            read_map(tmp_path / name)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (region([1, 2]), "do not add up"),
        (region([1, -2, 5]), "negative"),
        (region("zzzz"), "is no number"),
        (region([1, 2, 1], ("a", 2)), "TypeError"),
        (region([0, 10**9], (10**5, 10**5)), "declares 100000 x 100000"),
        (region([0, MAX_PIXELS // 4], (MAX_PIXELS // 4, 1)) * 200, "200 regions of"),
        (region([1, 2, 1]) + region([1, 2, 6], (3, 3)), "several sizes"),
        (region([1, 2, 1], score="high"), "Error"),
        ([{"segmentation": [[1, 2, 3, 4]], "score": 1}], "TypeError"),
    ],
)
def test_regions_that_are_no_run_lengths_are_refused(regions, message):
    with pytest.raises(PredictionError, match=f"no.? run lengths .*{re.escape(message)}"):
        regions_to_map(regions)
