"""The expert on our own encoder; for each bug of the released stage 1 a test that it is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from loupe import add_loupe_config
from loupe.config import load_config
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.model_zoo import CONFIGS
from loupe.modeling.expert.view import crop_view, whole_view
from loupe.solver import warmup_stable_decay
from loupe.structures import GroundTruth
from tests.modeling.expert.sizes import OWN, reference_options

SIZE = 64
Item = dict[str, object]


@pytest.fixture
def item(make_item) -> object:
    """`item(seed, ...)`: a training item at the size of the expert."""

    def make(seed: int = 0, *, label: int = 1, valid: tuple[int, int] = (SIZE, SIZE)) -> Item:
        return make_item(seed, label=label, valid_size=valid, size=SIZE)

    return make


def predictions(model, items: list[Item]) -> list[Item]:
    with torch.no_grad():
        return model.eval()(items)


# ---- Bugs of the released code


def test_another_label_in_evaluation_changes_no_bit(build_expert, item):
    # Released: the true class decides whether there is a mask.
    model = build_expert()
    truths = [GroundTruth(0, None), GroundTruth(1, np.ones((50, 70), bool))]
    truths.append(GroundTruth(1, np.ones((50, 70), bool), wholly_forged=True))
    found = [
        predictions(model, [item() | {"ground_truth": truth, "label": truth.label}])[0]
        for truth in truths
    ]
    for other in found[1:]:
        assert other["forgery_score"] == found[0]["forgery_score"]
        assert torch.equal(other["forgery_map"], found[0]["forgery_map"])


def test_a_soft_mask_stays_soft_in_training_and_254_is_forged(build_expert, item):
    # Released: only pixels of exactly 1.0 count, so a mask of 254 is empty.
    model = build_expert().train()
    losses = []
    for value in (0.4, 254 / 255, 1.0):
        masked = item()
        masked["mask"] = masked["mask"] * value
        losses.append(float(model([masked])["loss_mask_dice"].detach()))
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)
    assert losses[0] != pytest.approx(losses[2], rel=2e-2)


def test_the_weight_of_the_classes_holds_without_any_mask(build_expert, item):
    # Released: total = cross-entropy where the batch has no mask, whatever its weight.
    authentic = [item(0, label=0), item(1, label=0)]
    single = build_expert().train()(authentic)["loss_class"]
    double = build_expert("MODEL.EXPERT.CLASS_WEIGHT", 2.0).train()(authentic)
    assert float(double["loss_class"].detach()) == pytest.approx(2 * float(single.detach()))
    assert float(double["loss_mask_bce"].detach()) == 0.0
    sum(double.values()).backward()


def test_the_weight_of_the_masks_is_applied(build_expert, item):
    # Released: the weights of BCE and Dice are read and used nowhere.
    single = build_expert().train()([item()])
    triple = build_expert("MODEL.EXPERT.MASK_WEIGHT", 3.0).train()([item()])
    for name in ("loss_mask_bce", "loss_mask_dice"):
        assert float(triple[name].detach()) == pytest.approx(3 * float(single[name].detach())), name
    assert float(triple["loss_class"].detach()) == float(single["loss_class"].detach())


def test_sizes_and_the_number_of_classes_come_from_the_configuration(tmp_path: Path, item):
    # Released: width 1024, 1024 px, three classes and CLIP's name are fixed in the code.
    options = [*reference_options(tmp_path), "MODEL.EXPERT.NUM_CLASSES", 2]
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(options)
    model = build_model(cfg)
    (prediction,) = predictions(model, [item(valid=(40, 64))])
    assert prediction["class_probabilities"].shape == (2,)
    assert prediction["forgery_map"].shape == (50, 70)


def test_the_learning_rate_is_not_zero_before_the_end():
    # Released: the schedule is stepped twice, so that it is 0 from the middle on.
    solver = load_config(CONFIGS / "released" / "ifdl_stage1.yaml").SOLVER
    rate = warmup_stable_decay(solver.WARMUP_FRACTION, solver.DECAY_FRACTION, solver.DECAY_SHAPE)
    assert rate(0.01) == pytest.approx(1.0, abs=1e-6)
    assert rate(0.5) == pytest.approx(0.5 / 0.99, abs=1e-3)
    assert rate(0.999) > 0


# ---- Classes, prompts, gate


def test_images_generated_as_a_whole_teach_the_class_but_not_the_map(build_expert, item):
    generated = item() | {"wholly_forged": True}
    model = build_expert().train()
    assert [model.class_index(one) for one in (item(label=0), generated, item())] == [0, 1, 2]
    assert model.loss_counts([generated, item()]).tolist() == [2, 0, 1, 0]
    assert float(model([generated])["loss_mask_dice"].detach()) == 0.0
    two = build_expert("MODEL.EXPERT.NUM_CLASSES", 2)
    assert two.class_index(generated) == 1
    assert two.loss_counts([generated, item()]).tolist() == [2, 0, 2, 0]


def test_an_image_without_a_known_mask_teaches_the_class_alone(build_expert, item):
    unknown = item() | {"mask_known": False}
    assert build_expert().loss_counts([unknown]).tolist() == [1, 0, 0, 0]


def test_the_gate_multiplies_the_map_by_the_probability(build_expert, item):
    (free,) = predictions(build_expert(), [item()])
    (gated,) = predictions(build_expert("MODEL.EXPERT.GATE", "class"), [item()])
    expected = free["forgery_map"] * free["forgery_score"]
    torch.testing.assert_close(gated["forgery_map"], expected)


@pytest.mark.parametrize("prompt", ["vector", "tokens"])
def test_a_batch_of_two_is_two_batches_of_one_and_padding_says_nothing(build_expert, item, prompt):
    model = build_expert("MODEL.EXPERT.PROMPT", prompt)
    items = [item(0, valid=(40, 64)), item(1)]
    together = predictions(model, items)
    noisy = [dict(one, image=one["image"].clone()) for one in items]
    noisy[0]["image"][:, 40:] = 200
    for one, same in zip(noisy, together, strict=True):
        (alone,) = predictions(model, [one])
        assert alone["forgery_score"] == pytest.approx(same["forgery_score"], abs=1e-6)
        torch.testing.assert_close(alone["forgery_map"], same["forgery_map"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["vector", "tokens"])
def test_padding_gives_no_evidence(build_expert, prompt):
    evidence = build_expert("MODEL.EXPERT.PROMPT", prompt).eval().evidence
    pooled, patches = torch.randn(1, 32), torch.randn(1, 32, 2, 4)
    patches[..., 2:] = 9.0
    valid = torch.tensor([[[True, True, False, False]] * 2])
    padded = evidence(pooled, patches, valid)
    cut = evidence(pooled, patches[..., :2], None)
    torch.testing.assert_close(padded.class_logits, cut.class_logits)
    if prompt == "tokens":
        kept = padded.prompts.view(1, 2, 4, 32)
        torch.testing.assert_close(kept[:, :, :2].flatten(1, 2), cut.prompts)
        # Padding repeats the mean of the image.
        torch.testing.assert_close(kept[0, 0, 3], cut.prompts.mean(dim=1)[0])
    else:
        torch.testing.assert_close(padded.prompts, cut.prompts)


def test_prompts_of_patches_keep_their_places(build_expert, item):
    shapes = []
    for prompt in ("vector", "tokens"):
        model = build_expert("MODEL.EXPERT.PROMPT", prompt)
        inputs = model.preprocess([item()])
        shapes.append(model.classify(inputs, model.encode(inputs)).prompts.shape)
    assert [tuple(shape) for shape in shapes] == [(1, 1, 32), (1, 16, 32)]


def test_every_trained_parameter_has_a_gradient(build_expert, item):
    model = build_expert("MODEL.FREEZE", []).train()
    sum(model([item(0), item(1, label=0)]).values()).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()}
    assert without == set()


def test_an_unreadable_image_has_its_error_as_prediction(build_expert, item):
    outputs = predictions(build_expert(), [{"error": "broken"}, item()])
    assert outputs[0] == {"error": "broken"}
    assert "forgery_map" in outputs[1]


# ---- Geometry


def test_tower_and_segmentation_encoder_see_the_same_image(build_expert):
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., :32, :8] = 255  # A marked object at the left of a 64 x 32 image.
    whole, sizes = whole_view(pixels, [(32, 64)], 32)
    assert sizes == [(16, 32)]
    assert whole[0, 0, :16, :4].min() > 200
    assert whole[0, 0, 16:].max() == 0
    # The released crop loses it.
    assert crop_view(pixels, [(32, 64)], 32).max() == 0


def test_clip_refuses_parts_of_patches(tmp_path: Path):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(reference_options(tmp_path))
    tower = build_model(cfg).backbone
    assert tower(torch.zeros(1, 3, 21, 28))["patches"].shape == (1, 48, 3, 4)
    with pytest.raises(ValueError, match="28 x 30 px: both sides must be multiples of .* 7"):
        tower(torch.zeros(1, 3, 28, 30))


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_detectron2s_predictor_gives_what_the_mapper_gives(resize: str):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list([*OWN, "INPUT.RESIZE", resize])
    torch.manual_seed(0)
    theirs = DefaultPredictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (80, 50, 3), np.uint8)
    output = theirs(image[:, :, ::-1])
    item = ForgeryDatasetMapper(cfg, is_train=False).map_image(image)
    (expected,) = predictions(theirs.model, [item])
    assert output["forgery_map"].shape == (80, 50)
    assert output["forgery_score"] == expected["forgery_score"]
    assert torch.equal(output["forgery_map"], expected["forgery_map"])


def test_sam_refuses_a_canvas_of_another_size(tmp_path: Path, make_item):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(reference_options(tmp_path))
    with pytest.raises(ValueError, match="INPUT.SIZE 64"):
        predictions(build_model(cfg), [make_item()])


# ---- Cached features


def test_cached_features_of_sam_are_read_back(tmp_path: Path, item):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(reference_options(tmp_path))
    cfg.merge_from_list(["MODEL.EXPERT.FEATURE_CACHE", str(tmp_path / "features")])
    for name in cfg.INPUT.AUGMENTATION:
        cfg.INPUT.AUGMENTATION[name] = 0.0
    model = build_model(cfg)
    first = predictions(model, [item(0), item(1, valid=(40, 64))])
    files = sorted((tmp_path / "features").rglob("*.npy"))
    assert len(files) == 2
    assert np.load(files[0]).dtype == np.float16
    model.segmentation_encoder.forward = None  # It must not be asked again.
    again = predictions(model, [item(0), item(1, valid=(40, 64))])
    assert all(
        torch.equal(a["forgery_map"], b["forgery_map"]) for a, b in zip(first, again, strict=True)
    )


def test_a_cache_with_augmentation_is_refused(tmp_path: Path):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list([*reference_options(tmp_path), "MODEL.EXPERT.FEATURE_CACHE", "features"])
    with pytest.raises(ValueError, match=r"INPUT\.AUGMENTATION\.FLIP 0"):
        build_model(cfg)
