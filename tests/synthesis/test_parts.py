"""The generator's ingredients: regions, seams, inpainting, upsampling traces, histories."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loupe.data.sources.photographs import make_scene
from loupe.synthesis import inpainting, seams
from loupe.synthesis.enhancement import ENHANCEMENTS
from loupe.synthesis.generated import regenerate
from loupe.synthesis.histories import (
    draw_sharing,
    post_process,
    take_as_is,
    take_donor,
    take_host,
)
from loupe.synthesis.processing import (
    JPEG_420,
    JPEG_444,
    add_noise,
    match_colour,
    save_jpeg,
    white_noise,
)
from loupe.synthesis.regions import (
    LARGEST,
    SMALLEST,
    cluster_object,
    draw_shape,
    find_object,
    flood_object,
    leave_background,
    move,
)
from loupe.synthesis.techniques import Scene, clone

SEAMS = (*seams.PASTED,)
FILLS = (inpainting.fill_with_shift, inpainting.fill_with_patches)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(np.random.default_rng(0), 96, shapes=60)


@pytest.fixture
def disc() -> np.ndarray:
    y, x = np.mgrid[:96, :96]
    return (x - 40) ** 2 + (y - 50) ** 2 < 18**2


def one_object(axes: tuple[int, int] = (30, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A red ellipse on a green gradient, and its mask."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[..., 1] = np.linspace(90, 140, 96, dtype=np.uint8)
    truth = np.zeros((96, 96), np.uint8)
    cv2.ellipse(truth, (46, 50), axes, 20, 0, 360, 1, -1)
    picture[truth == 1] = (200, 40, 40)
    return picture, truth.astype(bool)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(bool), second.astype(bool)
    return (first & second).sum() / (first | second).sum()


def test_drawn_shape_is_neither_empty_nor_everything():
    for seed in range(10):
        assert 0.003 < draw_shape(np.random.default_rng(seed), 64).mean() < 0.6


@pytest.mark.parametrize("way", [flood_object, cluster_object, leave_background])
def test_object_follows_the_edges_of_the_picture(way):
    picture, truth = one_object()
    best = max(overlap(way(np.random.default_rng(seed), picture), truth) for seed in range(12))
    assert best > 0.85


def test_found_objects_are_of_a_forgers_size_and_not_cut_by_the_frame(scene):
    found = [find_object(np.random.default_rng(seed), scene) for seed in range(40)]
    found = [region for region in found if region is not None]
    assert len(found) >= 20
    for region in found:
        frame = region[0].sum() + region[-1].sum() + region[:, 0].sum() + region[:, -1].sum()
        assert SMALLEST <= region.mean() <= LARGEST
        assert frame <= 0.5 * np.sqrt(region.sum())
        assert cv2.connectedComponents(region.astype(np.uint8))[0] == 2


def test_no_object_is_found_where_there_is_none():
    assert find_object(np.random.default_rng(0), np.full((96, 96, 3), 90, np.uint8)) is None


def test_moved_object_shows_the_same_pixels_at_another_place(scene, disc):
    pixels = {tuple(pixel) for pixel in scene[disc]}
    for seed in range(10):
        content, region = move(np.random.default_rng(seed), scene, disc)
        assert 2 * region.sum() >= disc.sum()
        assert {tuple(pixel) for pixel in content[region]} <= pixels


@pytest.mark.parametrize("seam", SEAMS)
def test_seam_leaves_the_host_alone_and_shows_the_content(scene, disc, seam):
    # Poisson's seam needs room for another brightness.
    content = add_noise(np.random.default_rng(1), np.full_like(scene, 128), 16.0)
    image = seam(np.random.default_rng(0), scene, content, disc)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * seams.REACH + 1,) * 2)
    far = ~cv2.dilate(disc.astype(np.uint8), kernel).astype(bool)
    inner = cv2.erode(disc.astype(np.uint8), np.ones((15, 15))).astype(bool)
    np.testing.assert_array_equal(image[far], scene[far])
    detail = [cv2.Laplacian(picture, cv2.CV_32F)[inner].ravel() for picture in (image, content)]
    assert np.corrcoef(*detail)[0, 1] > 0.85


@pytest.mark.parametrize("seam", [seams.join_hard, seams.fade_in, seams.join_poisson])
def test_inner_seams_touch_nothing_outside(scene, disc, seam):
    image = seam(np.random.default_rng(1), scene, scene[::-1].copy(), disc)
    np.testing.assert_array_equal(image[~disc], scene[~disc])


def test_soft_seam_is_halfway_at_the_edge_of_the_mask(disc):
    host, content = np.zeros((96, 96, 3), np.uint8), np.full((96, 96, 3), 200, np.uint8)
    image = seams.fade_across(np.random.default_rng(0), host, content, disc)
    np.testing.assert_array_equal(image[..., 0] > 100, disc)
    assert len(np.unique(image)) > 4


def test_poisson_seam_takes_over_the_hosts_brightness(disc):
    host, content = np.full((96, 96, 3), 60, np.uint8), np.full((96, 96, 3), 200, np.uint8)
    image = seams.join_poisson(np.random.default_rng(0), host, content, disc)
    assert np.abs(image.astype(int) - 60).max() <= 3


def test_poisson_seam_works_at_the_frame(scene):
    for rows, columns in ((slice(30), slice(20)), (slice(2, None), slice(2, None))):
        mask = np.zeros((96, 96), bool)
        mask[rows, columns] = True
        image = seams.join_poisson(np.random.default_rng(0), scene, scene[::-1].copy(), mask)
        np.testing.assert_array_equal(image[~mask], scene[~mask])


@pytest.mark.parametrize("fill", FILLS)
def test_fill_removes_an_object_and_keeps_its_background(fill):
    picture, truth = one_object((10, 7))
    noise = np.random.default_rng(0).integers(-12, 13, picture.shape)
    picture = np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)
    region = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5))).astype(bool)
    filled = fill(np.random.default_rng(3), picture, region)
    np.testing.assert_array_equal(filled[~region], picture[~region])
    assert (filled[region][:, 0] < 60).mean() > 0.95
    # Unlike smoothing methods, patches keep the grain.
    grain = cv2.Laplacian(filled[..., 1], cv2.CV_32F)
    assert grain[region].std() > 0.6 * grain[~region].std()


def test_patches_fill_also_what_covers_nearly_everything(scene):
    region = np.ones((96, 96), bool)
    region[:2] = False
    for seed in range(3):
        filled = inpainting.fill_with_patches(np.random.default_rng(seed), scene, region)
        np.testing.assert_array_equal(filled[~region], scene[~region])


def test_enhancements_change_the_picture_and_keep_its_form(scene):
    before = scene.copy()
    for enhancement in ENHANCEMENTS:
        changed = enhancement(np.random.default_rng(0), scene)
        assert (changed.shape, changed.dtype) == (scene.shape, np.uint8)
        assert (changed != scene).mean() > 0.2, enhancement
        np.testing.assert_array_equal(scene, before)


@pytest.mark.parametrize("size", [64, 75])
def test_regenerated_content_resembles_the_picture_without_its_noise(size):
    rng = np.random.default_rng(0)
    clean = np.tile(np.linspace(60, 180, size)[:, None, None], (1, size, 3)).astype(np.uint8)
    noisy = add_noise(rng, clean, 8.0)
    decoded = regenerate(rng, noisy, easy=True)
    assert decoded.shape == noisy.shape
    assert np.abs(decoded.astype(int) - clean).mean() < 12
    residuals = [cv2.Laplacian(picture, cv2.CV_32F).std() for picture in (decoded, noisy)]
    assert residuals[0] < 0.8 * residuals[1]


def test_regenerated_content_has_a_checkerboard():
    flat = np.full((64, 64, 3), 128, np.uint8)
    steps = []
    for seed in range(20):
        decoded = regenerate(np.random.default_rng(seed), flat, easy=True).astype(float)
        phases = [decoded[16 + y : 48 : 2, 16 + x : 48 : 2].mean() for y, x in np.ndindex(2, 2)]
        steps.append(np.ptp(phases))
    assert np.mean(np.array(steps) > 1) > 0.3


def test_matched_colours_have_the_mean_of_the_host(scene, disc):
    host = np.full((96, 96, 3), (180, 120, 70), np.uint8)
    matched = match_colour(scene, host, disc)
    assert np.abs(matched[disc].mean(axis=0) - host[0, 0]).max() < 8


def test_noise_is_white_and_differs_from_place_to_place():
    rng = np.random.default_rng(0)
    windows = [white_noise(rng, 128, 128) for _ in range(30)]
    stacked = np.stack(windows)
    assert abs(stacked.mean()) < 0.01
    assert abs(stacked.std() - 1) < 0.01
    red, green = windows[0][..., 0], windows[0][..., 1]
    for one, other in ((red, green), (red[:, 1:], red[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03
    assert len({window.tobytes() for window in windows}) == 30


def test_jpeg_keeps_more_colour_without_subsampling():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, ::2] = (255, 0, 0)
    errors = [
        np.abs(save_jpeg(picture, 95, c).astype(int) - picture).mean() for c in (JPEG_420, JPEG_444)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_window_as_is_is_a_part_of_the_photograph_and_lies_on_its_grid():
    y, x = np.mgrid[:120, :160].astype(np.uint8)
    photograph = np.stack([y, x, np.zeros_like(x)], axis=2)
    for seed in range(20):
        window = take_as_is(np.random.default_rng(seed), photograph, 64, aligned=True)
        top, left, _ = (int(value) for value in window[0, 0])
        assert (top % 8, left % 8) == (0, 0)
        np.testing.assert_array_equal(window, photograph[top : top + 64, left : left + 64])


def test_half_of_the_hosts_are_windows_as_they_are_and_none_without_difficulty():
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    values = {tuple(pixel) for pixel in photograph.reshape(-1, 3)}

    def untouched(difficulty: float) -> int:
        hosts = [take_host(rng, [photograph], 72, difficulty)[0] for _ in range(60)]
        return sum({tuple(pixel) for pixel in host.reshape(-1, 3)} <= values for host in hosts)

    assert 18 <= untouched(1.0) <= 42
    assert untouched(0.0) == 0


def test_uncropped_hosts_have_their_blocks_at_the_corner():
    """Pixels bend at the borders of blocks more than elsewhere."""
    rng = np.random.default_rng(0)
    photograph = cv2.GaussianBlur(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8), (0, 0), 2)
    photograph = save_jpeg(cv2.normalize(photograph, None, 30, 220, cv2.NORM_MINMAX), 60)

    def corner_share(uncropped: float) -> float:
        found = []
        for _ in range(40):
            host = take_host(rng, [photograph], 96, 1.0, uncropped)[0].astype(np.float32)
            bends = np.abs(np.diff(host.mean(axis=2), 3, axis=1)).mean(axis=0)[:88]
            found.append(int(bends.reshape(-1, 8).mean(axis=0).argmax()) == 6)
        return float(np.mean(found))

    assert corner_share(1.0) > 0.85
    assert corner_share(0.0) < 0.6


def test_what_is_shared_once_more_is_shrunk_or_stored_or_both():
    rng = np.random.default_rng(0)
    drawn = [draw_sharing(rng) for _ in range(400)]
    kinds = [(scale < 1, stored) for scale, stored in drawn]
    assert (False, False) not in kinds
    assert all(kinds.count(kind) > 40 for kind in ((True, False), (False, True), (True, True)))
    assert all(0.6 <= scale <= 1 for scale, _ in drawn)


def test_a_clone_is_shifted_by_whole_pixels_and_else_unchanged():
    rng = np.random.default_rng(0)
    host = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    places = {host[y, x].tobytes(): (y, x) for y in range(64) for x in range(64)}
    compared = 0
    for _ in range(10):
        content, region = clone(rng, Scene(host, [host], 0, easy=False))
        found = [
            np.subtract((y, x), places[content[y, x].tobytes()])
            for y, x in np.argwhere(region)
            if content[y, x].tobytes() in places
        ]
        # One in ten is matched in colour, and has no pixel in common but by chance.
        if len(found) > 0.9 * region.sum():
            assert (found == found[0]).mean() > 0.99
            compared += 1
    assert compared >= 5


def test_a_splices_donor_is_another_photograph():
    photographs = [np.full((80, 80, 3), level, np.uint8) for level in (20, 120, 220)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        donor = take_donor(rng, photographs, 64, 1, easy=False)
        assert min(abs(donor.mean() - 20), abs(donor.mean() - 220)) < 75


def test_mask_follows_the_rescaling_of_the_image():
    image = np.zeros((80, 80, 3), np.uint8)
    mask = np.zeros((80, 80), bool)
    mask[16:40, 48:72] = True
    image[mask] = 255
    for seed in range(10):
        resized, moved = post_process(np.random.default_rng(seed), image, mask, 60)
        difference = (cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY) > 127) != moved
        assert difference.mean() < 0.02
