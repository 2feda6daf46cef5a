"""An expert of milliseconds: the size of the reference record, and one on our own encoder."""

from __future__ import annotations

import json
from pathlib import Path

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
SAM = {
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "mlp_ratio": 2.0,
        "window_size": 3,
        "global_attn_indexes": [2],
        "num_pos_feats": 16,
    },
    "prompt_encoder_config": {
        "hidden_size": 32,
        "image_size": 64,
        "patch_size": 8,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 48,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 24,
    },
}


def reference_options(folder: Path) -> list[object]:
    """Configuration of the reference's size: CLIP and SAM by their config.json in `folder`."""
    for name, config in (("clip", CLIP), ("sam", SAM)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    return [
        *("MODEL.META_ARCHITECTURE", "ForgeryExpert", "MODEL.DEVICE", "cpu"),
        *("MODEL.BACKBONE.NAME", "build_clip_tower", "MODEL.FREEZE", ["segmentation_encoder"]),
        *("MODEL.EXPERT.CLIP_NAME", str(folder / "clip")),
        *("MODEL.EXPERT.SAM_NAME", str(folder / "sam")),
        *("MODEL.EXPERT.VERDICT_DIM", 24, "MODEL.EXPERT.NUM_HEADS", 4),
        *("MODEL.EXPERT.TOWER_SIZE", 28, "MODEL.EXPERT.TOWER_VIEW", "crop"),
        *("MODEL.PIXEL_MEAN", [122.7709383, 116.7460125, 104.09373615]),
        *("MODEL.PIXEL_STD", [68.5005327, 66.6321375, 70.32316305]),
        *("INPUT.SIZE", 64, "INPUT.RESIZE", "pad"),
    ]


# The expert on a small encoder of ours.
OWN = (
    *("MODEL.META_ARCHITECTURE", "ForgeryExpert", "MODEL.DEVICE", "cpu"),
    *("MODEL.PERCEPTION_ENCODER.NAME", "vit_pe_core_tiny_patch16_384"),
    *("MODEL.PERCEPTION_ENCODER.DEPTH", 1, "MODEL.PERCEPTION_ENCODER.EMBED_DIM", 32),
    *("MODEL.PERCEPTION_ENCODER.NUM_HEADS", 2, "MODEL.EXPERT.SEGMENTATION", "backbone"),
    *("MODEL.EXPERT.VERDICT_DIM", 16, "MODEL.EXPERT.NUM_HEADS", 2),
    *("MODEL.EXPERT.DECODER_DIM", 32, "MODEL.EXPERT.DECODER_HEADS", 2),
    *("MODEL.EXPERT.DECODER_LAYERS", 1, "MODEL.EXPERT.DECODER_MLP_DIM", 32),
    *("INPUT.SIZE", 64, "INPUT.RESIZE", "pad"),
)
