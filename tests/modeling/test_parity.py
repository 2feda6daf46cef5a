"""Loupe computes what the released code computes, given the same weights and random numbers.

`tests/reference/parity.npz` holds what the released code computed. Where the environment variable
LOUPE_PARITY names the folder with the full record, every intermediate tensor and gradient is
compared, too.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from safetensors.torch import load_file
from torch import Tensor, nn

from loupe import Loupe, PerceptionEncoder
from loupe.adaptation import pseudo_targets
from loupe.checkpoint import EMPTY_WEIGHT, from_released, load_into, to_released
from loupe.modeling.building import encoder_arguments
from loupe.modeling.losses import poly_focal_loss, tversky_loss
from loupe.modeling.postprocessing import paste_map, query_map
from loupe.structures import LossCounts, MaskOutput, Targets

REFERENCE = Path(__file__).parents[1] / "reference" / "parity.npz"
FULL = os.environ.get("LOUPE_PARITY", "")
needs_full_record = pytest.mark.skipif(not FULL, reason="LOUPE_PARITY names no folder")

# float32 against float32, two orders of summation: tensors are O(1), losses O(1), gradients any.
TENSOR, LOSS, GRADIENT = 1e-5, 1e-6, 1e-5
# Key biases have no gradient (softmax ignores them); what is recorded there is rounding.
ROUNDING = 1e-6
EVALUATIONS = ["eval_test", "eval_nolabels", "eval_gtlabels"]
# Our name of a loss, the released one, and our weight (the released values are not weighted).
LOSSES = (
    ("loss_mask_focal", "loss_mask", 5.0),
    ("loss_mask_tversky", "loss_dice", 5.0),
    ("loss_query", "loss_cross_entropy", 2.0),
)
DEPTHS = ("0", "1", "2", "final")
QUERIES = 5


@BACKBONE_REGISTRY.register()
def build_reference_encoder(
    cfg: CfgNode, input_shape: ShapeSpec | None = None
) -> PerceptionEncoder:
    """The tiny encoder with the original's rotary positions, which do not scale with the grid."""
    arguments = encoder_arguments(cfg)
    arguments["overrides"]["ref_feat_shape"] = (6, 6)
    return PerceptionEncoder(**arguments)


def released_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The reference's parameter of this released name: seeded by the name, scaled by its kind."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    embeddings = ("class_embedding", "positional_embedding", "probe", "label_embedding")
    embeddings += ("level_embed", "queries_embedder", "queries_features")
    if any(word in name for word in embeddings):
        return noise
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    if name.endswith(".weight"):
        return 1 + 0.1 * noise
    return (2.0 if "sampling_offsets" in name else 0.1) * noise


@pytest.fixture
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as file:
        return {
            name: file[name] if file[name].dtype.kind == "U" else torch.from_numpy(file[name])
            for name in file.files
        }


@pytest.fixture
def model(tiny_cfg: CfgNode) -> Loupe:
    """Our model at the reference's size, with the reference's weights and nothing frozen."""
    tiny_cfg.MODEL.BACKBONE.NAME = "build_reference_encoder"
    tiny_cfg.MODEL.FREEZE = []
    tiny_cfg.MODEL.CLASSIFIER.IMAGE_LOSS = "poly_focal"
    tiny_cfg.MODEL.CLASSIFIER.LOSS_WEIGHT = 2.0
    tiny_cfg.MODEL.SEGMENTER.COST_CLASS = 1.0
    model = build_model(tiny_cfg)
    shapes = {name: value.shape for name, value in to_released(model.state_dict()).items()}
    shapes.pop(EMPTY_WEIGHT)
    released = {name: released_value(name, tuple(shape)) for name, shape in shapes.items()}
    load_into(model, from_released(released))
    return model


def condition(file: str, inputs: dict[str, Tensor], image_logits: Tensor) -> Tensor | None:
    return {
        "eval_test": image_logits.sigmoid(),
        "eval_nolabels": None,
        "eval_gtlabels": inputs["labels"].float(),
    }[file]


def of(reference: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(file + "/"): value
        for name, value in reference.items()
        if name.startswith(file + "/")
    }


def assert_near(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TENSOR) -> None:
    distance = float((ours.detach() - theirs).abs().max())
    distance /= max(1.0, float(theirs.abs().max()))  # Mask logits reach 11.
    assert distance < tolerance, f"{name} differs by {distance:.2e}"


@pytest.mark.parametrize("file", EVALUATIONS)
@torch.no_grad()
def test_evaluation_equals_the_released_models(
    file: str, model: Loupe, reference: dict[str, Tensor]
):
    inputs, theirs = of(reference, "inputs"), of(reference, file)
    features = model.backbone(inputs["pixel_values"])
    verdict = model.classifier(**features)
    outputs = model.segmenter(features["patches"], condition(file, inputs, verdict.image_logits))
    assert_near("pooled", features["pooled"][:, None], theirs["backbone.pooled"])
    assert_near("image logits", verdict.image_logits[:, None], theirs["cls.fused_logits"])
    assert_near(
        "patch logits", verdict.patch_logits.flatten(1)[..., None], theirs["cls.patch_logits"]
    )
    global_logits = model.classifier.image_head(features["pooled"])
    assert_near("global logits", global_logits, theirs["cls.global_logits"])
    for depth, output in enumerate(outputs):
        assert_near("class logits", output.class_logits, theirs[f"class_logits.{depth}"])
    assert_near("mask logits", outputs[-1].mask_logits, theirs["mask_logits"])


class RecordedDraws:
    """Stands in for `draw_uniform`: gives the numbers that the released code drew, in its order."""

    def __init__(self, tensors: dict[str, Tensor], images: int) -> None:
        self.tensors: list[Tensor] = []
        for depth in DEPTHS:
            matcher = [tensors[f"rand.{depth}.matcher.{b}"] for b in range(images)]
            self.tensors.append(torch.cat(matcher))
            self.tensors += [
                tensors[f"rand.{depth}.{kind}"] for kind in ("oversample", "remainder")
            ]

    def __call__(self, rows: list[None], *shape: int, device: torch.device | None = None) -> Tensor:
        assert self.tensors[0].shape == (len(rows), *shape)
        return self.tensors.pop(0)


def label_targets(inputs: dict[str, Tensor]) -> Targets:
    """The reference's batch: images 0 and 2 are forged."""
    masks = [inputs["mask_labels.0"], inputs["mask_labels.0"][:0], inputs["mask_labels.2"]]
    everywhere = torch.ones_like(inputs["patch_labels"], dtype=torch.bool)
    labels = inputs["labels"].float()
    return Targets(labels, masks, inputs["patch_labels"], everywhere, everywhere[:, 0, 0])


def mask_losses(
    model: Loupe, inputs: dict[str, Tensor], targets: Targets, draws: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[list[tuple[int, int]]]]:
    """Our losses, and which query was matched in which image at each depth."""
    criterion = model.mask_criterion
    criterion.draw = RecordedDraws(draws, len(targets.labels))
    matched: list[list[tuple[int, int]]] = []
    original = criterion.match

    def match(*arguments: object) -> object:
        matches = original(*arguments)
        matched.append(list(zip(matches.image.tolist(), matches.query.tolist(), strict=True)))
        return matches

    criterion.match = match
    outputs = model.segmenter(model.backbone(inputs["pixel_values"])["patches"], targets.labels)
    masks = sum(len(mask) for mask in targets.masks)
    unmatched = QUERIES * len(targets.labels) - masks
    counts = LossCounts(len(targets.labels), 1, masks, masks + 0.1 * unmatched)
    return criterion(outputs, targets, counts), matched


def segmentation_case(
    file: str, model: Loupe, inputs: dict[str, Tensor], draws: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[list[tuple[int, int]]]]:
    targets = label_targets(inputs)
    if file == "train_tta":
        with torch.no_grad():
            targets = pseudo_targets(model.classifier(**model.backbone(inputs["pixel_values"])))
    return mask_losses(model, inputs, targets, draws)


def recorded_matches(theirs: dict[str, Tensor]) -> list[list[tuple[int, int]]]:
    return [
        [
            (image, int(query))
            for image in range(3)
            for query in theirs[f"match.{depth}.{image}.query"]
        ]
        for depth in DEPTHS
    ]


@pytest.mark.parametrize("file", ["train_seg", "train_tta"])
def test_mask_losses_and_matches_equal_the_released_models(
    file: str, model: Loupe, reference: dict[str, Tensor]
):
    theirs = of(reference, file)
    draws = of(reference, "train_seg")
    losses, matched = segmentation_case(file, model, of(reference, "inputs"), draws)
    assert len(losses) == 3 * len(DEPTHS)
    for ours, released, weight in LOSSES:
        for suffix in ("_0", "_1", "_2", ""):
            theirs_raw = theirs[f"loss.raw.{released}{suffix}"]
            assert_near(ours + suffix, losses[ours + suffix] / weight, theirs_raw, LOSS)
    assert matched == recorded_matches(theirs)
    total = float(theirs["loss.seg_weighted_sum"])
    assert sum(losses.values()).item() == pytest.approx(total, rel=LOSS)


def released_gradients(model: Loupe) -> dict[str, Tensor]:
    """Gradients under the released names; parameters without one count as zero."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    released = to_released(gradients)
    released.pop(EMPTY_WEIGHT)
    return released


def assert_gradients_equal(model: Loupe, theirs: dict[str, Tensor]) -> None:
    ours = released_gradients(model)
    names, norms = theirs["gradient_names"].tolist(), theirs["gradient_norms"].tolist()
    wrong = {
        name: (ours[name].double().norm().item(), norm)
        for name, norm in zip(names, norms, strict=True)
        if ours[name].double().norm().item() != pytest.approx(norm, rel=GRADIENT, abs=ROUNDING)
    }
    assert not wrong
    whole = [name for name in theirs if name.startswith("grad.")]
    assert whole
    for name in whole:
        distance = (ours[name.removeprefix("grad.")] - theirs[name]).norm() / theirs[name].norm()
        assert distance < GRADIENT, f"{name}: {distance:.2e}"


@pytest.mark.parametrize("file", ["train_seg", "train_tta"])
def test_mask_gradients_equal_the_released_models(
    file: str, model: Loupe, reference: dict[str, Tensor]
):
    draws = of(reference, "train_seg")
    losses, _ = segmentation_case(file, model, of(reference, "inputs"), draws)
    sum(losses.values()).backward()
    assert_gradients_equal(model, of(reference, file))


def classification_losses(model: Loupe, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    verdict = model.classifier(**model.backbone(inputs["pixel_values"]))
    targets = label_targets(inputs)
    counts = LossCounts(3, targets.patch_ratios.numel(), 1, 1)
    return model.classification_criterion(verdict, targets, counts)


def test_classification_losses_and_gradients_equal_the_released_models(
    model: Loupe, reference: dict[str, Tensor]
):
    theirs = of(reference, "train_cls")
    losses = classification_losses(model, of(reference, "inputs"))
    assert_near("image", losses["loss_image"] / 2, theirs["loss.fused"], LOSS)
    assert_near("patch", losses["loss_patch"] / 2, theirs["loss.patch"], LOSS)
    sum(losses.values()).backward()
    assert_gradients_equal(model, theirs)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(
    ("epsilon", "gamma", "alpha"),
    [(0.5, 1.5, 0.3), (1.0, 2.0, 0.2), (1.0, 2.0, 0.8), (1.0, 2.0, 0.85)],
)
def test_poly_focal_loss_equals_the_released_one(
    kind: str, epsilon: float, gamma: float, alpha: float, reference: dict[str, Tensor]
):
    units = of(reference, "units")
    ours = poly_focal_loss(
        units["loss.logits"], units[f"loss.{kind}"], alpha=alpha, gamma=gamma, epsilon=epsilon
    )
    assert_near("poly", ours, units[f"poly.e{epsilon}.g{gamma}.a{alpha}.{kind}"], LOSS)


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_tversky_loss_equals_the_released_one(alpha: float, reference: dict[str, Tensor]):
    units = of(reference, "units")
    logits, targets = units["loss.logits"].view(4, 10), units["loss.soft"].view(4, 10)
    ours = tversky_loss(logits, targets, false_positive=alpha, false_negative=1 - alpha)
    assert_near("Tversky", ours, units[f"tversky.a{alpha}"], LOSS)


@pytest.mark.parametrize("name", ["sized", "unsized"])
@pytest.mark.parametrize("image", [0, 1])
def test_thresholded_map_equals_the_released_mask(
    name: str, image: int, reference: dict[str, Tensor]
):
    units = of(reference, "units")
    packed, width = units[f"post.{name}.{image}"], int(units[f"post.{name}.{image}.width"])
    authentic = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1)[:, :width])
    # The released size, 384, is nobody's: here it stands for the network's own size.
    network_map = query_map(
        units["post.class_queries_logits"][image],
        units["post.masks_queries_logits"][image],
        (384, 384),
    )
    height, width = authentic.shape
    ours = paste_map(network_map, (384, 384), (0, 0, width, height), (height, width))
    # In released masks 0 stands for forged.
    different = ((ours > 0.5) != (authentic == 0)).float().mean()
    # Clamping before the last resize instead of never moves a few pixels of the outline.
    assert different == 0 if name == "unsized" else different < 0.005


# ---- The full record, where there is one.


def hooked(model: Loupe, activations: dict[str, Tensor]) -> None:
    """Stores what the modules give, under the released record's names."""

    def keep(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _m, _i, output: activations.update({name: output}))

    segmenter, decoder = model.segmenter, model.segmenter.pixel_decoder
    keep(model.backbone.vit.norm_pre, "backbone.ln_pre")
    keep(model.backbone.vit.norm, "backbone.ln_post")
    for i, block in enumerate(model.backbone.vit.blocks):
        keep(block, f"backbone.block{i}")
    for i, scale in enumerate(segmenter.feature_pyramid.scales):
        keep(scale, f"seg.fpn.{i}")
    for i, projection in enumerate(decoder.input_projections):
        keep(projection, f"seg.pixel.input_proj{i}")
    for i, layer in enumerate(decoder.layers):
        keep(layer.deformable_attention, f"seg.pixel.enc{i}.msda")
        keep(layer.norm, f"seg.pixel.enc{i}.norm1")
        keep(layer.condition, f"seg.pixel.enc{i}.norm2")
        keep(layer, f"seg.pixel.enc{i}.out")
    keep(decoder.lateral, "seg.pixel.lateral")
    keep(decoder.output, "seg.pixel.output_conv")
    keep(decoder, "pixel_features")
    for i, layer in enumerate(segmenter.mask_decoder.layers):
        keep(layer, f"seg.dec{i}.out")


def named_outputs(outputs: list[MaskOutput]) -> dict[str, Tensor]:
    named = {f"seg.mask_logits.call{i}": output.mask_logits for i, output in enumerate(outputs)}
    return named | {
        f"seg.class_logits.call{i}": output.class_logits for i, output in enumerate(outputs)
    }


@needs_full_record
@pytest.mark.parametrize("file", EVALUATIONS)
@torch.no_grad()
def test_every_intermediate_tensor_equals_the_full_record(file: str, model: Loupe):
    folder = Path(FULL)
    inputs = load_file(folder / "inputs.safetensors")
    theirs = load_file(folder / f"{file}.safetensors")
    ours: dict[str, Tensor] = {}
    hooked(model, ours)
    features = model.backbone(inputs["pixel_values"])
    verdict = model.classifier(**features)
    p = condition(file, inputs, verdict.image_logits)
    ours |= named_outputs(model.segmenter(features["patches"], p))
    pixel_features = ours.pop("pixel_features")
    ours["seg.pixel.mask_features"] = pixel_features.mask_features
    ours |= {f"seg.pixel.multi_scale.{i}": level for i, level in enumerate(pixel_features.memory)}
    if p is None:
        assert not any(name.endswith("norm2") for name in ours)
    for name, value in ours.items():
        # The released decoder has queries first.
        expected = theirs[name].transpose(0, 1) if ".dec" in name else theirs[name]
        assert_near(name, value, expected)
    assert len(ours) > 25


@needs_full_record
@pytest.mark.parametrize("file", ["train_cls", "train_seg", "train_tta"])
def test_every_gradient_equals_the_full_record(file: str, model: Loupe):
    folder = Path(FULL)
    inputs = load_file(folder / "inputs.safetensors")
    theirs = load_file(folder / f"{file}.safetensors")
    if file == "train_cls":
        losses = classification_losses(model, inputs)
    else:
        losses, _ = segmentation_case(file, model, inputs, theirs)
    sum(losses.values()).backward()
    ours = released_gradients(model)
    gradients = {k.removeprefix("grad."): v for k, v in theirs.items() if k.startswith("grad.")}
    for name, gradient in gradients.items():
        distance, norm = (ours[name] - gradient).norm(), gradient.norm()
        assert distance < GRADIENT * norm + ROUNDING, f"{name}: {distance:.2e} of {norm:.2e}"


@needs_full_record
def test_released_parameters_are_refilled_bit_for_bit():
    recorded = load_file(Path(FULL) / "state_dict.safetensors")
    recorded.pop(EMPTY_WEIGHT)
    for name, value in recorded.items():
        assert torch.equal(released_value(name, tuple(value.shape)), value), name


@needs_full_record
def test_the_converter_consumes_the_released_file_and_gives_it_back():
    recorded = load_file(Path(FULL) / "state_dict.safetensors")
    back = to_released(from_released(recorded))
    assert set(back) == set(recorded)
    assert all(torch.equal(back[name], value) for name, value in recorded.items())
