"""The whole model: losses of every odd batch, predictions, padding, sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

from loupe import Loupe, add_loupe_config
from loupe.modeling.condition import training_condition
from loupe.modeling.deformable_attention import DeformableAttention
from loupe.modeling.targets import prepare_targets
from loupe.structures import ClassifierOutput, Targets

Item = dict[str, Any]
MakeItem = Callable[..., Item]
Build = Callable[..., Loupe]

STAGE_1 = ("MODEL.SEGMENTER.ENABLED", False)
STAGE_2 = ("MODEL.FREEZE", ["backbone", "classifier"], "MODEL.CLASSIFIER.LOSS_WEIGHT", 0.0)
STAGE_3 = ("MODEL.FREEZE", [])
BOXES = ("MODEL.SEGMENTER.PREDICT_BOXES", True)
PIXEL = ("MODEL.SEGMENTER.CONDITION_ATTENTION", "pixel")
NO_CONDITION = ("MODEL.SEGMENTER.CONDITION_ATTENTION", "none")
KINDS = {
    "stage 1": STAGE_1,
    "stage 1 without patches": (
        *("MODEL.CLASSIFIER.PATCH_PREDICTION", False),
        *("MODEL.SEGMENTER.ENABLED", True),
    ),
    "stage 2": STAGE_2,
    "stage 2 with boxes": STAGE_2 + BOXES,
    "stage 2, pixels ask": STAGE_2 + PIXEL,
    "stage 2 without condition": STAGE_2 + NO_CONDITION,
    "stage 3": STAGE_3 + BOXES,
    "forensic stem": (
        *("MODEL.FREEZE", [], "MODEL.PERCEPTION_ENCODER.STEM", "forensic"),
        *("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16, "INPUT.SIZE", 96),
    ),
}


def wakened(model: Loupe) -> Loupe:
    """With noise in the layers that start at zero and so pass no gradient on."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return model


def draw_alike(rows: list[None], *shape: int, device: torch.device | None = None) -> Tensor:
    """The same points for every image and every mask, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(shape[0])
    return torch.rand(1, *shape, generator=generator).expand(len(rows), *shape).to(device)


def sized(kind: str) -> dict[str, Any]:
    size = 96 if kind == "forensic stem" else 84
    return {"size": size, "valid_size": (size, size)}


# ---- Gradients


@pytest.mark.parametrize("kind", ["stage 2", "stage 3"])
def test_checkpointing_keeps_less_and_changes_no_loss_and_no_gradient(
    kind: str, build: Build, make_item: MakeItem
):
    items = [make_item(0, **sized(kind)), make_item(1, label=0, **sized(kind))]

    def trained(enabled: bool) -> tuple[int, dict[str, Tensor], list[Tensor]]:
        model = wakened(build(*KINDS[kind], "MODEL.ACTIVATION_CHECKPOINTING", enabled)).train()
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model(items)
        sum(losses.values()).backward()
        return sum(kept), losses, [p.grad for p in model.parameters() if p.grad is not None]

    kept, losses, gradients = trained(False)
    kept_now, losses_now, gradients_now = trained(True)
    assert kept_now < 0.7 * kept
    assert all(torch.equal(losses[name], losses_now[name]) for name in losses)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_now, strict=True))


def test_compiling_takes_each_block_and_keeps_the_names_of_weights(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    names = build().state_dict().keys()
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled.append(block))
    model = build("MODEL.COMPILE", True)
    assert compiled == list(model.backbone.vit.blocks)
    assert model.state_dict().keys() == names


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_trained_parameter_receives_a_gradient(kind: str, build: Build, make_item: MakeItem):
    model = wakened(build(*KINDS[kind])).train()
    sum(
        model([make_item(0, **sized(kind)), make_item(1, label=0, **sized(kind))]).values()
    ).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert [name for name, p in trained if p.grad is None or not p.grad.any()] == []


ODD: dict[str, list[Item]] = {
    "authentic only": [{"label": 0}, {"label": 0}],
    "no mask known": [{"mask_known": False}, {"mask_known": False}],
    "one mask unknown": [{"mask_known": False}, {}],
    "forged without a positive pixel": [{"regions": 0}, {"regions": 0}],
    "more regions than queries": [{"regions": 6}],
    "padded": [{"valid_size": (30, 84)}, {"valid_size": (84, 1)}, {}],
}


@pytest.mark.parametrize("kind", ["stage 1", "stage 3"])
def test_odd_batches_have_finite_losses_and_a_gradient_for_every_parameter(
    kind: str, build: Build, make_item: MakeItem
):
    model = build(*KINDS[kind]).train()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for odd, batch in ODD.items():
        model.zero_grad()
        losses = model([make_item(i, **arguments) for i, arguments in enumerate(batch)])
        assert all(torch.isfinite(loss) for loss in losses.values()), (odd, losses)
        sum(losses.values()).backward()
        # DistributedDataParallel waits for every parameter: zero is a gradient, None is not.
        assert [name for name, p in trained if p.grad is None] == [], odd
        assert all(torch.isfinite(p.grad).all() for _, p in trained), odd


# ---- Names


def test_stage_1_has_the_losses_of_the_classifier(build: Build, make_item: MakeItem):
    assert set(build(*STAGE_1).train()([make_item()])) == {"loss_image", "loss_patch"}


def test_stage_2_has_the_losses_of_the_masks_at_every_depth(build: Build, make_item: MakeItem):
    terms = ("loss_query", "loss_mask_focal", "loss_mask_tversky", "loss_box", "loss_giou")
    names = set(build(*STAGE_2, *BOXES).train()([make_item()]))
    assert names == {term + depth for term in terms for depth in ("", "_0", "_1", "_2")}


# ---- Counts


def test_losses_add_up_and_an_images_draws_depend_on_nothing_else_in_the_batch(
    build: Build, make_item: MakeItem
):
    model = build(*BOXES, "MODEL.SEGMENTER.CONDITION_JITTER", 0.5).train()
    items = [make_item(n, regions=2 * n, valid_size=(84, 84 - 20 * n)) for n in range(4)]
    items += [make_item(4, label=0, valid_size=(33, 84)), make_item(5, mask_known=False)]
    items = [item | {"seed": 100 + n} for n, item in enumerate(items)]
    counts = sum(model.loss_counts([item]) for item in items)
    torch.testing.assert_close(counts, model.loss_counts(items))
    together = model(items[::-1], counts=counts)
    alone = [model([item], counts=counts) for item in items]
    summed = {name: sum(losses[name] for losses in alone) for name in together}
    torch.testing.assert_close(summed, together, rtol=1e-5, atol=1e-6)
    other = model([items[1] | {"seed": 7}], counts=counts)
    assert all(other[name] != alone[1][name] for name in other if "mask" in name)


def test_counts_are_what_they_are_called(tiny_model: Loupe, make_item: MakeItem):
    items = [
        make_item(0, regions=2, valid_size=(84, 20)),  # 6 x 2 patches.
        make_item(1, label=0),
        make_item(2, mask_known=False),
        make_item(3, regions=6),  # One more than there are queries.
    ]
    images, patches, masks, class_weights = tiny_model.loss_counts(items).tolist()
    assert images == 4
    assert patches == 12 + 36 + 36
    assert masks == 2 + 5
    assert class_weights == pytest.approx(2 + 3 * 0.1 + 5 * 0.1 + 5)


# ---- Targets


def targets_of(model: Loupe, items: list[Item]) -> Targets:
    return prepare_targets(items, model.preprocess(items), model.patch_size)


def test_patch_ratios_are_shares_of_forged_pixels(tiny_model: Loupe, make_item: MakeItem):
    item = make_item()
    item["mask"][:] = 0
    item["mask"][14:28, 28:35] = 1  # The left half of patch (1, 2).
    targets = targets_of(tiny_model, [item])
    expected = torch.zeros(6, 6)
    expected[1, 2] = 0.5
    torch.testing.assert_close(targets.patch_ratios[0], expected)


def test_each_region_is_a_target(tiny_model: Loupe, make_item: MakeItem):
    item = make_item(regions=3)
    targets = targets_of(tiny_model, [item])
    for number, mask in enumerate(targets.masks[0], start=1):
        assert torch.equal(mask.bool(), item["regions"] == number)
    assert len(targets.masks[0]) == 3


# ---- The condition


def test_training_is_conditioned_on_the_label():
    labels = torch.tensor([0.0, 1.0])
    assert torch.equal(
        training_condition(labels, None, [None] * 2, jitter=0.0, predicted=0.0), labels
    )


def test_jitter_moves_the_label_towards_one_half_and_not_beyond():
    labels = torch.tensor([0.0, 1.0]).repeat(100)
    soft = training_condition(labels, None, [None] * 200, jitter=0.4, predicted=0.0).view(100, 2)
    assert 0 <= soft[:, 0].min() < 0.02
    assert 0.18 < soft[:, 0].max() <= 0.2
    assert 0.8 <= soft[:, 1].min() < 0.82


def test_a_share_of_the_images_is_conditioned_on_the_prediction():
    labels, probability = torch.ones(1000), torch.full((1000,), 0.3, requires_grad=True)
    condition = training_condition(labels, probability, [None] * 1000, jitter=0.0, predicted=0.25)
    assert sorted(set(condition.tolist())) == [pytest.approx(0.3), 1.0]
    assert 200 < (condition < 1).sum() < 300
    assert not condition.requires_grad


def test_the_configured_share_reaches_the_segmenter(build: Build, make_item: MakeItem):
    model = build("MODEL.SEGMENTER.PREDICTED_CONDITION", 1.0).train()
    seen = []
    model.segmenter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    item = make_item(label=1)
    model([item])
    model.eval()
    with torch.no_grad():
        (answer,) = model([item])
    assert seen[0].item() == pytest.approx(answer["forgery_score"], abs=1e-5)


@torch.no_grad()
def test_evaluation_is_conditioned_on_the_classifiers_probability(
    tiny_model: Loupe, make_item: MakeItem
):
    conditions: list[Tensor] = []
    tiny_model.segmenter.register_forward_pre_hook(lambda _m, args: conditions.append(args[1]))
    (answer,) = tiny_model.eval()([make_item(label=1)])
    assert conditions[0].item() == pytest.approx(answer["forgery_score"])
    assert 0 < answer["forgery_score"] < 1


@torch.no_grad()
def test_evaluation_never_reads_the_truth(tiny_model: Loupe, make_item: MakeItem):
    bare = {k: make_item()[k] for k in ("file_name", "image_id", "image", "valid_size")}
    bare |= {"height": 50, "width": 70, "window": (0.0, 0.0, 70.0, 50.0)}
    with_truth = bare | {"ground_truth": object(), "label": 0, "mask": None, "regions": None}
    one, other = tiny_model.eval()([bare]) + tiny_model([with_truth])
    assert one["forgery_score"] == other["forgery_score"]
    assert torch.equal(one["forgery_map"], other["forgery_map"])


# ---- Predictions


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_an_answer_has_a_score_and_maps_of_their_sizes(
    kind: str, build: Build, make_item: MakeItem
):
    model = build(*KINDS[kind]).eval()
    (answer,) = model([make_item(**sized(kind))])
    assert isinstance(answer["forgery_score"], float)
    assert 0 <= answer["forgery_score"] <= 1
    assert answer["forgery_map"].shape == (50, 70)
    assert answer["forgery_map"].dtype == torch.float32
    assert 0 <= answer["forgery_map"].min() <= answer["forgery_map"].max() <= 1
    if kind == "stage 1 without patches":
        assert answer["patch_map"] is None
    else:
        assert answer["patch_map"].shape == (6, 6)
        assert answer["patch_map"].dtype == torch.float32


@torch.no_grad()
def test_unreadable_images_are_answered_with_their_error_in_their_place(
    tiny_model: Loupe, make_item: MakeItem
):
    broken = {"file_name": "b.png", "image_id": "b", "error": "b.png: truncated"}
    answers = tiny_model.eval()([broken, make_item(0), broken, make_item(1)])
    assert answers[0] == answers[2] == {"error": "b.png: truncated"}
    alone = tiny_model([make_item(1)])[0]
    assert answers[3]["forgery_score"] == pytest.approx(alone["forgery_score"], abs=1e-6)


@torch.no_grad()
def test_a_batch_of_unreadable_images_and_no_batch_at_all_are_answered(tiny_model: Loupe):
    assert tiny_model.eval()([]) == []
    assert tiny_model([{"file_name": "a", "image_id": "a", "error": "no"}]) == [{"error": "no"}]


@pytest.mark.parametrize("kind", ["stage 1", "stage 2", "stage 2, pixels ask"])
@pytest.mark.parametrize(
    "valid_sizes", [((84, 84), (84, 84)), ((50, 84), (84, 84)), ((33, 84), (84, 70))]
)
@torch.no_grad()
def test_a_batch_of_two_equals_two_batches_of_one(
    kind: str, valid_sizes: tuple, build: Build, make_item: MakeItem
):
    model = wakened(build(*KINDS[kind])).eval()
    items = [make_item(i, valid_size=valid_size) for i, valid_size in enumerate(valid_sizes)]
    for one, both in zip([model([item])[0] for item in items], model(items), strict=True):
        assert both["forgery_score"] == pytest.approx(one["forgery_score"], abs=1e-5)
        torch.testing.assert_close(both["forgery_map"], one["forgery_map"], rtol=0, atol=1e-4)
        torch.testing.assert_close(both["patch_map"], one["patch_map"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["stage 1", "stage 2"])
@torch.no_grad()
def test_what_padding_holds_changes_nothing(kind: str, build: Build, make_item: MakeItem):
    model = wakened(build(*KINDS[kind])).eval()
    item = make_item(valid_size=(50, 84))
    clean = model([item])[0]
    item["image"][:, 50:] = torch.randint(0, 256, (3, 34, 84), dtype=torch.uint8)
    dirty = model([item])[0]
    assert clean["forgery_score"] == dirty["forgery_score"]
    assert torch.equal(clean["forgery_map"], dirty["forgery_map"])


def test_what_padding_holds_changes_no_loss(tiny_model: Loupe, make_item: MakeItem):
    tiny_model.train().mask_criterion.draw = draw_alike
    item = make_item(valid_size=(50, 84))
    clean = tiny_model([item])
    item["image"][:, 50:] = 255
    torch.testing.assert_close(tiny_model([item]), clean, rtol=0, atol=0)


def native_item(make_item: MakeItem, seed: int, height: int, width: int) -> dict[str, Any]:
    item = make_item(seed, valid_size=(height, width))
    for key in ("image", "mask", "regions"):
        item[key] = item[key][..., :height, :width]
    return item


def test_a_batch_of_images_of_several_sizes_is_padded_to_whole_patches(
    tiny_model: Loupe, make_item: MakeItem
):
    items = [native_item(make_item, 0, 40, 84), native_item(make_item, 1, 57, 30)]
    inputs = tiny_model.preprocess(items)
    assert inputs.images.shape == (2, 3, 70, 84)
    assert inputs.patch_valid.sum(dim=(1, 2)).tolist() == [3 * 6, 5 * 3]
    assert all(torch.isfinite(loss) for loss in tiny_model.train()(items).values())


@torch.no_grad()
def test_images_of_several_sizes_have_maps_of_their_own_sizes(
    tiny_model: Loupe, make_item: MakeItem
):
    items = [native_item(make_item, 0, 40, 84), native_item(make_item, 1, 57, 30)]
    items[1] |= {"height": 114, "width": 60, "window": (0, 0, 60, 114)}
    for item, answer in zip(items, tiny_model.eval()(items), strict=True):
        assert answer["forgery_map"].shape == (item["height"], item["width"])
        assert torch.isfinite(answer["forgery_map"]).all()


@torch.no_grad()
def test_the_map_mixes_masks_and_patches_as_told(build: Build, make_item: MakeItem):
    model, item = build(*STAGE_2).eval(), make_item()
    maps = {}
    for share in (0.0, 0.25, 1.0):
        model.patch_share = share
        maps[share] = model([item])[0]["forgery_map"]
    segmenter, model.segmenter = model.segmenter, None
    patches = model([item])[0]["forgery_map"]
    model.segmenter = segmenter
    torch.testing.assert_close(maps[1.0], patches)
    torch.testing.assert_close(maps[0.25], 0.75 * maps[0.0] + 0.25 * patches)
    assert not torch.equal(maps[0.0], patches)


@torch.no_grad()
def test_the_threshold_of_the_map_moves_to_one_half(build: Build, make_item: MakeItem):
    model, item = build(*STAGE_2).eval(), make_item()
    raw = model([item])[0]["forgery_map"]
    model.mask_from = float(raw.mean())
    shifted = model([item])[0]["forgery_map"]
    assert torch.equal(shifted >= 0.5, raw >= model.mask_from)
    assert 0 < (shifted >= 0.5).sum() < shifted.numel()
    assert (shifted.flatten()[raw.flatten().argsort()].diff() >= 0).all()
    assert shifted.min() >= 0
    assert shifted.max() <= 1
    model.mask_from_probability = model([item])[0]["forgery_score"] + 1e-3
    assert torch.equal(model([item])[0]["forgery_map"], raw)


def test_pixels_are_normalised_to_minus_one_to_one(tiny_model: Loupe, make_item: MakeItem):
    item = make_item()
    item["image"][:] = 0
    item["image"][:, 0, 0] = 255
    images = tiny_model.preprocess([item]).images
    assert torch.equal(images[0, :, 0, 0], torch.ones(3))
    assert torch.equal(images[0, :, 1, 1], -torch.ones(3))


@torch.no_grad()
def test_the_map_lies_right_way_up(build: Build, make_item: MakeItem):
    model = build(*STAGE_1).eval()
    patch_logits = torch.full((1, 6, 6), -9.0)
    patch_logits[0, 1, 4] = 9.0
    model.classifier.forward = lambda **_: ClassifierOutput(torch.zeros(1), patch_logits)
    forgery_map = model([make_item()])[0]["forgery_map"]
    row, column = divmod(int(forgery_map.argmax()), 70)
    assert row in range(50 * 1 // 6, 50 * 2 // 6 + 1)
    assert column in range(70 * 4 // 6, 70 * 5 // 6 + 1)


# ---- Precision


@pytest.mark.parametrize(
    "kind", ["stage 1", "stage 2 with boxes", "stage 2, pixels ask", "stage 3"]
)
def test_bfloat16_autocast_gives_nearly_the_same_float32_losses(
    kind: str, build: Build, make_item: MakeItem
):
    model = build(*KINDS[kind]).train()
    if model.mask_criterion:
        model.mask_criterion.draw = draw_alike
    items = [make_item(0, regions=2), make_item(1, label=0)]
    plain = model(items)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(items)
    assert {loss.dtype for loss in mixed.values()} == {torch.float32}
    for name in plain:
        assert mixed[name].item() == pytest.approx(plain[name].item(), rel=0.1, abs=0.05)
    sum(mixed.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() for p in trained)


@torch.no_grad()
def test_predictions_under_autocast_are_float32(tiny_model: Loupe, make_item: MakeItem):
    with torch.autocast("cpu", torch.bfloat16):
        (answer,) = tiny_model.eval()([make_item()])
    assert answer["forgery_map"].dtype == answer["patch_map"].dtype == torch.float32


# ---- Sizes


@pytest.fixture(scope="module")
def published() -> Loupe:
    """The default model, at its full size, without memory."""
    cfg: CfgNode = add_loupe_config(get_cfg())
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        ("backbone", 316_102_656),
        ("backbone.vit.attn_pool", 12_595_200),
        ("classifier", 4_203_075),
        ("segmenter.feature_pyramid", 12_631_040),
        ("segmenter.pixel_decoder", 7_683_520),
        # The released count leaves out the class head, 2 x 256 + 2, which is ours.
        ("segmenter.mask_decoder", 14_417_664 + 514),
        ("segmenter", 34_733_250),
        ("", 355_038_981),
    ],
)
def test_the_default_model_has_the_released_number_of_parameters(
    part: str, parameters: int, published: Loupe
):
    module = published.get_submodule(part)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_a_model_that_could_not_say_where_is_refused(build: Build):
    with pytest.raises(ValueError, match="nothing would say where"):
        build(*STAGE_1, "MODEL.CLASSIFIER.PATCH_PREDICTION", False)
