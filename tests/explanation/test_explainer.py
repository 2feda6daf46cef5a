"""The explainer beyond parity: one test for each fault of the released stage 2, and its use."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loupe.checkpoint import CheckpointError, load_into, load_weights, save_weights
from loupe.config import load_config
from loupe.data.explanations.examples import draw_example
from loupe.data.explanations.mapper import ExplanationMapper
from loupe.data.explanations.readers import is_explanations, read_explanations
from loupe.data.explanations.truth import all_texts
from loupe.data.images.errors import UnreadableImageError
from loupe.data.sources.entries import DatasetError, make_dataset_dict
from loupe.explanation.bases import BaseError, load_base
from loupe.explanation.batches import IGNORED, encode
from loupe.explanation.explainer import Explainer, Written
from loupe.explanation.facts import measure
from loupe.explanation.prompts import QUESTION, TEMPLATES, fill, question_of
from loupe.explanation.region_features import RegionTower, binary_mask, blend, masked_image
from loupe.explanation.writer import Writer
from loupe.structures import Prediction
from loupe.vocabulary import cell_of
from tests.explanation.tiny import CLIP, LANGUAGE, tiny_llava, worded_explainer

SIZE = CLIP["image_size"]
TEXTS = [*all_texts(), question_of("forged"), question_of("authentic", False), "undecided : . , ;"]


def item(seed: int = 0, region: Any = "box", **further: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    if isinstance(region, str):
        region = np.zeros((SIZE, SIZE), bool)
        region[4:20, 8:28] = True
    return {
        "image": torch.from_numpy(rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)),
        "valid_size": (SIZE, SIZE),
        "height": SIZE,
        "width": SIZE,
        "region": region,
        "question": question_of("forged"),
        "explanation": "This image was forged. A part was retouched.",
        "file_name": f"{seed}.png",
        "image_id": str(seed),
    } | further


@pytest.fixture
def explainer() -> Explainer:
    return worded_explainer(TEXTS)


def loss_of(explainer: Explainer, *items: dict[str, Any]) -> float:
    return float(explainer.train()(list(items))["loss_tokens"].detach())


# ---- B8: alpha reaches the tower, and belongs to the weights


def test_alpha_changes_what_the_model_sees():
    losses = [loss_of(worded_explainer(TEXTS, alpha=alpha), item()) for alpha in (0.0, 0.5, 1.0)]
    assert len(set(losses)) == 3
    without = [loss_of(worded_explainer(TEXTS, alpha=1.0), item(region=r)) for r in ("box", None)]
    assert without[0] == without[1]


def test_weights_of_another_alpha_or_template_are_refused(tmp_path: Path):
    trained = worded_explainer(TEXTS, alpha=0.25, lora={"r": 2, "alpha": 4})
    save_weights(trained.state_dict(), tmp_path / "a.safetensors")
    weights = load_weights(tmp_path / "a.safetensors")
    same = worded_explainer(TEXTS, alpha=0.25, lora={"r": 2, "alpha": 4})
    load_into(same, weights)
    loss_of(same, item())
    other = worded_explainer(TEXTS, alpha=0.5, lora={"r": 2, "alpha": 4})
    load_into(other, weights)
    with pytest.raises(CheckpointError, match=r"alpha: 0\.25 in the file, 0\.5 here"):
        other([item()])


def test_alpha_outside_of_its_range_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        RegionTower(torch.nn.Identity(), 1.5)


# ---- B9: the same object is under the mask in training, in evaluation and in use


@pytest.mark.parametrize("resize", ["pad", "squash", "native"])
def test_a_marked_object_stays_under_its_mask(resize: str, tmp_path: Path):
    image = np.full((60, 30, 3), 128, np.uint8)  # 30 wide, 60 high, the object at the left edge
    mask = np.zeros((60, 30), np.uint8)
    image[20:40, :10] = (255, 0, 0)
    mask[20:40, :10] = 255
    for name, picture in (("image", image), ("mask", mask)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    options = ["MODEL.META_ARCHITECTURE", "Explainer", "INPUT.SIZE", "32", "INPUT.RESIZE", resize]
    options += [f"INPUT.AUGMENTATION.{name}" for name in ("FLIP",)] + ["0.0"]
    for name in ("SCALE", "JPEG", "BLUR", "NOISE"):
        options += [f"INPUT.AUGMENTATION.{name}", "0.0"]
    options += ["MODEL.PERCEPTION_ENCODER.PATCH_SIZE", "8"]
    cfg = load_config("", options)
    paths = {"mask_file_name": str(tmp_path / "mask.png")}
    entry = make_dataset_dict(str(tmp_path / "image.png"), "a", label=1, **paths)
    told = {"question": QUESTION, "explanation": "It was forged."}
    shown = {"region_file_name": str(tmp_path / "mask.png")}
    items = [
        ExplanationMapper(cfg, True)(entry | told),
        ExplanationMapper(cfg, False)(entry | shown),
        ExplanationMapper(cfg, False, oracle=True)(entry),
    ]
    for one in items:
        height, width = one["valid_size"]
        red = one["image"][0, :height, :width].numpy() > 190
        assert red.any()
        overlap = (red & one["region"]).sum() / (red | one["region"]).sum()
        assert overlap > 0.7


# ---- B10: a LLaVA keeps its own projector


def test_the_projector_of_a_base_is_kept_and_frozen():
    explainer = worded_explainer(TEXTS, lora={"r": 2, "alpha": 4})
    assert not any("projector" in name for name in explainer.state_dict())
    frozen = [n for n, p in explainer.named_parameters() if not p.requires_grad]
    assert any("projector" in name for name in frozen)
    explainer.train()([item()])["loss_tokens"].backward()
    assert {n for n, p in explainer.named_parameters() if p.grad is not None} == {
        n for n in explainer.state_dict() if "lora" in n
    }


# ---- B11, B13, B16: masks


def test_a_map_that_cannot_be_read_is_an_error(tmp_path: Path):
    (tmp_path / "map.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    cfg = load_config("", ["INPUT.SIZE", "32", "MODEL.PERCEPTION_ENCODER.PATCH_SIZE", "8"])
    entry = make_dataset_dict(str(tmp_path / "a.png"), "a", label=0)
    shown = entry | {"region_file_name": str(tmp_path / "map.png")}
    with pytest.raises(UnreadableImageError, match=r"map\.png"):
        ExplanationMapper(cfg, False)(shown)


def test_the_threshold_of_a_mask_does_not_depend_on_its_values():
    faint = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    assert not binary_mask(faint, (8, 8)).any()
    assert binary_mask(faint + 28, (8, 8)).all()
    assert not binary_mask(torch.full((1, 1, 8, 8), 0.4), (8, 8)).any()
    with pytest.raises(ValueError, match="from 0 to 255"):
        binary_mask(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2), (1, 2))
    with pytest.raises(ValueError, match=r"must be \(B, 1, height, width\)"):
        binary_mask(torch.zeros(1, 2, 8, 8), (8, 8))


def test_a_white_mask_is_no_mask_and_an_empty_one_is_finite(explainer: Explainer):
    whole = np.ones((SIZE, SIZE), bool)
    assert loss_of(explainer, item(region=whole)) == loss_of(explainer, item(region=None))
    nothing = loss_of(explainer, item(region=~whole))
    assert np.isfinite(nothing)
    assert nothing != loss_of(explainer, item(region=None))


def test_the_background_may_be_blurred():
    images = torch.randn(1, 3, 32, 32)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    blurred = masked_image(images, mask, "blur")
    assert torch.equal(blurred[..., :16], images[..., :16])
    outside = blurred[..., 20:].std()
    assert 0 < outside < images[..., 20:].std() / 2
    assert torch.equal(blend(images, images, 0.3), images)


# ---- B12: one template


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_prompt_in_training_begins_with_the_prompt_in_use(name: str):
    asked, told = (fill(TEMPLATES[name], QUESTION, text) for text in (None, "It was forged."))
    assert told.before == asked.before
    assert told.after.startswith(asked.after)
    assert told.start == len(asked.after)


# ---- Labels by offsets (the released code counts tokens, right for one tokenizer only)


def test_exactly_the_explanation_and_its_end_are_supervised(explainer: Explainer):
    tokenizer = explainer.tokenizer
    tokens = encode(tokenizer, fill(explainer.template, QUESTION, "It was forged."), 3, 5)
    labels = [label for label in tokens.labels if label != IGNORED]
    assert tokenizer.convert_ids_to_tokens(labels) == ["It", "was", "forged", ".", "</s>"]
    assert tokens.ids.count(3) == 5
    assert len(tokens.ids) == len(tokens.labels)


def test_a_small_bpe_supervises_no_colon():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    prompt = fill(TEMPLATES["vicuna"], QUESTION, "Type: object tampering")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([prompt.after] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokens = encode(tokenizer, prompt, 1, 2)
    labels = [label for label in tokens.labels if label != IGNORED]
    assert tokenizer.decode(labels).strip() == "Type: object tampering</s>"


# ---- B14, B16, B17 and use


def test_a_batch_of_two_is_two_batches_of_one(explainer: Explainer):
    pair = [item(0), item(1, region=None, question=question_of("authentic", marked=False))]
    explainer.eval()
    together = explainer.write(pair)
    assert together == [explainer.write([one])[0] for one in pair]
    counts = explainer.loss_counts(pair)
    assert counts.tolist() == [2 * explainer.loss_counts(pair[:1])[0]]
    explainer.train()
    whole = explainer(pair)["loss_tokens"]
    parts = sum(explainer([one], counts)["loss_tokens"] for one in pair)
    assert float(whole) == pytest.approx(float(parts), rel=1e-5)


def test_an_explanation_that_is_cut_says_so():
    short = worded_explainer(TEXTS, max_new_tokens=2).eval()
    (written,) = short.write([item()])
    assert not written.complete
    end = short.tokenizer.convert_tokens_to_ids("</s>")
    with torch.no_grad():  # The end is now always the likeliest token.
        short.vlm.lm_head.weight.zero_()
        short.vlm.model.language_model.norm.weight.fill_(1.0)
        short.vlm.lm_head.weight[end] = 1e3
    (written,) = short.write([item()])
    assert written == Written("", True)


def test_an_unreadable_image_is_an_error_among_explanations(explainer: Explainer):
    outputs = explainer.eval()([item(0), {"error": "b.png: damaged", "image_id": "b"}, item(1)])
    assert outputs[1] == {"error": "b.png: damaged"}
    assert all(outputs[i]["explanation"] is not None for i in (0, 2))


def test_a_guide_decides_on_region_and_verdict_and_no_label_does():
    class Guide(torch.nn.Module):
        """Marks the left half of every image."""

        def forward(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
            found = torch.zeros(SIZE, SIZE)
            found[:, : SIZE // 2] = 0.9
            return [{"forgery_score": 0.8, "forgery_map": found, "patch_map": None} for _ in items]

    explainer = worded_explainer(TEXTS, guide=Guide()).eval()
    one = {k: v for k, v in item(region=None).items() if k not in ("explanation", "question")}
    outputs = [explainer([one | {"label": label}])[0] for label in (0, 1)]
    assert outputs[0]["explanation"] == outputs[1]["explanation"]
    assert outputs[0]["verdict"] == "forged"
    assert outputs[0]["region_claims"].side == "left half"
    assert outputs[0]["forgery_score"] == 0.8


def test_regions_also_go_with_images_that_are_authentic_or_called_so():
    rng = np.random.default_rng(0)
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    cases: dict[tuple[bool, str, bool], int] = {}
    for forged in (True, False):
        truth = mask.copy()
        truth[:20, :20] = forged
        for _ in range(200):
            example = draw_example(rng, image, truth, "splice" if forged else "", 0.5)
            key = (forged, example.claims.verdict, example.region is not None)
            cases[key] = cases.get(key, 0) + 1
            assert ("No region" in example.question) == (example.region is None)
            assert forged or not example.claims.technique
            if example.claims.verdict == "authentic":
                assert not example.claims.cell
    assert cases[False, "authentic", True] > 40
    assert cases[True, "authentic", True] > 2
    assert cases[False, "undecided", True] > 20


def test_the_measured_region_may_be_told_in_words():
    mask = np.zeros((64, 64), bool)
    mask[40:, 44:] = True
    image = np.full((64, 64, 3), 20, np.uint8)
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        example = draw_example(rng, image, mask, "splice", 1.0, tell=True)
        if not example.claims.cell:
            assert example.region is None or example.claims.verdict == "authentic"
            continue
        # What is told is what is measured of the region that is shown, and so is what is claimed.
        told = f"{example.claims.cell}, {example.claims.side}, {example.claims.size}, dark."
        assert told in example.question
        assert cell_of(example.region) == example.claims.cell
        seen.add(example.claims.verdict)
    assert seen == {"forged", "undecided"}
    assert "Measured" not in question_of("forged", False, example.claims)
    writer = Writer(worded_explainer(TEXTS, tell_region=True), 64)
    asked = writer._item(image, Prediction(0.9, mask.astype(np.float32), None))["question"]
    assert "lower right, right half" in asked


def test_only_what_trains_is_saved_and_it_comes_back():
    first = worded_explainer(TEXTS, lora={"r": 2, "alpha": 4})
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    assert all("lora" in name or name == "saved_settings" for name in weights)
    assert all(".language_model." in name for name in weights if "lora" in name)
    second = worded_explainer(TEXTS, lora={"r": 2, "alpha": 4})
    load_into(second, weights)
    assert loss_of(second, item()) == loss_of(first, item())
    del weights[next(name for name in weights if "lora" in name)]
    with pytest.raises(CheckpointError, match="missing"):
        load_into(second, weights)


def test_six_channels_pass_through_the_tiles_of_llava_next():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
    from transformers import LlavaNextForConditionalGeneration as Next

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP),
        text_config=LlamaConfig(**LANGUAGE, vocab_size=40),
        image_token_index=39,
        image_grid_pinpoints=[[32, 64], [64, 32]],
    )
    torch.manual_seed(0)
    model = Next(config).eval()
    model.model.vision_tower = RegionTower(model.model.vision_tower, 0.5)
    tiles = torch.randn(1, 3, 3, 32, 32)
    sizes = torch.tensor([[32, 64]])
    white = torch.cat([tiles, tiles], dim=2)
    masked = torch.cat([tiles, tiles * (torch.rand(1, 3, 1, 32, 32) > 0.5)], dim=2)
    features = [
        torch.cat(
            list(model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output)
        )
        for pixels in (white, masked)
    ]
    assert features[0].shape == features[1].shape
    assert not torch.equal(features[0], features[1])
    model.model.vision_tower = model.model.vision_tower.tower
    plain = model.model.get_image_features(tiles, sizes, return_dict=True).pooler_output
    assert torch.allclose(torch.cat(list(plain)), features[0], atol=1e-6)


def test_a_base_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BaseError, match="no base model"):
        load_base(str(tmp_path), torch.float32)
    with pytest.raises(BaseError, match="0 GGUF files"):
        load_base("package:no_such_package", torch.float32)


def test_what_a_packaged_base_needs_besides_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "half_installed").mkdir()
    (tmp_path / "half_installed" / "__init__.py").touch()
    (tmp_path / "half_installed" / "model.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def needs_more(*_: object, **__: object) -> None:
        raise ImportError("Please install\ngguf")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", needs_more)
    with pytest.raises(
        BaseError, match=r"model.gguf: Please install gguf; run pip install 'loupe\["
    ):
        load_base("package:half_installed", torch.float32)


def test_a_folder_of_a_llava_is_a_base(tmp_path: Path):
    from loupe.explanation.building import with_tower

    explainer = worded_explainer(TEXTS)
    vlm = tiny_llava(CLIP, LANGUAGE | {"vocab_size": 200}, explainer.image_id)
    vlm.model.vision_tower = vlm.model.vision_tower.tower
    vlm.save_pretrained(tmp_path)
    explainer.tokenizer.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), torch.float32)
    assert base.sees
    assert len(base.digest) == 16
    keys = load_config("", []).MODEL.EXPLAINER
    model, tokens, size = with_tower(base, None, explainer.image_id, keys, 336)
    assert (tokens, size) == (16, SIZE)
    assert isinstance(model.model.vision_tower, RegionTower)


@pytest.mark.parametrize("marked", [True, False])
def test_a_text_is_checked_against_verdict_and_mask(marked: bool, monkeypatch):
    writer = Writer(worded_explainer(TEXTS), SIZE)
    image = np.full((80, 80, 3), 20, np.uint8)  # Larger than the model sees.
    forgery_map = np.zeros((80, 80), np.float32)
    forgery_map[50:, 50:] = float(marked)
    told = "Authentic? No: it was forged at the upper left. It is large and dark."
    monkeypatch.setattr(writer.model, "write", lambda items: [Written(told, False)])
    text = writer.write(image, Prediction(0.9, forgery_map, None, "undecided"))
    assert text.text == told
    assert "The text was cut at the limit of its length." in text.warnings
    assert any("detector undecided" in line for line in text.warnings)
    if marked:
        assert any("cell upper left, measured lower right" in line for line in text.warnings)
        assert not any("tone" in line for line in text.warnings)
    else:
        assert "The text names a region, and none is marked." in text.warnings


def test_nothing_is_asked_of_a_network(tmp_path: Path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network was asked")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    explainer = worded_explainer(TEXTS)
    explainer.tokenizer.save_pretrained(tmp_path)
    explainer.vlm.model.vision_tower = explainer.vlm.model.vision_tower.tower
    explainer.vlm.save_pretrained(tmp_path)
    assert load_base(str(tmp_path), torch.float32).sees
    own = worded_explainer(TEXTS, lora={"r": 2, "alpha": 4})
    assert np.isfinite(loss_of(own, item()))
    writer = Writer(own, SIZE)
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    forgery_map = np.zeros((96, 96), np.float32)
    forgery_map[:40, :40] = 1
    prediction = Prediction(0.9, forgery_map, None)
    assert writer.write(image, prediction).text is not None
    assert measure(image, prediction)


# ---- Readers


def test_published_layouts_are_read(tmp_path: Path):
    (tmp_path / "tampered").mkdir()
    for name in ("tampered/a.png", "b.png", "m.png"):
        Image.new("L", (20, 20)).save(tmp_path / name)
    turns = [
        {"from": "human", "value": "<image>\nWas it forged?"},
        {"from": "gpt", "value": "Yes, at the top left."},
    ]
    records = [
        {"image": "tampered/a.png", "mask": "m.png", "conversations": turns},
        {"image": "b.png", "mask": "", "conversations": turns},
        {"image": "tampered/a.png", "Type": "object tampering", "Areas": ["upper left", "sky"]},
        {"image": "b.png", "Type": "real", "Tampered Content": "none"},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records))
    assert is_explanations(str(path))
    entries = read_explanations(path)
    assert [entry["label"] for entry in entries] == [1, 0, 1, 0]
    assert entries[0]["question"] == "Was it forged?"
    assert entries[0]["mask_file_name"].endswith("m.png")
    assert entries[2]["explanation"] == "Type: object tampering Areas: upper left sky"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": []}, 'entry 0: it has no "image"'),
        ({"image": "a.png"}, "neither"),
        (
            {"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}]},
            "lacks the question",
        ),
        ({"image": "none.png", "Type": "real"}, r"none\.png is missing"),
        ({"image": "a.png", "mask": "no.png", "Type": "x"}, r"no\.png is missing"),
    ],
)
def test_an_entry_that_is_not_whole_is_named(record: dict, message: str, tmp_path: Path):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "set.json").write_text(json.dumps([record]))
    with pytest.raises(DatasetError, match=message):
        read_explanations(tmp_path / "set.json")
