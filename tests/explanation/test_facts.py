"""Measured facts: each is known, because the test made the difference that it measures."""

from __future__ import annotations

import io
import string

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.explanation.facts import Fact, measure
from loupe.explanation.percentiles import percentile_of, reference
from loupe.explanation.regions import dilated
from loupe.explanation.sentences import ENGLISH
from loupe.structures import Prediction
from loupe.vocabulary import CELLS, SIZES, cell_of, side_of, size_of, tone_of

SIZE = 192
BOX = np.s_[24:88, 104:168]


def photograph(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Texture of all scales with noise, (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), 120.0, np.float32)
    for cells in (4, 12, 40):
        coarse = rng.normal(0, 18, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 2.5, image.shape), 0, 255).astype(np.uint8)


def stored(image: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg(image, quality))))


def jpeg(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def mask_of(place: tuple[slice, slice] = BOX, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[place] = True
    return mask


def prediction(mask: np.ndarray, verdict: str = "forged", patches: bool = True) -> Prediction:
    patch_map = cv2.resize(mask.astype(np.float32), (12, 12), interpolation=cv2.INTER_AREA)
    return Prediction(
        0.97, mask.astype(np.float32), patch_map * 0.9 if patches else None, verdict, ()
    )


def facts_of(image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Fact]:
    mask = mask_of() if mask is None else mask
    return {fact.name: fact for fact in measure(image, prediction(mask))}


def changed(image: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The image with the content in BOX."""
    image = image.copy()
    image[BOX] = content
    return image


def test_place_size_shape_and_tone_are_those_of_the_mask():
    facts = facts_of(changed(photograph(), np.full((64, 64, 3), (170, 90, 80), np.uint8)))
    assert facts["cell"].value == "upper right"
    assert "from (104, 24) to (168, 88)" in facts["cell"].sentence
    assert facts["size"].value == pytest.approx(64 * 64 / SIZE**2)
    assert "large" in facts["size"].sentence
    assert facts["shape"].value == "compact"
    assert facts["tone"].value == "reddish"
    assert facts["cell"].region == 1
    assert facts["regions"].value == 1
    assert facts["regions"].region is None


def test_words_are_what_their_numbers_say():
    mask = np.zeros((90, 90), bool)
    assert {cell_of(m) for m in _cells(mask)} == set(CELLS)
    small, medium, large = (mask_of(np.s_[:side, :side], 100) for side in (15, 25, 60))
    assert [size_of(m) for m in (small, medium, large)] == list(SIZES)
    assert side_of(mask_of(np.s_[:, :10])) == "left half"
    assert side_of(mask_of(np.s_[:, 150:])) == "right half"
    assert side_of(mask_of(np.s_[:, 60:140])) == "both halves"
    tones = [
        tone_of(np.full((8, 8, 3), c, np.uint8), mask_of(size=8, place=np.s_[:, :]))
        for c in ((20, 20, 20), (128, 120, 125), (240, 240, 230), (90, 160, 90))
    ]
    assert tones == ["dark", "grey", "bright", "greenish"]


def _cells(mask: np.ndarray) -> list[np.ndarray]:
    found = []
    for y in range(3):
        for x in range(3):
            one = mask.copy()
            one[30 * y : 30 * y + 30, 30 * x : 30 * x + 30] = True
            found.append(one)
    return found


def test_noise_and_blur_are_found_and_unusual():
    image = photograph()
    rng = np.random.default_rng(1)
    noisy = np.clip(image[BOX] + rng.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)
    plain, more = facts_of(image)["noise"], facts_of(changed(image, noisy))["noise"]
    assert abs(plain.value) < 1
    assert more.value > 3
    assert "more noise" in more.sentence
    assert more.percentile > plain.percentile
    less = facts_of(changed(image, cv2.GaussianBlur(image, (0, 0), 2)[BOX]))
    assert less["sharpness"].value < -0.5
    assert "less sharp" in less["sharpness"].sentence
    assert "less noise" in less["noise"].sentence


def test_blocks_of_another_grid_are_told_from_blocks_of_the_same():
    host = stored(photograph(), 60)
    donor = stored(photograph(7), 60)
    assert "(0, 0)" in facts_of(host)["grid"].sentence
    assert "follows" in facts_of(host)["grid"].sentence
    shifted = facts_of(changed(host, donor[29:93, 35:99]))["grid"]  # 29 - 24 = 5, 35 - 104 = 3 by 8
    assert "from (5, 3) on" in shifted.sentence
    assert shifted.percentile > 90
    assert "No grid" in facts_of(photograph())["grid"].sentence


def test_foreign_quantisation_steps_are_found():
    host, donor = stored(photograph(), 75), photograph(7)
    assert facts_of(host)["steps"].value < 3
    foreign = facts_of(changed(host, donor[BOX]))["steps"]
    assert foreign.value > 3
    assert "worse" in foreign.sentence
    assert "No quantisation steps" in facts_of(photograph())["steps"].sentence


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_is_found_with_its_shift(mirrored: bool):
    image = photograph()
    original = image[112:176, 16:80]
    found = facts_of(changed(image, original[:, ::-1] if mirrored else original))["copy"]
    assert found.value > 0.95
    assert "-88 pixels to the right and +88 down" in found.sentence
    assert ("mirrored" in found.sentence) == mirrored
    assert "No other place" in facts_of(image)["copy"].sentence


def test_verdict_patch_map_and_mask_are_compared():
    image, mask = photograph(), mask_of()
    good = {f.name: f for f in measure(image, prediction(mask))}["agreement"]
    assert good.value > 0.4
    assert "same place" in good.sentence
    elsewhere = prediction(mask)._replace(patch_map=np.eye(12, dtype=np.float32))
    assert "uncertain" in measure(image, elsewhere)[2].sentence
    assert "do not rely" in measure(image, prediction(mask, "authentic"))[2].sentence
    nothing = mask_of(np.s_[:0, :0])
    assert "no region is marked" in measure(image, prediction(nothing))[2].sentence
    facts = measure(image, prediction(nothing, "authentic"))
    assert [f.sentence for f in facts[1:]] == [
        ENGLISH["regions/none"],
        ENGLISH["agreement/empty"],
    ]
    assert "no patch map" in measure(image, prediction(mask, patches=False))[2].sentence


def test_regions_are_numbered_by_size_and_specks_are_left_out():
    mask = mask_of() | mask_of(np.s_[150:180, 10:40]) | mask_of(np.s_[100:103, 3:6])
    facts = measure(photograph(), prediction(mask))
    places = {f.region: f.value for f in facts if f.name == "cell"}
    assert places == {1: "upper right", 2: "lower left"}


def test_sentences_come_from_the_table_that_is_given():
    german = dict(ENGLISH) | {"tone": "Bereich {region} ist {tone}.", "word/grey": "grau"}
    facts = measure(
        np.full((SIZE, SIZE, 3), 128, np.uint8), prediction(mask_of()), sentences=german
    )
    assert "Bereich 1 ist grau." in [fact.sentence for fact in facts]


def test_what_cannot_be_measured_is_said():
    facts = facts_of(np.full((SIZE, SIZE, 3), 128, np.uint8))
    assert facts["copy"].value is None
    assert "cannot be measured" in facts["copy"].sentence
    whole = facts_of(photograph(), np.ones((SIZE, SIZE), bool))
    assert whole["noise"].value is None


def test_a_jpeg_states_its_steps():
    image, file = photograph(), jpeg(photograph(), 75)
    facts = {f.name: f for f in measure(image, prediction(mask_of()), file=file)}
    table = next(iter(Image.open(io.BytesIO(file)).quantization.values()))
    assert facts["file_steps"].value == ", ".join(map(str, table[:6]))
    assert "file_steps" not in {f.name for f in measure(image, prediction(mask_of()), file=b"no")}


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="turned upright"):
        measure(photograph(size=96), prediction(mask_of()))


def test_percentiles_grow_with_the_difference_and_never_reach_all():
    for key, quantiles in reference().items():
        name, size = key.split("/")
        found = [percentile_of(name, size, q) for q in (-1.0, quantiles[100], 1e9)]
        assert found == sorted(found)
        assert found[0] == 0
        assert found[2] == 99.9
    assert {key.split("/")[1] for key in reference()} == set(SIZES)
    assert percentile_of("nothing", "small", 1.0) is None


def test_no_word_of_the_vocabulary_lacks_a_translation():
    fields = {name for text in ENGLISH.values() for _, name, _, _ in string.Formatter().parse(text)}
    assert {"cell", "tone", "size", "shape"} <= fields
    assert {f"word/{word}" for word in (*CELLS, *SIZES)} <= ENGLISH.keys()


def test_a_region_is_dilated_as_opencv_does():
    rng = np.random.default_rng(0)
    for height, width, reach in ((1, 9, 3), (40, 1, 11), (30, 50, 4), (25, 31, 30), (60, 44, 9)):
        mask = rng.random((height, width)) > 0.97
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
        expected = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
        assert np.array_equal(dilated(mask, reach), expected), (height, width, reach)
    assert not dilated(np.zeros((5, 1), bool), 7).any()
