"""Weights load wholly or not at all, run no code, and convert there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loupe import Loupe
from loupe.checkpoint import (
    EMPTY_WEIGHT,
    NAMES,
    CheckpointError,
    from_released,
    load_into,
    load_weights,
    save_weights,
    to_released,
)
from loupe.commands import convert

Build = Callable[..., Loupe]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


# ---- Files


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin"])
def test_weights_survive_the_way_through_a_file(ending: str, tmp_path: Path, tiny_model: Loupe):
    path = tmp_path / "new folder" / f"weights{ending}"
    save_weights(tiny_model.state_dict(), path)
    assert_equal(load_weights(path), weights_of(tiny_model))


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_a_table_inside_a_training_checkpoint_is_found(key: str, tmp_path: Path):
    content = {key: {"module.weight": torch.ones(2)}, "iteration": 7, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "last.pth")
    assert_equal(load_weights(tmp_path / "last.pth"), {"weight": torch.ones(2)})


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such file.*MODEL\.WEIGHTS"):
        load_weights(tmp_path / "gone.pt")


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": {"a": 1}}, torch.ones(2)])
def test_a_file_without_a_table_of_tensors_is_refused(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no table of tensors"):
        load_weights(tmp_path / "weights.pt")


# ---- Into a model


def test_each_kind_of_key_at_fault_is_named_and_nothing_is_changed(tiny_model: Loupe):
    before, weights = weights_of(tiny_model), weights_of(tiny_model)
    weights = {name: value + 1 for name, value in weights.items()}
    del weights["backbone.vit.cls_token"], weights["segmenter.mask_decoder.norm.bias"]
    weights["classifier.extra"] = weights["decoder.extra"] = torch.ones(1)
    weights["classifier.fusion.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        load_into(tiny_model, weights, source="stage1.pth")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("stage1.pth does not fit the model (2 missing, 2 unexpected, 1 missha")
    assert "use the config the weights were trained with" in first
    assert rest == [
        "  missing: backbone.vit.cls_token",
        "  missing: segmenter.mask_decoder.norm.bias",
        "  unexpected: classifier.extra",
        "  unexpected: decoder.extra",
        "  misshapen: classifier.fusion.weight is (1,) in the file, (1, 37) in the model",
    ]
    assert_equal(weights_of(tiny_model), before)


def test_the_weights_of_another_model_are_told_in_a_few_lines(tiny_model: Loupe):
    weights = {f"language_model.{name}": value for name, value in weights_of(tiny_model).items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(tiny_model, weights, source="explainer.safetensors")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12
    assert lines[0].startswith(f"explainer.safetensors does not fit the model ({len(weights)} miss")
    assert lines[4] == f"  missing: {len(weights) - 3} more"


def test_a_value_that_would_fill_a_parameter_does_not_fit_it(tiny_model: Loupe):
    before, weights = weights_of(tiny_model), weights_of(tiny_model)
    weights["classifier.fusion.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"fusion\.weight is \(1,\) in the file, \(1, 37\)"):
        load_into(tiny_model, weights)
    assert_equal(weights_of(tiny_model), before)


def test_a_stage_1_checkpoint_feeds_stage_2_by_declaration(build: Build):
    stage_1, stage_2 = build("MODEL.SEGMENTER.ENABLED", False), build()
    randomise(stage_1)
    fresh = weights_of(stage_2.segmenter)
    load_into(stage_2, stage_1.state_dict(), new_parts=["segmenter"])
    assert_equal(weights_of(stage_2.segmenter), fresh)
    assert_equal(weights_of(stage_2.backbone), weights_of(stage_1.backbone))
    assert_equal(weights_of(stage_2.classifier), weights_of(stage_1.classifier))


def test_a_declared_part_must_be_missing_as_a_whole(tiny_model: Loupe):
    weights = weights_of(tiny_model)
    del weights["segmenter.mask_decoder.norm.bias"]
    with pytest.raises(CheckpointError, match=r"missing: segmenter\.mask_decoder\.norm\.bias"):
        load_into(tiny_model, weights, new_parts=["segmenter"])


def test_a_declared_part_that_is_there_is_loaded(build: Build):
    source, target = build(), build()
    randomise(source)
    load_into(target, source.state_dict(), new_parts=["segmenter"])
    assert_equal(weights_of(target), weights_of(source))


# ---- Conversion


def test_the_table_of_names_is_one_to_one():
    released, ours = zip(*NAMES, strict=True)
    assert len(set(released)) == len(set(ours)) == len(NAMES)


def test_every_row_of_the_table_is_used(build: Build):
    spatial = build("MODEL.PERCEPTION_ENCODER.NAME", "vit_pe_spatial_tiny_patch16_512")
    names = set(to_released(build().state_dict())) | set(to_released(spatial.state_dict()))
    # Attention of the mask decoder is one matrix here and three there.
    names |= {name.replace("q_proj.", "in_proj_") for name in names}
    starts = {".".join("*" if word.isdigit() else word for word in n.split(".")) for n in names}
    literal = names | starts

    def used(row: str) -> bool:
        words = row.split(".")
        return any(
            len(n.split(".")) >= len(words)
            and all(a in ("*", b) for a, b in zip(words, n.split("."), strict=False))
            for n in literal
        )

    unused = [row for row, _ in NAMES if not used(row) and "ls_" not in row]
    assert unused == []


@pytest.mark.parametrize(
    "name", ["vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512"]
)
def test_conversion_there_and_back_changes_nothing(name: str, build: Build):
    model = build("MODEL.PERCEPTION_ENCODER.NAME", name)
    randomise(model)
    released = to_released(model.state_dict())
    assert not set(released) & set(model.state_dict())
    assert_equal(from_released(released), weights_of(model))


def test_layer_scales_of_the_original_are_renamed():
    released = {"backbone.transformer.resblocks.3.ls_1.gamma": torch.ones(4)}
    assert list(from_released(released)) == ["backbone.vit.blocks.3.gamma_1"]
    assert_equal(to_released(from_released(released)), released)


def test_the_released_prefix_is_cut(tiny_model: Loupe):
    released = {f"loupe.{k}": v for k, v in to_released(tiny_model.state_dict()).items()}
    assert_equal(from_released(released), weights_of(tiny_model))


def test_a_heads_only_file_of_a_frozen_encoder_converts(tiny_model: Loupe):
    released = to_released(tiny_model.state_dict())
    heads = {name: value for name, value in released.items() if not name.startswith("backbone.")}
    parts = {name.split(".")[0] for name in from_released(heads)}
    assert parts == {"classifier", "segmenter"}


def test_unknown_released_keys_are_named(tiny_model: Loupe):
    released = to_released(tiny_model.state_dict())
    released["segmentor.surprise"] = released["classifier.fuser.fused.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        from_released(released)
    assert "segmentor.surprise" in str(caught.value)
    assert "classifier.fuser.fused.weight" in str(caught.value)


@pytest.mark.parametrize("options", [[], ["--to-released"], ["--merge-adapters"]])
def test_a_file_that_cannot_be_converted_is_named_in_one_line(options, tmp_path, capsys):
    source = tmp_path / "another.safetensors"
    save_weights({f"language_model.layers.{i}": torch.ones(1) for i in range(200)}, source)
    assert convert.main([*options, str(source), str(tmp_path / "out.pt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {source}: ")
    assert len(line) < 600
    assert "200 " in line or options == ["--merge-adapters"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("MODEL.SEGMENTER.PREDICT_BOXES", True), "segmenter.mask_decoder.box_head.0.weight"),
        (("MODEL.SEGMENTER.CONDITION_TOKENS", 2), "segmenter.condition_embeddings"),
    ],
)
def test_what_the_released_model_has_no_place_for_is_named(
    options: tuple[object, ...], named: str, build: Build
):
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        to_released(build(*options).state_dict())


@pytest.mark.parametrize(
    "lost",
    [
        "segmentor.label_embedding.1",
        "segmentor.label_embedding.0",
        "segmentor.mask2former_decoder.decoder.layers.1.self_attn.k_proj.weight",
        "segmentor.mask2former_decoder.decoder.layers.0.self_attn.q_proj.bias",
    ],
)
def test_a_released_file_that_lacks_one_of_a_group_is_refused_with_its_name(
    lost: str, tiny_model: Loupe
):
    released = to_released(tiny_model.state_dict())
    del released[lost]
    with pytest.raises(CheckpointError, match=lost.replace(".", r"\.")):
        from_released(released)


def test_the_released_class_weights_are_a_constant(tiny_model: Loupe):
    assert to_released(tiny_model.state_dict())[EMPTY_WEIGHT].tolist() == pytest.approx([1, 0.1])
