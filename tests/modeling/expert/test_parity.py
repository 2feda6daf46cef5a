"""The expert computes what released IFDL-VLM computes, given the same weights.

`tests/reference/parity_ifdl.npz` holds what the released code computed. Where the environment
variable LOUPE_PARITY_IFDL names the folder with the full record of stage 1, its other batches and
all gradients are compared, too.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from safetensors.torch import load_file
from torch import Tensor

from loupe import add_loupe_config
from loupe.checkpoint import from_released_expert, load_into, to_released_expert
from loupe.modeling import ForgeryExpert
from loupe.modeling.canvas import NetworkInput, network_input
from loupe.modeling.expert.expert import ExpertInput
from loupe.modeling.expert.expert_criterion import dice_loss, mask_entropy
from tests.modeling.expert.sizes import reference_options
from tests.modeling.test_parity import GRADIENT, LOSS, ROUNDING, assert_near

pytest.importorskip("transformers")

REFERENCE = Path(__file__).parents[2] / "reference" / "parity_ifdl.npz"
FULL = os.environ.get("LOUPE_PARITY_IFDL", "")
needs_full_record = pytest.mark.skipif(not FULL, reason="LOUPE_PARITY_IFDL names no folder")
LOSSES = {
    "loss_class": "loss.cls_loss",
    "loss_mask_bce": "loss.mask_bce_loss",
    "loss_mask_dice": "loss.mask_dice_loss",
}
ONES = ("iou_token", "mask_tokens", "no_mask_embed", "class_embedding", "position_embedding")
ONES += ("pos_embed", "positional_encoding_gaussian_matrix")


def released_value(name: str, shape: torch.Size) -> Tensor:
    """The reference's parameter of this released name: seeded by the name, scaled by its kind."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if any(word in name for word in ONES):
        return noise
    if "rel_pos_" in name:
        return noise / 2
    if len(shape) == 1:
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    fan_in = shape[0] if "output_upscaling" in name else math.prod(shape[1:])
    return noise / math.sqrt(fan_in)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ForgeryExpert:
    """Our model at the reference's size, with the reference's weights."""
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(reference_options(tmp_path_factory.mktemp("sizes")))
    model = build_model(cfg)
    released = to_released_expert(model.state_dict())
    filled = {name: released_value(name, value.shape) for name, value in released.items()}
    load_into(model, from_released_expert(filled))
    return model


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as file:
        return {
            name: file[name] if file[name].dtype.kind == "U" else torch.from_numpy(file[name])
            for name in file.files
        }


def inputs_of(model: ForgeryExpert, inputs: dict[str, Tensor]) -> tuple[ExpertInput, list[dict]]:
    """A recorded batch as the expert takes it, and its items."""
    labels = inputs["cls_labels"].tolist()
    masks = [inputs[f"mask.{i}"][0] for i in range(len(labels))]
    sizes = [tuple(mask.shape) for mask in masks]
    sam = model.segmentation_encoder
    batch = ExpertInput(
        inputs["images"] * sam.pixel_std + sam.pixel_mean,
        network_input(inputs["images"], sizes, 1),
        NetworkInput(inputs["images_clip"], None, None, torch.ones(len(labels), 2)),
        sizes,
    )
    items = []
    for label, mask in zip(labels, masks, strict=True):
        padded = torch.zeros(64, 64)
        padded[: mask.shape[0], : mask.shape[1]] = mask
        item = {"label": int(label > 0), "wholly_forged": label == 1, "mask": padded}
        items.append(item | {"valid_size": tuple(mask.shape)})
    return batch, items


def losses_of(
    model: ForgeryExpert, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and gradients by the released names."""
    batch, items = inputs_of(model, inputs)
    monkeypatch.setattr(model, "preprocess", lambda _: batch)
    model.train().zero_grad(set_to_none=True)
    losses = model(items)
    sum(losses.values()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return losses, to_released_expert(gradients)


def test_outputs_equal_the_released_models(model, reference):
    inputs = {k.removeprefix("inputs/"): v for k, v in reference.items() if "inputs/" in k}
    batch, _ = inputs_of(model, inputs)
    with torch.no_grad():
        features = model.encode(batch)
        evidence = model.classify(batch, features)
        logits = model.segment(batch, features, evidence.prompts)
    assert_near("class logits", evidence.class_logits, reference["cls_logits"])
    for i in range(3):
        assert_near("prompt", evidence.prompts[i], reference[f"sam.sparse.{i}"][0])
        assert_near("mask", logits[i], reference[f"decoder.low_res_masks.{i}"][0, 0])


def test_losses_and_gradients_equal_the_released_models(model, reference, monkeypatch):
    inputs = {k.removeprefix("inputs/"): v for k, v in reference.items() if "inputs/" in k}
    losses, gradients = losses_of(model, inputs, monkeypatch)
    for ours, theirs in LOSSES.items():
        assert_near(ours, losses[ours], reference[theirs], LOSS)
    names = reference["gradient_names"].tolist()
    for name, norm in zip(names, reference["gradient_norms"].tolist(), strict=True):
        found = float(torch.linalg.vector_norm(gradients[name].double()))
        assert found == pytest.approx(norm, rel=GRADIENT, abs=ROUNDING), name
    for name in [k.removeprefix("grad.") for k in reference if k.startswith("grad.")]:
        theirs = reference[f"grad.{name}"]
        scale = float(theirs.abs().max())
        assert_near(name, gradients[name] / scale, theirs / scale, GRADIENT)
    assert not any(gradients[name].any() for name in gradients.keys() - set(names))


def test_the_losses_of_fixed_logits_equal_the_released_ones(reference):
    logits, target = (reference[f"units/loss.{name}"][0] for name in ("logits", "target"))
    assert float(mask_entropy(logits, target)) == pytest.approx(1.0617315769195557, abs=1e-6)
    assert float(dice_loss(logits, target)) == pytest.approx(0.5387762188911438, abs=1e-6)
    empty = float(dice_loss(logits, torch.zeros_like(target)))
    assert empty == pytest.approx(0.9999967813491821, abs=1e-6)


@needs_full_record
@pytest.mark.parametrize("case", ["train_tampered", "train_mixed", "train_real"])
def test_every_gradient_of_every_batch_equals_the_released_one(model, monkeypatch, case):
    folder = Path(FULL)
    recorded = load_file(folder / f"{case}.safetensors")
    inputs = {
        name.removeprefix(f"{case}."): value
        for name, value in load_file(folder / "inputs.safetensors").items()
        if name.startswith(case)
    }
    losses, gradients = losses_of(model, inputs, monkeypatch)
    for ours, theirs in LOSSES.items():
        assert_near(ours, losses[ours], recorded[theirs], LOSS)
    for name, theirs in recorded.items():
        scale = float(theirs.abs().max())
        if name.startswith("grad.") and scale > ROUNDING:
            ours = gradients[name.removeprefix("grad.")]
            assert_near(name, ours / scale, theirs / scale, GRADIENT)


@needs_full_record
def test_every_key_of_a_released_checkpoint_is_used_and_comes_back():
    released = load_file(Path(FULL) / "state_dict.safetensors")
    back = to_released_expert(from_released_expert(released))
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], value) for name, value in released.items())
