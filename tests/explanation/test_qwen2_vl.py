"""A Qwen2-VL as a base: its features are blended after its merger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loupe.checkpoint import load_into
from loupe.config import load_config
from loupe.explanation.bases import BaseError, load_base
from loupe.explanation.building import explainer_arguments
from loupe.explanation.explainer import Explainer
from loupe.explanation.region_features import patch_rows, tower_of
from loupe.explanation.word_tokenizer import IMAGE, word_tokenizer
from tests.explanation.test_explainer import TEXTS, item, loss_of

PATCH, MERGE = 4, 2
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = word_tokenizer(TEXTS)
    vision = {"embed_dim": 32, "hidden_size": 48, "depth": 2, "num_heads": 2}
    language = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    language |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    rope = {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        vision_config=vision | {"patch_size": PATCH, "spatial_merge_size": MERGE},
        text_config=language | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("qwen2-vl")
    Qwen2VLForConditionalGeneration(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def build(folder: Path, *options: str) -> Explainer:
    keys = {
        "MODEL.META_ARCHITECTURE": "Explainer",
        "MODEL.EXPLAINER.BASE": str(folder),
        "MODEL.EXPLAINER.TEMPLATE": "words",
        "MODEL.EXPLAINER.LORA_DROPOUT": "0.0",
        "MODEL.EXPLAINER.MAX_NEW_TOKENS": "12",
        "INPUT.SIZE": str(SIZE),
    }
    cfg = load_config("", [word for pair in keys.items() for word in pair] + list(options))
    torch.manual_seed(1)
    return Explainer(**explainer_arguments(cfg))


def own_processor() -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=MERGE, do_resize=False, do_rescale=False, do_normalize=False
    )


def test_patches_are_in_the_order_of_the_models_own_processor():
    image = torch.rand(3, 24, 40)
    expected = own_processor()(images=[image], return_tensors="pt")
    rows = patch_rows(image[None], PATCH, MERGE, 2)
    assert torch.equal(rows, expected["pixel_values"])
    assert expected["image_grid_thw"].tolist() == [[1, 6, 10]]


def test_a_white_mask_is_the_model_itself_and_a_mask_matters(folder: Path):
    explainer = build(folder).eval()
    one = item(region=None)
    batch = explainer_batch(explainer, one)
    with torch.no_grad():
        ours = explainer.token_losses(batch, explainer.pixel_values([one]))
        masked = explainer.token_losses(batch, explainer.pixel_values([item()]))
        plain = plain_losses(folder, batch, explainer.normalise(one["image"][None].float()))
    assert torch.allclose(ours, plain, atol=1e-6)
    assert not torch.allclose(ours, masked, atol=1e-4)


def explainer_batch(explainer: Explainer, one: dict[str, Any]) -> Any:
    from loupe.explanation.batches import encode, pad
    from loupe.explanation.prompts import fill

    prompt = fill(explainer.template, one["question"], one["explanation"])
    tokens = encode(explainer.tokenizer, prompt, explainer.image_id, explainer.image_tokens)
    return pad([tokens], 0)


def plain_losses(folder: Path, batch: Any, image: torch.Tensor) -> torch.Tensor:
    """Losses of the model as transformers runs it, with inputs of its own processor."""
    model: Any = load_base(str(folder), torch.float32).model.eval()
    seen = own_processor()(images=list(image), return_tensors="pt")
    image_id = model.config.image_token_id
    logits = model(
        input_ids=batch.ids, mm_token_type_ids=(batch.ids == image_id).int(), **seen
    ).logits[:, :-1]
    logits[..., image_id] = float("-inf")
    labels = batch.labels[:, 1:]
    wanted = labels >= 0
    return torch.nn.functional.cross_entropy(logits[wanted], labels[wanted], reduction="none")


def test_it_trains_writes_and_comes_back(folder: Path):
    explainer = build(folder)
    explainer.train()([item()])["loss_tokens"].backward()
    trained = {name for name, value in explainer.named_parameters() if value.grad is not None}
    assert trained
    assert all(".language_model." in name and "lora_" in name for name in trained)
    with torch.no_grad():
        for name, value in explainer.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.5)
    items = [item(0), item(1, region=None)]
    together = explainer.eval()([*items])
    assert [one["explanation"] for one in together] == [
        explainer([one])[0]["explanation"] for one in items
    ]
    second = build(folder)
    load_into(second, {name: value.clone() for name, value in explainer.state_dict().items()})
    assert loss_of(second, item()) == loss_of(explainer, item())


def test_the_merger_is_the_projector_and_trains_only_if_asked(folder: Path):
    names = build(folder, "MODEL.EXPLAINER.TRAIN_PROJECTOR", "True").state_dict()
    assert any(".merger." in name for name in names)
    assert not any(".merger." in name for name in build(folder).state_dict())


def test_alpha_and_the_place_of_the_blend_belong_to_the_weights(folder: Path):
    whole = build(folder, "MODEL.EXPLAINER.ALPHA", "1.0")
    assert whole.settings["blended"] == "after the merger"
    assert loss_of(whole, item()) == loss_of(whole, item(region=None))
    assert tower_of(whole.vlm).alpha == 1


def test_a_canvas_that_is_no_multiple_of_the_squares_is_refused(folder: Path):
    with pytest.raises(BaseError, match=r"INPUT\.SIZE is 30; .* multiple of 8, such as 32"):
        build(folder, "INPUT.SIZE", "30")


def test_the_template_is_the_one_of_its_own_processor():
    from loupe.explanation.prompts import TEMPLATES, fill

    prompt = fill(TEMPLATES["qwen2-vl"], "Why?", "So.")
    assert prompt.before.endswith("<|im_start|>user\n<|vision_start|>")
    assert prompt.after == "<|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"
    assert prompt.after[prompt.start :] == "So.<|im_end|>"
