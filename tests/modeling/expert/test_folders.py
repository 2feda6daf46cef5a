"""CLIP and SAM from folders of the published layout, read strictly. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file

from loupe import add_loupe_config
from loupe.checkpoint import CheckpointError, sam_weights
from loupe.checkpoint.released import rename
from loupe.checkpoint.released_expert import SAM_NAMES
from loupe.modeling import ForgeryExpert
from tests.modeling.expert.sizes import CLIP, SAM, reference_options

transformers = pytest.importorskip("transformers")

# As `openai/clip-vit-large-patch14` and `facebook/sam-vit-huge` have it: a whole CLIP, text tower
# and all, and SAM with both copies of its positions.
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
TEXT |= {"num_attention_heads": 2, "max_position_embeddings": 4, "eos_token_id": 1}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip/` and `sam/`, each with config.json and model.safetensors."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(5)
    kinds = transformers.CLIPConfig(vision_config=CLIP, text_config=TEXT, projection_dim=8)
    transformers.CLIPModel(kinds).save_pretrained(folder / "clip")
    sam = {name: value for name, value in SAM.items() if name != "model_type"}
    transformers.SamModel(transformers.SamConfig(**sam)).save_pretrained(folder / "sam")
    return folder


def build(configs: Path, clip: Path, sam: Path) -> ForgeryExpert:
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(reference_options(configs))
    cfg.MODEL.EXPERT.CLIP_NAME, cfg.MODEL.EXPERT.CLIP_WEIGHTS = str(clip), str(clip)
    cfg.MODEL.EXPERT.SAM_NAME, cfg.MODEL.EXPERT.SAM_WEIGHTS = str(sam), str(sam)
    return build_model(cfg)


def test_folders_of_the_published_layout_are_read_to_the_last_number(
    published: Path, tmp_path: Path
):
    model = build(tmp_path, published / "clip", published / "sam")
    clip = load_file(published / "clip" / "model.safetensors")
    tower = {name: value for name, value in clip.items() if name.startswith("vision_model.")}
    assert len(tower) < len(clip)
    found = model.backbone.vision.state_dict()
    for name, value in tower.items():
        assert torch.equal(found[name.removeprefix("vision_model.")], value), name
    assert len(found) == len(tower)
    parts: dict[str, Any] = {
        "vision_encoder": model.segmentation_encoder.vision,
        "prompt_encoder": model.mask_prompting.prompt_encoder,
        "mask_decoder": model.mask_prompting.mask_decoder,
    }
    sam = sam_weights(published / "sam" / "model.safetensors")
    for place, part in parts.items():
        for name, value in part.state_dict().items():
            assert torch.equal(sam[f"{place}.{name}"], value), name


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("clip", "vision_model.encoder.layers.1.mlp.fc1.weight", "encoder.layers.1.mlp.fc1.weight"),
        ("sam", "vision_encoder.neck.conv1.weight", "vision_encoder.neck.conv1.weight"),
        ("sam", "+mask_decoder.more", "mask_decoder.more"),
    ],
)
def test_a_key_that_is_missing_or_too_many_is_named(
    published: Path, tmp_path: Path, part: str, change: str, message: str
):
    # Released: SAM's checkpoint is loaded with strict=False, so what does not fit stays random.
    for name in ("clip", "sam"):
        source = published / name
        weights = load_file(source / "model.safetensors")
        if name == part and change.startswith("+"):
            weights[change[1:]] = torch.zeros(1)
        elif name == part:
            del weights[change]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((source / "config.json").read_bytes())
        save_file(weights, tmp_path / name / "model.safetensors")
    (tmp_path / "configs").mkdir()
    with pytest.raises(CheckpointError, match=message):
        build(tmp_path / "configs", tmp_path / "clip", tmp_path / "sam")


def test_the_original_file_of_sam_gives_the_same(published: Path, tmp_path: Path):
    # `sam_vit_h_4b8939.pth` has names of its own, and the matrix of positions once.
    names = tuple((ours, theirs) for theirs, ours in SAM_NAMES)
    hugging = sam_weights(published / "sam" / "model.safetensors")
    single = {n: v for n, v in hugging.items() if not n.startswith("shared_image_embedding")}
    original = {rename(name, names): value for name, value in single.items()}
    assert None not in original
    torch.save(original, tmp_path / "sam_vit_tiny.pth")
    found = sam_weights(tmp_path / "sam_vit_tiny.pth")
    assert found.keys() == hugging.keys()
    assert all(torch.equal(found[name], value) for name, value in hugging.items())
