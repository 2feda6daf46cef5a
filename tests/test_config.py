"""Every key is read somewhere, and every configuration file builds a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from loupe import add_loupe_config
from loupe.modeling.loupe import PARTS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SOURCES = [
    path
    for folder in ("projects", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "projects" / "loupe" / "config.py"
]


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def our_keys() -> list[str]:
    """Keys that are ours alone: Detectron2 reads its own."""
    return sorted(set(leaves(add_loupe_config(get_cfg()))) - set(leaves(get_cfg())))


def loaded(path: Path) -> CfgNode:
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_file(str(path))
    return cfg


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(path.read_text() for path in SOURCES)


@pytest.mark.parametrize("key", our_keys())
def test_every_key_is_read_somewhere(key: str, source: str):
    group, _, name = key.rpartition(".")
    by_name = re.search(rf"\.{name}\b", source)
    # A group whose keys are names of transforms may be read as a whole.
    as_a_whole = re.search(r"INPUT\.AUGMENTATION\.items\(", source)
    assert by_name or (group == "INPUT.AUGMENTATION" and as_a_whole), f"nothing reads {key}"


def test_every_key_has_a_comment():
    lines = (ROOT / "projects" / "loupe" / "config.py").read_text().splitlines()
    assignment = re.compile(r"^    [\w.]+\.[A-Z0-9_]+ = (?!.*CfgNode\(\))")
    without = []
    for number, line in enumerate(lines):
        if (
            assignment.match(line)
            and "META_ARCHITECTURE" not in line
            and "BACKBONE.NAME" not in line
        ):
            # One comment may stand for a block of assignments that belong together.
            first = number
            while assignment.match(lines[first]) or "CfgNode()" in lines[first]:
                first -= 1
            if not lines[first].lstrip().startswith("#"):
                without.append(line.strip())
    assert without == []


def test_adding_the_keys_changes_no_other_configuration():
    before = get_cfg().dump()
    add_loupe_config(get_cfg())
    assert get_cfg().dump() == before


def test_an_unknown_key_is_refused(tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  SEGMENTER:\n    NUM_QUERIS: 5\n")
    with pytest.raises(KeyError, match=r"MODEL\.SEGMENTER\.NUM_QUERIS"):
        loaded(path)


def test_there_are_configurations_for_every_stage():
    names = {relative(path) for path in FILES}
    for folder in ("", "released/"):
        assert {f"{folder}loupe_stage{stage}.yaml" for stage in (1, 2, 3)} <= names
        assert f"{folder}loupe_adapt.yaml" in names


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_configuration_builds_its_model(path: Path):
    cfg = loaded(path)
    cfg.MODEL.DEVICE = "meta"
    # What a run before this one leaves is not there yet.
    if cfg.MODEL.PERCEPTION_ENCODER.WEIGHTS.startswith("output/"):
        cfg.MODEL.PERCEPTION_ENCODER.WEIGHTS = ""
    with torch.device("meta"):
        model = build_model(cfg)
    assert (model.segmenter is not None) == cfg.MODEL.SEGMENTER.ENABLED
    assert set(cfg.MODEL.FREEZE) <= set(PARTS)
    names = list(model.state_dict())
    assert all(any(n.startswith(part + ".") for n in names) for part in cfg.MODEL.NEW_PARTS)
    for part in PARTS:
        module = getattr(model, part)
        if module is not None:
            assert all(p.requires_grad != (part in cfg.MODEL.FREEZE) for p in module.parameters())
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_configuration_trains_a_part_that_has_no_loss(path: Path):
    # DistributedDataParallel waits for the gradient of every trained parameter.
    cfg = loaded(path)
    if not cfg.MODEL.CLASSIFIER.LOSS_WEIGHT:
        assert "classifier" in cfg.MODEL.FREEZE


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_configuration_opens_with_a_comment_and_says_only_what_differs(path: Path):
    text = path.read_text()
    assert text.startswith("#")
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_the_image_is_a_multiple_of_the_patch(path: Path):
    cfg = loaded(path)
    published = int(re.search(r"patch(\d+)", cfg.MODEL.PERCEPTION_ENCODER.NAME)[1])
    assert cfg.INPUT.SIZE % (cfg.MODEL.PERCEPTION_ENCODER.PATCH_SIZE or published) == 0


# The paper's Tables 4 to 6.
PAPER = {
    "loupe_stage1.yaml": {
        "SOLVER.BASE_LR": 5e-4,
        "SOLVER.WEIGHT_DECAY": 1e-3,
        "SOLVER.IMS_PER_BATCH": 48,
        "SOLVER.ACCUMULATION_STEPS": 8,
        "SOLVER.EPOCHS": 1,
        "SOLVER.WARMUP_FRACTION": 0.1,
        "SOLVER.DECAY_FRACTION": 0.1,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
        "MODEL.CLASSIFIER.PATCH_ALPHA": 0.85,
        "MODEL.CLASSIFIER.GAMMA": 2,
        "MODEL.CLASSIFIER.EPSILON": 1,
        "MODEL.CLASSIFIER.IMAGE_LOSS": "bce",
    },
    "loupe_stage2.yaml": {
        "SOLVER.BASE_LR": 5e-4,
        "SOLVER.WEIGHT_DECAY": 5e-2,
        "SOLVER.IMS_PER_BATCH": 40,
        "SOLVER.ACCUMULATION_STEPS": 3,
        "MODEL.SEGMENTER.NUM_QUERIES": 20,
        "MODEL.SEGMENTER.MASK_ALPHA": 0.8,
        "MODEL.SEGMENTER.MASK_WEIGHT": 5,
        "MODEL.SEGMENTER.TVERSKY_WEIGHT": 5,
        "MODEL.SEGMENTER.BOX_WEIGHT": 2,
        "MODEL.SEGMENTER.TVERSKY_FALSE_POSITIVE": 0.3,
        "MODEL.SEGMENTER.TVERSKY_FALSE_NEGATIVE": 0.7,
        "MODEL.SEGMENTER.PREDICT_BOXES": True,
    },
    "loupe_adapt.yaml": {
        "ADAPTATION.BASE_LR": 1e-4,
        "ADAPTATION.WEIGHT_DECAY": 5e-2,
        "ADAPTATION.IMS_PER_BATCH": 96,
    },
    "released/loupe_stage1.yaml": {
        "MODEL.CLASSIFIER.IMAGE_LOSS": "poly_focal",
        "MODEL.CLASSIFIER.IMAGE_ALPHA": 0.2,
        "SOLVER.BASE_LR": 5e-4,
    },
    "released/loupe_stage2.yaml": {
        "SOLVER.BASE_LR": 3e-4,
        "MODEL.SEGMENTER.PREDICT_BOXES": False,
        "MODEL.SEGMENTER.COST_CLASS": 1,
        "INPUT.TARGETS": "union",
    },
    "released/loupe_stage3.yaml": {
        "SOLVER.BASE_LR": 3e-4,
        "MODEL.CLASSIFIER.LOSS_WEIGHT": 2,
        "SOLVER.IMS_PER_BATCH": 32,
        "MODEL.FREEZE": [],
    },
    "released/loupe_adapt.yaml": {"ADAPTATION.WEIGHT_DECAY": 1e-3, "ADAPTATION.BASE_LR": 1e-4},
}


@pytest.mark.parametrize("name", list(PAPER))
def test_the_published_hyperparameters_are_kept(name: str):
    cfg = loaded(ROOT / "configs" / name)
    wrong = {}
    for key, expected in PAPER[name].items():
        value = cfg
        for word in key.split("."):
            value = value[word]
        if value != expected:
            wrong[key] = (value, expected)
    assert wrong == {}
