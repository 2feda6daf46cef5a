"""A configuration is data, every key is read, bounded and explained, and every file is sound."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from loupe import add_loupe_config
from loupe.config import ConfigError, check_config, load_config
from loupe.config.keys import DETECTRON2_RANGES, KEYS
from loupe.modeling.backbone import STEMS
from loupe.modeling.expert.expert import PARTS as EXPERT_PARTS
from loupe.modeling.loupe import PARTS
from tests.limited_time import within

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "projects" / "loupe"
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.fixture(scope="module")
def configs() -> dict[str, CfgNode]:
    """Every configuration file of the repository, by name."""
    return {relative(path): load_config(path) for path in FILES}


# ---- A value of another type


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["DATASETS.TRAIN", "a.csv"],
            """DATASETS.TRAIN is a.csv; it must be a list: write "('a.""",
        ),
        (["DATASETS.TEST", "('a.csv'"], "DATASETS.TEST is ('a.csv'; it must be a list, such as"),
        (["SOLVER.STEPS", "3"], 'SOLVER.STEPS is 3; it must be a list: write "(3,)"'),
        (["SOLVER.MAX_ITER", "3.5"], "SOLVER.MAX_ITER is 3.5; it must be a whole number"),
        (["SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR is 1; it must be a number with a point, such as"),
        (["MODEL.COMPILE", "yes"], "MODEL.COMPILE is yes; it must be True or False"),
        (["MODEL.WEIGHTS", "3"], """MODEL.WEIGHTS is 3; it must be text: write "'3'\""""),
        (["MODEL", "3"], "MODEL is 3; it must be a group of settings"),
        (["INPUT.SIZE.X", "3"], "Non-existent key: INPUT.SIZE.X. Did you mean INPUT.SIZE?"),
        (["SEED", "1", "INPUT.SIZE"], "SEED 1 INPUT.SIZE: each KEY needs a VALUE"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_its_key_and_what_to_write(options, said):
    with pytest.raises(ConfigError) as caught:
        load_config("", options)
    assert str(caught.value).startswith(f"the options: {said}")
    assert len(str(caught.value).splitlines()) == 1


def test_what_an_error_says_to_write_is_taken(tmp_path):
    assert load_config("", ["DATASETS.TRAIN", "('l.csv',)"]).DATASETS.TRAIN == ("l.csv",)
    file = write(tmp_path, "a.yaml", "DATASETS: {TRAIN: l.csv}")
    with pytest.raises(ConfigError, match=r"a\.yaml: DATASETS\.TRAIN is l\.csv; it must be a list"):
        load_config(file)


# ---- A file is data


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


REFUSED = {
    "a tag that runs code": ("OUTPUT_DIR: !!python/object/apply:os.mkdir [ran]", "line 1: .* tag"),
    "a tag on a key": ("!!python/name:os.system x: 1", "line 1: .* tag"),
    "a harmless tag": ("SEED: !!int 3", "line 1: .* tag"),
    "an alias in a list": ("A: &a [1]\nB: &b [*a, 1]\nC: *b", r"line 3: .* alias \*b"),
    "an alias": ("SOLVER: &a {BASE_LR: 0.1}\nTEST: *a", r"line 2: .* alias \*a"),
    "deep nesting": ("A: " + "[" * 5000, "nested more than 16 deep"),
    "no settings": ("just words", "holds no settings"),
    "a number for a key": ("3: 4", "holds no settings"),
    "a broken line": ("A: [1", "not readable as YAML"),
    "a giant": ("#" * 1_000_001, "larger than 1000000 bytes"),
    "bytes": ("A: \x00", "not readable as YAML"),
    "an unknown key": ("MODEL: {SEGMENTER: {NUM_QUERIS: 5}}", "Did you mean .*NUM_QUERIES"),
    "a wrong type": ("SOLVER: {BASE_LR: fast}", r"SOLVER\.BASE_LR is fast; it must be a number"),
    "a date": ("OUTPUT_DIR: 2020-01-01", "(?s)OUTPUT_DIR|valid type"),
    "a base from the network": ("_BASE_: https://github.com/a.yaml", "must be the path of a file"),
    "a base of another scheme": ("_BASE_: detectron2://a.yaml", "must be the path of a file"),
    "a base that is missing": ("_BASE_: gone.yaml", "gone.yaml: no such configuration file"),
    "a base that is itself": ("_BASE_: case.yaml", "leads back"),
    "a base that is a number": ("_BASE_: 3", "must be a path"),
    "a number among bases": ("_BASE_: [3]", "must be the path of a file"),
    "a base in a group": ("MODEL: {_BASE_: a.yaml}", "_BASE_"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_setting_is_refused_with_file_and_reason(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(write(tmp_path, "case.yaml", text))
    assert re.search(r"(case|gone)\.yaml", str(caught.value))
    assert not (tmp_path / "ran").exists()


def test_a_base_that_leads_back_by_a_link_is_refused(tmp_path: Path):
    path = write(tmp_path, "case.yaml", "_BASE_: link.yaml")
    (tmp_path / "link.yaml").symlink_to(path)
    with pytest.raises(ConfigError, match="leads back"):
        load_config(path)


def test_a_file_of_another_encoding_is_refused_with_its_name(tmp_path: Path):
    (tmp_path / "case.yaml").write_bytes("OUTPUT_DIR: Münze".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"case\.yaml: not readable as YAML: .*utf-8"):
        load_config(tmp_path / "case.yaml")


def test_the_file_that_is_refused_would_run_code_in_detectron2(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "case.yaml", REFUSED["a tag that runs code"][0])
    get_cfg().merge_from_file(str(path))
    assert (tmp_path / "ran").exists()


def test_bases_are_bounded(tmp_path: Path):
    for number in range(30):
        write(tmp_path, f"{number}.yaml", f"_BASE_: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="more than 20 files"):
        load_config(tmp_path / "0.yaml")
    for number in range(1, 30):
        write(tmp_path, f"{number}.yaml", f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]")
    with pytest.raises(ConfigError, match="more than 20 files"):
        load_config(tmp_path / "1.yaml")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, partial(os.symlink, os.devnull)])
def test_what_is_no_file_is_no_configuration(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "case.yaml")
    # Whoever opens a pipe waits for a writer.
    with within(60), pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "case.yaml")


def test_an_address_is_no_configuration():
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config("https://github.com/a.yaml")


def test_later_bases_override_earlier_ones_and_the_file_overrides_all(tmp_path: Path):
    write(tmp_path, "a.yaml", "SEED: 1\nTEST: {PANELS: 1, IMS_PER_BATCH: 1}")
    write(tmp_path, "b.yaml", "SEED: 2\nTEST: {PANELS: 2}")
    cfg = load_config(write(tmp_path, "c.yaml", "_BASE_: [a.yaml, b.yaml]\nSEED: 3"))
    assert (cfg.SEED, cfg.TEST.PANELS, cfg.TEST.IMS_PER_BATCH) == (3, 2, 1)


def test_every_configuration_is_what_detectron2_reads_in_it(configs: dict[str, CfgNode]):
    for name, cfg in configs.items():
        theirs = add_loupe_config(get_cfg())
        theirs.merge_from_file(str(ROOT / "configs" / name))
        theirs.MODEL.DEVICE = cfg.MODEL.DEVICE
        assert cfg.dump() == theirs.dump(), name


def test_nothing_reads_a_configuration_in_another_way():
    sources = [
        path
        for folder in ("projects", "tools", "research", "datasets")
        for path in (ROOT / folder).rglob("*.py")
    ]
    unsafe = re.compile(r"merge_from_file\(|load_yaml_with_base\(|yaml\.(unsafe_|full_)?load\(")
    assert [path.name for path in sources if unsafe.search(path.read_text())] == []


# ---- A value makes sense


def set_value(cfg: CfgNode, name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        cfg = cfg[group]
    cfg[last] = value


NONSENSE = [-2, -0.5, 2, 256, float("nan"), float("inf"), "nonsense", ["nonsense"], [0.0] * 4]


def of_type(value: Any) -> list[Any]:
    """Values of the type of one, of which no range should allow all."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, float):
        return [float(item) for item in NONSENSE if isinstance(item, int | float)]
    return [item for item in NONSENSE if type(item) is type(value)]


# Any text, or list of parts, may name something that only the model knows.
FREE = {
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.DEVICE", "MODEL.NEW_PARTS"),
    *("MODEL.EXPLAINER.BASE", "MODEL.EXPLAINER.GUIDE_WEIGHTS"),
    *("MODEL.PERCEPTION_ENCODER.NAME", "MODEL.PERCEPTION_ENCODER.WEIGHTS", "TEST.BEST_METRIC"),
    *("MODEL.EXPERT.CLIP_NAME", "MODEL.EXPERT.CLIP_WEIGHTS", "MODEL.EXPERT.SAM_NAME"),
    *("MODEL.EXPERT.SAM_WEIGHTS", "MODEL.EXPERT.FEATURE_CACHE", "MODEL.FEATURE_CACHE.FOLDER"),
    *("MODEL.VIT.NAME", "MODEL.VIT.WEIGHTS"),
}


def fault(cfg: CfgNode) -> str:
    """What `check_config` says; "" = nothing."""
    try:
        check_config(cfg)
    except ConfigError as error:
        return str(error)
    return ""


def test_every_key_refuses_some_value_and_the_error_names_key_value_and_range():
    unbounded = set()
    for name in KEYS | DETECTRON2_RANGES:
        cfg = add_loupe_config(get_cfg())
        value = cfg
        for word in name.split("."):
            value = value[word]
        messages = {}
        for nonsense in of_type(value):
            set_value(cfg, name, nonsense)
            messages[repr(nonsense)] = fault(cfg)
        if messages and not any(messages.values()):
            unbounded.add(name)
        for nonsense, message in messages.items():
            assert not message or f"{name} is {nonsense}; it must be " in message
    assert unbounded == FREE


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.BASE_LR", "-1.0", "above 0"),
        ("SOLVER.BASE_LR", "1e999", "above 0"),
        ("MODEL.PIXEL_MEAN", "[1.0, 1e999, 1.0]", "each a finite number"),
        ("SOLVER.IMS_PER_BATCH", "0", "at least 1"),
        ("MODEL.SEGMENTER.PATCH_SHARE", "1.5", "from 0 to 1"),
        ("SOLVER.WARMUP_FRACTION", "0.95", "exceed 1 together"),
        ("INPUT.SIZE", "13", "at least the side of a patch, 14"),
        ("SOLVER.EMA_DECAY", "1.0", "at least 0 and below 1"),
        ("MODEL.FREEZE", "['backbon']", "'backbone', 'classifier', 'segmenter'"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "ful_model", "one of 'full_model'"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "-0.1", "None or at least 0"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0]", "three values, each above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(key: str, value: str, words: str):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_config("", [key, value])
    assert key in str(caught.value)


def test_all_settings_at_fault_are_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)INPUT\.SIZE is 0.*SOLVER\.BASE_LR is -1"):
        load_config("", ["INPUT.SIZE", "0", "SOLVER.BASE_LR", "-1.0"])


def test_the_stems_are_those_of_the_model():
    for stem in STEMS:
        assert KEYS["MODEL.PERCEPTION_ENCODER.STEM"].range.holds(stem)


# ---- Every key has a reader and a meaning


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_is_read_somewhere():
    sources = [
        path.read_text()
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tools").glob("*.py")]
        if path.parent != PACKAGE / "config"
    ]
    source = "\n".join(sources)
    # The augmentations are read as a whole.
    read = {f"INPUT.AUGMENTATION.{name}" for name in get_augmentations()}
    assert "INPUT.AUGMENTATION.items()" in source
    ours = set(leaves(add_loupe_config(get_cfg()))) - set(leaves(get_cfg())) - read
    assert [key for key in ours if not re.search(rf"\.{key.rpartition('.')[2]}\b", source)] == []


def get_augmentations() -> list[str]:
    return list(add_loupe_config(get_cfg()).INPUT.AUGMENTATION)


def test_every_key_has_a_comment():
    lines = (PACKAGE / "config" / "keys.py").read_text().splitlines()
    without = []
    for number, line in enumerate(lines):
        if re.match(r'    "[A-Z]', line) and "Key(" in line:
            # One comment may stand for a block of keys that belong together.
            first = number
            while not lines[first].startswith("    #"):
                first -= 1
            between = lines[first + 1 : number]
            if lines[first].startswith("    # ----") or not all(
                re.match(r'    [" #)]', text) for text in between
            ):
                without.append(line.strip())
    assert without == []


def test_adding_the_keys_changes_no_other_configuration():
    before = get_cfg().dump()
    add_loupe_config(get_cfg()).MODEL.FREEZE.append("classifier")
    assert get_cfg().dump() == before
    assert add_loupe_config(get_cfg()).MODEL.FREEZE == ["backbone"]


# ---- Every file of configs/


def test_there_are_configurations_for_every_stage():
    names = {relative(path) for path in FILES}
    for folder in ("", "released/"):
        assert {f"{folder}loupe_stage{stage}.yaml" for stage in (1, 2, 3)} <= names
        assert f"{folder}loupe_adapt.yaml" in names


@pytest.mark.parametrize("name", [relative(path) for path in FILES])
def test_a_configuration_builds_its_model(name: str, configs: dict[str, CfgNode]):
    cfg = configs[name].clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    if cfg.MODEL.META_ARCHITECTURE == "Explainer":  # Its base model lies elsewhere; its detector:
        cfg.MODEL.META_ARCHITECTURE = "Loupe"
    # What a run before this one leaves is not there yet.
    if cfg.MODEL.PERCEPTION_ENCODER.WEIGHTS.startswith("output/"):
        cfg.MODEL.PERCEPTION_ENCODER.WEIGHTS = ""
    with torch.device("meta"):
        model = build_model(cfg)
    is_expert = cfg.MODEL.META_ARCHITECTURE == "ForgeryExpert"
    if not is_expert:
        assert (model.segmenter is not None) == cfg.MODEL.SEGMENTER.ENABLED
    names = list(model.state_dict())
    assert all(any(n.startswith(part + ".") for n in names) for part in cfg.MODEL.NEW_PARTS)
    for part in EXPERT_PARTS if is_expert else PARTS:
        module = getattr(model, part)
        if module is not None:
            trained = [p.requires_grad for p in module.parameters()]
            assert any(trained) != (part in cfg.MODEL.FREEZE)
            # Parts of an expert hold parameters that no loss reaches, and adapters freeze the rest.
            assert is_expert or cfg.MODEL.LORA.RANK or all(trained) == any(trained)
    assert any(p.requires_grad for p in model.parameters())


def test_no_configuration_trains_a_part_that_has_no_loss(configs: dict[str, CfgNode]):
    # DistributedDataParallel waits for the gradient of every trained parameter.
    for name, cfg in configs.items():
        if cfg.MODEL.META_ARCHITECTURE != "Loupe":
            continue
        assert cfg.MODEL.CLASSIFIER.LOSS_WEIGHT or "classifier" in cfg.MODEL.FREEZE, name


def test_a_configuration_opens_with_a_comment_and_says_only_what_differs():
    for path in FILES:
        text = path.read_text()
        assert text.startswith("#"), path
        assert len(text.splitlines()) <= 60, path


def test_the_image_is_a_multiple_of_the_patch(configs: dict[str, CfgNode]):
    for name, cfg in configs.items():
        encoder = cfg.MODEL.PERCEPTION_ENCODER
        if cfg.MODEL.BACKBONE.NAME != "build_perception_encoder":
            continue
        published = int(re.search(r"patch(\d+)", encoder.NAME)[1])
        assert cfg.INPUT.SIZE % (encoder.PATCH_SIZE or published) == 0, name


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


def test_the_published_hyperparameters_are_kept(configs: dict[str, CfgNode]):
    wrong = {}
    for name, expectations in PAPER.items():
        for key, expected in expectations.items():
            value = configs[name]
            for word in key.split("."):
                value = value[word]
            if value != expected:
                wrong[f"{name}: {key}"] = (value, expected)
    assert wrong == {}
