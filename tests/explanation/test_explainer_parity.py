"""The explainer computes what the released stage 2 computes, given the same weights.

`tests/reference/explainer.npz` holds what the released code computed at a tiny size.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from loupe.explanation.batches import IGNORED, TokenBatch
from loupe.explanation.explainer import Explainer
from loupe.explanation.region_features import RegionTower, binary_mask, masked_image
from loupe.explanation.released import vlm_from_released
from tests.explanation.tiny import explainer_of, tiny_llava
from tests.reference.condense_explainer import FILE, fill

# float32 against float32, two orders of summation.
TENSOR, LOSS, GRADIENT = 1e-5, 1e-6, 1e-5
ROUNDING = 1e-6
IMAGE = 96  # One entry behind the released vocabulary; the released code has none for images.


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(FILE) as content:
        return {name: torch.from_numpy(content[name].copy()) for name in content.files}


@pytest.fixture(scope="module")
def sizes(reference: dict[str, Tensor]) -> dict[str, Any]:
    return json.loads(bytes(reference["config"].tolist()))


def released_weights(sizes: dict[str, Any]) -> dict[str, Tensor]:
    weights = {name: fill(name, tuple(shape)) for name, shape in sizes["shapes"].items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros(1, weights[name].shape[1])])
    return vlm_from_released(weights)


def build(sizes: dict[str, Any], alpha: float = 0.5, lora: bool = False) -> Explainer:
    vlm = tiny_llava(sizes["clip"], sizes["llm"] | {"vocab_size": IMAGE + 1}, IMAGE, alpha)
    vlm.load_state_dict(released_weights(sizes), strict=True)
    return explainer_of(vlm, IMAGE, lora=sizes["lora"] if lora else None)


def batch_of(reference: dict[str, Tensor], part: str = "vlm_inputs") -> TokenBatch:
    """Released ids mark an image by -200, once; ours have a token for each of its places."""
    ids, labels = reference[f"{part}/input_ids"].clone(), reference[f"{part}/labels"]
    attention = reference[f"{part}/attention_mask"].long()
    rows = []
    for one in zip(ids, labels, attention, strict=True):
        place = int((one[0] == -200).nonzero()[0])
        fills = (IMAGE, IGNORED, 1)
        rows.append(
            [
                torch.cat([row[:place], torch.full((16,), filled), row[place + 1 :]])
                for row, filled in zip(one, fills, strict=True)
            ]
        )
    ids, labels, attention = (torch.stack(column) for column in zip(*rows, strict=True))
    return TokenBatch(ids, attention, labels)


def six_channels(images: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(images[:, :1]) if mask is None else mask
    binary = binary_mask(mask, tuple(images.shape[2:]))
    return torch.cat([images, masked_image(images, binary)], dim=1)


def close(found: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    assert found.shape == expected.shape, name
    assert float((found - expected).abs().max()) <= tolerance, name


def close_gradient(found: Tensor | None, expected: Tensor, name: str) -> None:
    scale = float(expected.abs().max())
    if scale > ROUNDING:
        assert found is not None, name
        assert float((found - expected).abs().max()) <= GRADIENT * scale, name


@pytest.mark.parametrize("kind", ["binary", "soft", "bytes", "other_size", "empty", "full"])
def test_region_features(kind: str, reference: dict[str, Tensor], sizes: dict[str, Any]):
    images, mask = reference["ravfe_inputs/images"], reference[f"ravfe_inputs/mask.{kind}"]
    if kind == "bytes":  # Floats up to 255, which the released code cuts at 128; ours are integers.
        mask = mask > 128
    pixels = six_channels(images, mask)
    if f"ravfe/masked_image.{kind}" in reference:
        close(pixels[:, 3:], reference[f"ravfe/masked_image.{kind}"], TENSOR)
    vlm = build(sizes).vlm
    features = vlm.model.vision_tower(pixels).hidden_states[-2][:, 1:]
    close(features, reference[f"ravfe/combined.{kind}"], TENSOR)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha(alpha: float, reference: dict[str, Tensor], sizes: dict[str, Any]):
    pixels = six_channels(reference["ravfe_inputs/images"], reference["ravfe_inputs/mask.binary"])
    tower = build(sizes, alpha).vlm.model.vision_tower
    assert isinstance(tower, RegionTower)
    close(
        tower(pixels).hidden_states[-2][:, 1:],
        reference[f"ravfe/combined.binary.alpha{alpha}"],
        TENSOR,
    )


@pytest.mark.parametrize("masked", [True, False])
def test_logits_and_loss(masked: bool, reference: dict[str, Tensor], sizes: dict[str, Any]):
    explainer = build(sizes)
    batch = batch_of(reference)
    masks = reference["vlm_inputs/alpha_masks"] if masked else None
    pixels = six_channels(reference["vlm_inputs/images"], masks)
    name = "vlm_train/" if masked else "vlm_train/without_mask."
    logits = explainer.vlm(batch.ids, pixels, batch.attention).logits[..., :IMAGE]
    held = batch.attention.bool()
    close(logits[held], reference[name + "logits"][held], 2 * TENSOR)
    loss = explainer.token_losses(batch, pixels).mean()
    close(loss.detach(), reference[name + "loss"], LOSS)
    if masked:
        loss.backward()
        names = {f"vlm.{ours}": theirs for theirs, ours in names_of(sizes).items()}
        for ours, parameter in explainer.named_parameters():
            key = f"vlm_train/grad.{names.get(ours)}"
            if key in reference:
                close_gradient(parameter.grad, reference[key], ours)


def names_of(sizes: dict[str, Any]) -> dict[str, str]:
    """Released name -> ours."""
    return {
        name: next(iter(vlm_from_released({name: torch.zeros(1)})), "") for name in sizes["shapes"]
    }


def test_adapters(reference: dict[str, Tensor], sizes: dict[str, Any]):
    explainer = build(sizes, lora=True)
    own = dict(explainer.vlm.named_parameters())
    prefix = "vlm_lora/param."
    given = {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}
    renamed = vlm_from_released(given)
    assert renamed.keys() == {name for name in own if "lora_" in name}
    with torch.no_grad():
        for name, value in renamed.items():
            own[name].copy_(value)
    pixels = six_channels(reference["vlm_inputs/images"], reference["vlm_inputs/alpha_masks"])
    batch = batch_of(reference)
    logits = explainer.vlm(batch.ids, pixels, batch.attention).logits[..., :IMAGE]
    held = batch.attention.bool()
    close(logits[held], reference["vlm_lora/logits"][held], 2 * TENSOR)
    loss = explainer.token_losses(batch, pixels).mean()
    close(loss.detach(), reference["vlm_lora/loss"], LOSS)
    loss.backward()
    compared = 0
    for theirs in given:
        ours = next(iter(vlm_from_released({theirs: given[theirs]})))
        expected = reference[f"vlm_lora/grad.{theirs}"]
        close_gradient(own[ours].grad, expected, ours)
        compared += 1
    assert compared == 28
    assert all(p.grad is None for n, p in own.items() if "lora_" not in n)


@pytest.mark.parametrize("masked", [True, False])
def test_the_same_tokens_are_written(
    masked: bool, reference: dict[str, Tensor], sizes: dict[str, Any]
):
    explainer = build(sizes)
    prompt = reference["vlm_generate/prompt"][0]
    place = int((prompt == -200).nonzero()[0])
    ids = torch.cat([prompt[:place], torch.full((16,), IMAGE), prompt[place + 1 :]])[None]
    masks = reference["vlm_inputs/alpha_masks"][:1] if masked else None
    pixels = six_channels(reference["vlm_inputs/images"][:1], masks)
    expected = reference[f"vlm_generate/tokens.{'masked' if masked else 'unmasked'}"][0, 1:]
    for cached in (True, False):
        found = explainer.vlm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=len(expected),
            do_sample=False,
            suppress_tokens=[IMAGE],
            eos_token_id=-1,
            pad_token_id=0,
            use_cache=cached,
        )[0, ids.shape[1] :]
        assert found.tolist() == expected.tolist()
