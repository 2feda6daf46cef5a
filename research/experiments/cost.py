"""Parameters and floating-point operations of Loupe and others, counted without weights.

Counted, for one image: every matrix product, convolution and attention (2 operations for one
multiplication and addition), as PyTorch's counter sees them on the meta device; and the bilinear
sampling of deformable attention, 10 operations for each sampled number (4 corners and the weight).
Not counted: norms, activations, softmax, resizing, reading the image, and the loss of adaptation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loupe.config import load_config
from loupe.modeling.deformable_attention import DeformableAttention
from loupe.modeling.loupe import Loupe
from loupe.trainer import LoupeTrainer
from research.experiments.ablations import ROOT
from research.experiments.rivals import (
    ANSWER_TOKENS,
    CLIP_SIDE,
    IMAGE_TOKENS,
    QUESTION_TOKENS,
    SAM_SIDE,
    Llava,
    SamBased,
)

ENCODERS = {
    "T": "vit_pe_core_tiny_patch16_384",
    "S": "vit_pe_core_small_patch16_384",
    "B": "vit_pe_core_base_patch16_224",
    "L": "vit_pe_core_large_patch14_336",
}
MODES = ("classifier", "plain", "adapted")
SAMPLE_OPERATIONS = 10
# Backward of the sampling: as much for the value's gradient, and for that of place and weight.
SAMPLE_BACKWARD = 2


class Cost(NamedTuple):
    """What one image costs.

    Attributes:
        system: name.
        parameters: of all that runs.
        operations: floating-point operations.
    """

    system: str
    parameters: int
    operations: float


def loupe_config(size: str, options: list[str] | None = None) -> Any:
    """The configuration of stage 2 (segmenter as in the paper) with one of the encoders.

    PE-B is published for patches of 16 at 224 px; 16 does divide 336.
    """
    words = ["MODEL.PERCEPTION_ENCODER.NAME", ENCODERS[size], "MODEL.NEW_PARTS", "[]"]
    # Only the segmenter can adapt, and the stage that is deployed has no box to predict.
    words += ["MODEL.SEGMENTER.PREDICT_BOXES", "False", *(options or [])]
    return load_config(ROOT / "configs" / "loupe_stage2.yaml", words)


def build_loupe(size: str, device: str = "cpu", options: list[str] | None = None) -> Loupe:
    """A Loupe in evaluation mode, with random weights or none (device "meta")."""
    cfg = loupe_config(size, ["MODEL.DEVICE", device, *(options or [])])
    with torch.device(device):
        return LoupeTrainer.build_model(cfg).eval()


def parameters_of(*modules: nn.Module | None) -> int:
    """Number of parameters."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


class SamplingCounter:
    """Counts the sampling of all deformable attentions of a model, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.operations = 0

    def __enter__(self) -> SamplingCounter:
        self._hooks = [
            module.register_forward_pre_hook(self._count)
            for module in self.model.modules()
            if isinstance(module, DeformableAttention)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: DeformableAttention, inputs: tuple[Any, ...]) -> None:
        batch, queries, channels = inputs[0].shape
        samples = module.num_levels * module.num_points
        self.operations += SAMPLE_OPERATIONS * batch * queries * channels * samples


def convolution_backward_operations(
    gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """Gradients of a convolution, from shapes; torch's own formula overlooks groups.

    Each of the two gradients (of image and of weight) costs what the convolution itself costs.
    """
    places = image if transposed else gradient
    once = 2 * math.prod(weight) * places[0] * math.prod(places[2:])
    return once * (int(wanted[0]) + int(wanted[1]))


OWN_FORMULAS = {torch.ops.aten.convolution_backward: convolution_backward_operations}


def operations_of(work: Callable[[], object], *models: nn.Module) -> float:
    """Operations of some work with some models, sampling included (forward only)."""
    counter = FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS)
    with SamplingCounter(nn.ModuleList(models)) as sampling, counter as rest:
        work()
    return float(rest.get_total_flops() + sampling.operations)


def loupe_costs(size: str, side: int = 336) -> list[Cost]:
    """Cost of Loupe that classifies only, that also segments, and that adapts to each image.

    Adapted means: encode and classify once, segment, backward through the segmenter, segment again.
    """
    model = build_loupe(size, "meta")
    images = torch.empty(1, 3, side, side, device="meta")

    def perceive() -> Tensor:
        features = model.backbone(images)
        model.classifier(**features)
        return features["patches"]

    def segment(patches: Tensor) -> list[Any]:
        return model.segmenter(patches, torch.empty(1, device="meta"))

    def learn(patches: Tensor) -> None:
        outputs = segment(patches)
        # In place of the losses: they, too, reach every prediction.
        sum(out.mask_logits.sum() + out.class_logits.sum() for out in outputs).backward()

    # Rather than `no_grad`: torch's counter stumbles over parameters that could have a gradient.
    model.requires_grad_(False)
    seen = operations_of(perceive, model)
    patches = perceive()
    found = operations_of(lambda: segment(patches), model)
    model.segmenter.requires_grad_(True)
    with SamplingCounter(model) as sampling:
        segment(patches)
    learnt = operations_of(lambda: learn(patches), model) + SAMPLE_BACKWARD * sampling.operations
    watching = parameters_of(model.backbone, model.classifier)
    everything = watching + parameters_of(model.segmenter)
    return [
        Cost(f"Loupe PE-{size}, classifier only", watching, seen),
        Cost(f"Loupe PE-{size}", everything, seen + found),
        Cost(f"Loupe PE-{size}, adapting to each image", everything, seen + learnt + found),
    ]


def rival_costs() -> list[Cost]:
    """Cost of the systems of `rivals.py`."""
    costs = []
    with torch.device("meta"):
        small, large = (torch.empty(1, 3, side, side) for side in (CLIP_SIDE, SAM_SIDE))
        for size, letter in (("base", "B"), ("large", "L"), ("huge", "H")):
            sam = SamBased(size).eval().requires_grad_(False)
            work = _call(sam, large)
            costs.append(Cost(f"SAM ViT-{letter}", parameters_of(sam), operations_of(work, sam)))
        llava = Llava().eval().requires_grad_(False)
        operations = operations_of(_call(llava, small), llava)
        # The prompt gives the first word. The others cost more with every word before: by the same
        # amount, so the mean of the first and the last is the mean of all.
        prompt = IMAGE_TOKENS + QUESTION_TOKENS
        ends = (prompt, prompt + ANSWER_TOKENS - 2)
        words = [operations_of(lambda past=past: llava.write(past), llava) for past in ends]
        operations += sum(words) / 2 * (ANSWER_TOKENS - 1)
    speaking = Cost("LLaVA-7B", parameters_of(llava), operations)
    largest = costs[-1]
    both = Cost(
        "LLaVA-7B + SAM ViT-H",
        speaking.parameters + largest.parameters,
        speaking.operations + largest.operations,
    )
    return [*costs, speaking, both]


def _call(model: nn.Module, *inputs: Tensor) -> Callable[[], object]:
    return lambda: model(*inputs)
