"""Every configuration key of Loupe: its default and one line of meaning.

Keys that Detectron2 has already (`MODEL.WEIGHTS`, `SOLVER.BASE_LR`, `TEST.EVAL_PERIOD`, ...) keep
their meaning. Defaults are the paper's; `configs/` says what a stage or an ablation changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg


def load_config(config_file: str | Path, options: Sequence[str] = ()) -> CfgNode:
    """Reads a config file, then `KEY VALUE` pairs, and settles the device.

    Returns:
        A frozen config whose MODEL.DEVICE is a device.

    Raises:
        ValueError: A key is unknown (the message names the nearest known one), or lacks a value.
    """
    cfg = add_loupe_config(get_cfg())
    try:
        if config_file:
            cfg.merge_from_file(str(config_file))
        cfg.merge_from_list(list(options))
    except (KeyError, AssertionError) as error:
        raise ValueError(_explain(str(error.args[0]), cfg)) from error
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.freeze()
    return cfg


def _explain(message: str, cfg: CfgNode) -> str:
    """Adds the nearest known key to yacs' message about an unknown one."""
    _, separator, key = message.partition("key: ")
    near = difflib.get_close_matches(key, list(_known_keys(cfg)), n=1) if separator else []
    return f"{message}. Did you mean {near[0]}?" if near else message


def _known_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _known_keys(value, f"{prefix}{name}.")


def add_loupe_config(cfg: CfgNode) -> CfgNode:
    """Adds Loupe's keys to a Detectron2 config, in place, and returns it."""
    cfg.MODEL.META_ARCHITECTURE = "Loupe"
    # "auto" = CUDA if there is one, else CPU.
    cfg.MODEL.DEVICE = "auto"
    cfg.MODEL.BACKBONE.NAME = "build_perception_encoder"
    # Statistics of 0..255 RGB pixels that the Perception Encoder was trained with.
    cfg.MODEL.PIXEL_MEAN = [127.5, 127.5, 127.5]
    cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5]
    # Parts that are not trained: any of "backbone", "classifier", "segmenter".
    cfg.MODEL.FREEZE = ["backbone"]
    # Parts that may be missing from MODEL.WEIGHTS as a whole and then start afresh; a path below
    # "backbone.vit" also from the encoder's own file.
    cfg.MODEL.NEW_PARTS = []
    _add_encoder(cfg)
    _add_classifier(cfg)
    _add_segmenter(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_adaptation(cfg)
    return cfg


def _add_encoder(cfg: CfgNode) -> None:
    encoder = cfg.MODEL.PERCEPTION_ENCODER = CfgNode()
    # Any `vit_pe_core_*` or `vit_pe_spatial_*` of timm.
    encoder.NAME = "vit_pe_core_large_patch14_336"
    # "" = random, "hub" = timm's published weights, else a .pt or .safetensors file (or
    # loupe://FILE) with the original names, timm's, or those of a whole Loupe.
    encoder.WEIGHTS = ""
    # Side of the image that the position table is made for; 0 = INPUT.SIZE. At other sizes the
    # table is resized on the fly, so that one set of weights serves several sizes.
    encoder.POSITION_SIZE = 0
    # Side of a patch in pixels; 0 = the published one.
    encoder.PATCH_SIZE = 0
    # Number of transformer blocks kept, from the first; 0 = all.
    encoder.DEPTH = 0
    # Width of the tokens and number of heads; 0 = the published ones.
    encoder.EMBED_DIM = 0
    encoder.NUM_HEADS = 0
    # "patch" = the published linear patch embedding; "forensic" = statistics of residuals and
    # block spectra in its place, for small encoders trained from scratch; "forensic-jpeg" = these
    # and the quantisation steps of earlier JPEGs, which need pixels as they were stored: RESIZE
    # native, and images within INPUT.SIZE; "forensic-copies" = all these, and parts that the image
    # holds twice.
    encoder.STEM = "patch"


def _add_classifier(cfg: CfgNode) -> None:
    classifier = cfg.MODEL.CLASSIFIER = CfgNode()
    # Weight of its losses; 0 = they are not computed (the classifier still gives the condition).
    classifier.LOSS_WEIGHT = 1.0
    # Weight of the patches' loss beside the image's (Eq. 2 has 1). An encoder trained from scratch
    # learns from patches or not at all: docs/experiments.md.
    classifier.PATCH_WEIGHT = 1.0
    # Predict a logit for each patch (Table 2), and fuse these with the global logit.
    classifier.PATCH_PREDICTION = True
    classifier.FUSION = True
    # Loss on the fused image logit: "bce" (paper) or "poly_focal" (released).
    classifier.IMAGE_LOSS = "bce"
    # Weight of the forged class in the image's poly focal loss, and in the patches' one.
    classifier.IMAGE_ALPHA = 0.2
    classifier.PATCH_ALPHA = 0.85
    # Focusing exponent and coefficient of the polynomial term, Eq. 1.
    classifier.GAMMA = 2.0
    classifier.EPSILON = 1.0


def _add_segmenter(cfg: CfgNode) -> None:
    segmenter = cfg.MODEL.SEGMENTER = CfgNode()
    # False: the model classifies only (stage 1), and its patch map stands in for the pixel map.
    segmenter.ENABLED = True
    # Width of pixel and mask decoder, attention heads, sampling points per level and head.
    segmenter.FEATURE_DIM = 256
    segmenter.NUM_HEADS = 8
    segmenter.NUM_POINTS = 4
    # Layers and hidden width of the pixel decoder's encoder and of the mask decoder.
    segmenter.PIXEL_LAYERS = 6
    segmenter.PIXEL_FFN_DIM = 1024
    segmenter.MASK_LAYERS = 9
    segmenter.MASK_FFN_DIM = 2048
    segmenter.NUM_QUERIES = 20
    # Conditional queries (Table 3). "token": the condition attends to the pixels and its answer is
    # added everywhere (released); "pixel": each pixel attends to the two embeddings; "none".
    segmenter.CONDITION_ATTENTION = "token"
    # Learned embeddings for each of the two verdicts.
    segmenter.CONDITION_TOKENS = 1
    # In training, mix the true label towards 0.5 by up to this share (0 = hard labels).
    segmenter.CONDITION_JITTER = 0.0
    # Share of the patch map in the map of the pixels; 0 = the masks alone (paper). Masks learn
    # nothing of images called authentic, so there the patch map alone ranks the pixels.
    segmenter.PATCH_SHARE = 0.0
    # Predict a box for each query; adds L1 and GIoU to losses and matching.
    segmenter.PREDICT_BOXES = False
    # Loss weights: lambda of Eq. 4, and the box loss (paper: 2).
    segmenter.MASK_WEIGHT = 5.0
    segmenter.TVERSKY_WEIGHT = 5.0
    segmenter.CLASS_WEIGHT = 2.0
    segmenter.BOX_WEIGHT = 2.0
    # Poly focal loss on sampled points.
    segmenter.MASK_ALPHA = 0.8
    segmenter.GAMMA = 2.0
    segmenter.EPSILON = 1.0
    # Tversky: weights of false positives and false negatives (0.5 and 0.5 = Dice).
    segmenter.TVERSKY_FALSE_POSITIVE = 0.3
    segmenter.TVERSKY_FALSE_NEGATIVE = 0.7
    # Class weight of "no object".
    segmenter.NO_OBJECT_WEIGHT = 0.1
    # Matching costs.
    segmenter.COST_CLASS = 2.0
    segmenter.COST_MASK = 5.0
    segmenter.COST_DICE = 5.0
    # Points per mask for losses and matching; oversampling; share of uncertain points.
    segmenter.TRAIN_POINTS = 12544
    segmenter.OVERSAMPLE_RATIO = 3.0
    segmenter.IMPORTANCE_RATIO = 0.75


def _add_input(cfg: CfgNode) -> None:
    # Side of the square network input in pixels.
    cfg.INPUT.SIZE = 336
    # "squash" = both sides to SIZE, the aspect ratio is lost (released); "pad" = longest side to
    # SIZE, the rest is padding, masked everywhere; "crop" = no rescaling, a SIZE x SIZE window
    # (padded where the image is smaller; random in training, central in evaluation); "native" = no
    # rescaling but of images larger than SIZE, which shrink, and padding only to the largest of a
    # batch: with TEST.IMS_PER_BATCH 1 each image has a canvas of its own.
    cfg.INPUT.RESIZE = "squash"
    # "union" = one target per image; "regions" = one per connected component of the mask.
    cfg.INPUT.TARGETS = "union"
    # At most so many regions per image; smaller ones join the last.
    cfg.INPUT.MAX_REGIONS = 20
    # A mask of another size than its image: "strict" = error, "resize" = nearest, "skip" = counted.
    cfg.INPUT.MASK_SIZE_MISMATCH = "resize"
    # Decode large JPEGs at a half, a quarter or an eighth, as far as both sides keep 2 SIZE pixels;
    # faster, but the pixels are others. Not for "crop".
    cfg.INPUT.REDUCED_DECODING = False
    # Probabilities of the training augmentations (0 = off).
    augmentation = cfg.INPUT.AUGMENTATION = CfgNode()
    augmentation.FLIP = 0.5
    augmentation.ROTATE90 = 0.0
    augmentation.SCALE = 0.2
    augmentation.JPEG = 0.2
    augmentation.BLUR = 0.1
    augmentation.NOISE = 0.1
    # "TrainingSampler" (all images in turn) or "BalancedSampler" (as many forged as authentic).
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"


def _add_solver(cfg: CfgNode) -> None:
    # Passes over the training set; 0 = SOLVER.MAX_ITER optimiser steps instead.
    cfg.SOLVER.EPOCHS = 0.0
    # Micro-batches of IMS_PER_BATCH images (over all processes) in one optimiser step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Warmup-stable-decay: shares of the run, and shape of the decay ("cosine" or "linear").
    cfg.SOLVER.WARMUP_FRACTION = 0.1
    cfg.SOLVER.DECAY_FRACTION = 0.1
    cfg.SOLVER.DECAY_SHAPE = "cosine"
    # Learning rate of an unfrozen backbone, as a share of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.02
    # "bfloat16" or "float16" (GPU only, with loss scaling) where SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Decay of a moving average of the weights, used for evaluation; 0 = none.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_test(cfg: CfgNode) -> None:
    # Metric that picks the best checkpoint, by the evaluator's name; "" = keep none.
    cfg.TEST.BEST_METRIC = "image/AUC"
    # Image panels (input, truth, prediction) written to TensorBoard at each evaluation.
    cfg.TEST.PANELS = 8
    # Images per forward pass in evaluation and prediction.
    cfg.TEST.IMS_PER_BATCH = 8


def _add_adaptation(cfg: CfgNode) -> None:
    adaptation = cfg.ADAPTATION = CfgNode()
    # "none", "offline" (one pass over all images, then predict), "online" (adapt on a batch,
    # predict it, go on), "episodic" (online, but reset after each batch).
    adaptation.MODE = "none"
    # What is adapted: "segmenter" (released), "pixel_decoder", "norms" or "embeddings".
    adaptation.PARAMETERS = "segmenter"
    adaptation.BASE_LR = 1e-4
    # "wsd": SOLVER's warmup, stable, decay over an offline run; "constant". Other modes: constant.
    adaptation.SCHEDULE = "wsd"
    adaptation.WEIGHT_DECAY = 5e-2
    adaptation.IMS_PER_BATCH = 96
    # Optimiser steps on each batch.
    adaptation.STEPS = 1
    # From here on all is for safety, and off; docs/adaptation.md says what each is for.
    # Images whose probability is nearer to 0.5 than this are left out.
    adaptation.CONFIDENCE_MARGIN = 0.0
    # Divides the patch logits: below 1 the pseudo-target is sharper than the patch map.
    adaptation.PATCH_TEMPERATURE = 1.0
    # Weight of an image: "none" (all alike), "entropy" (of its verdict) or "agreement" (of its
    # patch map with its present mask).
    adaptation.IMAGE_WEIGHT = "none"
    # Decay of a moving average of the weights, the teacher (0 = none); share of its mask in the
    # pseudo-target; whether it predicts.
    adaptation.TEACHER_DECAY = 0.0
    adaptation.TEACHER_SHARE = 0.5
    adaptation.TEACHER_PREDICTS = False
    # After each step weights go this share of the way back to the source weights.
    adaptation.ANCHOR = 0.0
    # Take a step back if masks then disagree with the patch maps by more than TOLERANCE more than
    # the source model's masks do ("patch_map"), or with those masks ("source"); "none". After
    # PATIENCE rollbacks adaptation stops (0 = never).
    adaptation.ROLLBACK = "none"
    adaptation.ROLLBACK_TOLERANCE = 0.02
    adaptation.ROLLBACK_PATIENCE = 3
