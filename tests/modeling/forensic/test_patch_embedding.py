"""The forensic stem in an encoder: shapes, padding as an argument, new branches, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from loupe import Loupe
from loupe.checkpoint import CheckpointError
from loupe.modeling.forensic.patch_embedding import STEMS, ForensicPatchEmbedding, ForensicStem
from tests.modeling.forensic.conftest import all_valid, normalised, soft
from tests.pictures import as_jpeg, in_colour, textured

Build = Callable[..., Loupe]

OPTIONS = ("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16, "INPUT.SIZE", 96)


def with_stem(kind: str, *options: object) -> list[object]:
    return [*OPTIONS, "MODEL.PERCEPTION_ENCODER.STEM", kind, *options]


def padded(images: Tensor, right: int, below: int) -> tuple[Tensor, Tensor]:
    margins = (0, right, 0, below)
    return F.pad(images, margins), F.pad(all_valid(images), margins)


@pytest.mark.parametrize("kind", list(STEMS))
@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_a_stem_gives_one_token_for_each_patch(patch_size: int, kind: str):
    images = torch.randn(2, 3, 96, 64)
    stem = ForensicStem(24, patch_size, kind)
    assert stem(images, all_valid(images)).shape == (2, 24, 96 // patch_size, 64 // patch_size)


def test_a_patch_that_is_not_of_blocks_is_refused(build: Build):
    with pytest.raises(ValueError, match="8, 16 or 32, not 14"):
        build("MODEL.PERCEPTION_ENCODER.STEM", "forensic")


@pytest.mark.parametrize("stem", ["forensic-jpeg", "forensic-copies"])
@pytest.mark.parametrize("key", ["PIXEL_MEAN", "PIXEL_STD"])
def test_a_stem_of_grey_levels_refuses_pixels_of_another_scale(build: Build, key: str, stem: str):
    with pytest.raises(ValueError, match=rf"MODEL\.{key} .*128.*127\.5"):
        build(*with_stem(stem, f"MODEL.{key}", [128.0, 128.0, 128.0]))


# ---- Padding


def test_the_mask_reaches_every_branch_through_the_patch_embedding():
    embedding = ForensicPatchEmbedding(
        embed_dim=24, patch_size=(16, 16), grid_size=(6, 6), kind="forensic-copies"
    )
    seen: list[Tensor] = []
    for branch in embedding.proj.children():
        branch.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    images, valid = padded(torch.randn(2, 3, 64, 96), 32, 64)
    tokens = embedding(embedding.with_mask(images, valid))
    assert tokens.shape == (2, 8, 8, 24)
    assert len(seen) == 4
    assert all(torch.equal(mask, valid) for mask in seen)


@torch.no_grad()
def test_an_image_has_nearly_the_same_features_with_padding_that_is_marked(build: Build):
    # Convolutions still see the zeros of padding next to the image, so not to the last bit.
    encoder = build(*with_stem("forensic-copies")).backbone.eval()
    image = normalised(in_colour(textured(96, 48)))
    alone = encoder(image)["patches"]
    canvas, valid = padded(image, 48, 0)
    marked = encoder(canvas, valid)["patches"][..., :3]
    unmarked = encoder(canvas)["patches"][..., :3]
    inner = (..., slice(0, 2))
    assert (marked - alone)[inner].abs().mean() < 0.5 * (unmarked - alone)[inner].abs().mean()


@torch.no_grad()
def test_threads_with_batches_of_several_sizes_do_not_meet(build: Build):
    model = build(*with_stem("forensic-copies")).eval()
    embedding = model.backbone.vit.patch_embed
    for parameter in embedding.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))  # Wakes branches that start at zero.
    sizes = [[(96, 96)], [(40, 72), (33, 96)], [(96, 17)], [(64, 64), (80, 48), (16, 96)]]
    batches = [[item(i, *size) for size in group] for i, group in enumerate(sizes)]
    serial = [model(batch) for batch in batches]
    # No thread's stem runs before every thread has said what its padding is.
    meeting = Barrier(len(batches), timeout=60)

    def wait(*_: object) -> None:
        meeting.wait()

    embedding.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(len(batches)) as pool:
        together = list(pool.map(model, batches))
    for run, expected in zip(together, serial, strict=True):
        torch.testing.assert_close(run, expected, rtol=0, atol=0)


def item(seed: int, height: int, width: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "valid_size": (height, width), "height": height, "width": width}


# ---- New branches


def test_a_new_branch_changes_nothing_at_first_and_then_learns():
    images = normalised(as_jpeg(soft(64, 64), 60))
    for kind, plain_kind in (("forensic-jpeg", "forensic"), ("forensic-copies", "forensic-jpeg")):
        stem, plain = ForensicStem(24, 16, kind), ForensicStem(24, 16, plain_kind)
        plain.load_state_dict(stem.state_dict(), strict=False)
        valid = all_valid(images)
        torch.testing.assert_close(stem(images, valid), plain(images, valid))
        stem(images, valid).square().sum().backward()
        branch = stem.copies if kind == "forensic-copies" else stem.quantisation
        assert branch.tokens[-1].weight.grad.any()


def test_an_encoder_takes_over_one_without_the_branch_if_that_is_declared_new(
    build: Build, tmp_path: Path
):
    path = tmp_path / "encoder.safetensors"
    save_file(build(*with_stem("forensic")).backbone.vit.state_dict(), path)
    options = with_stem("forensic-jpeg", "MODEL.PERCEPTION_ENCODER.WEIGHTS", str(path))
    new = ["backbone.vit.patch_embed.proj.quantisation"]
    build(*options, "MODEL.NEW_PARTS", new)
    with pytest.raises(CheckpointError, match=r"missing: patch_embed\.proj\.quantisation"):
        build(*options)


def test_a_frozen_stem_keeps_its_weights(build: Build, make_item: Callable[..., dict]):
    model = build(*with_stem("forensic")).train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    sum(model([make_item(size=96, valid_size=(96, 96))]).values()).backward()
    assert not any(parameter.grad is not None for parameter in model.backbone.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.backbone.state_dict().items())
