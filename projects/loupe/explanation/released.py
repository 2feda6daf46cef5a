"""Names of the released IFDL-VLM's stage 2 (LLaVA's own) and of transformers, one table."""

from __future__ import annotations

import re

from loupe.checkpoint import CheckpointError, Weights

# Regular expressions, tried from first to last; None = has no place here.
_NAMES: tuple[tuple[str, str | None], ...] = (
    (r".*\.position_ids$", None),
    (r".*\.rotary_emb\.inv_freq$", None),
    (r"^model\.mm_projector\.0\.", r"model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", r"model.multi_modal_projector.linear_2."),
    (
        r"^model\.vision_tower\.vision_tower\.vision_model\.",
        r"model.vision_tower.tower.",
    ),
    (r"^model\.(layers|embed_tokens|norm)\.", r"model.language_model.\1."),
    (r"^lm_head\.", r"lm_head."),
)
_ADAPTED = re.compile(r"^base_model\.model\.")


def vlm_from_released(weights: Weights) -> Weights:
    """Weights of the released explainer under the names of a LLaVA with a `RegionTower`.

    Its adapters (`base_model.model....lora_A.default.weight`) are renamed, too.

    Raises:
        CheckpointError: A name is unknown.
    """
    renamed, unknown = {}, []
    for name, value in weights.items():
        plain = _ADAPTED.sub("", name)
        for pattern, replacement in _NAMES:
            if re.match(pattern, plain):
                if replacement is not None:
                    renamed[re.sub(pattern, replacement, plain)] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} names are not those of LLaVA's layout, the first {unknown[0]}"
        )
    return renamed
