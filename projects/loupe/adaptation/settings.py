"""What adaptation may be told: one field for each key of `ADAPTATION` that concerns a step."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

PARAMETERS = ("segmenter", "pixel_decoder", "norms", "embeddings")
IMAGE_WEIGHTS = ("none", "entropy", "agreement")
ROLLBACKS = ("none", "patch_map", "source")


@dataclass(frozen=True, kw_only=True)
class AdaptationSettings:
    """The released behaviour by default: no safety option is on.

    Attributes:
        parameters: What changes: "segmenter", "pixel_decoder", "norms" or "embeddings".
        lr: Learning rate.
        weight_decay: Of AdamW; biases and norms are not decayed.
        confidence_margin: Images whose probability is nearer to 0.5 than this teach nothing.
        patch_temperature: Divides the patch logits; below 1 the patch map becomes sharper, so that
            it does not teach masks to be as unsure as itself.
        image_weight: Weight of an image's gradient: "none" (1), "entropy" (the surer its verdict,
            the more) or "agreement" (the better patch map and present mask agree, the more).
        teacher_decay: Decay of a moving average of the weights, the teacher; 0 = no teacher.
        teacher_share: Share of the teacher's mask in the pseudo-target; the rest is the patch map.
        teacher_predicts: Whether the teacher answers in the model's place.
        anchor: Share of the way back to the source weights that is gone after each step.
        rollback: When a step is taken back: "none"; "patch_map", when the masks disagree with the
            patch maps more than the source model's masks do; "source", when they disagree with the
            source model's masks.
        rollback_tolerance: By how much they may disagree more; disagreement is in [0, 1].
        rollback_patience: Adaptation stops after so many rollbacks; 0 = never.

    Raises:
        ValueError: A value is not allowed; names the key, the value and what is.
    """

    parameters: str = "segmenter"
    lr: float = 1e-4
    weight_decay: float = 5e-2
    confidence_margin: float = 0.0
    patch_temperature: float = 1.0
    image_weight: str = "none"
    teacher_decay: float = 0.0
    teacher_share: float = 0.5
    teacher_predicts: bool = False
    anchor: float = 0.0
    rollback: str = "none"
    rollback_tolerance: float = 0.02
    rollback_patience: int = 3

    def __post_init__(self) -> None:
        """Checks every value."""
        _check_name("PARAMETERS", self.parameters, PARAMETERS)
        _check_name("IMAGE_WEIGHT", self.image_weight, IMAGE_WEIGHTS)
        _check_name("ROLLBACK", self.rollback, ROLLBACKS)
        _check_number("CONFIDENCE_MARGIN", self.confidence_margin, 0.5)
        _check_number("TEACHER_SHARE", self.teacher_share, 1.0)
        _check_number("ANCHOR", self.anchor, 1.0)
        _check_number("ROLLBACK_TOLERANCE", self.rollback_tolerance, 1.0)
        _check_number("TEACHER_DECAY", self.teacher_decay, 1.0)
        if self.patch_temperature <= 0:
            raise ValueError(
                f"ADAPTATION.PATCH_TEMPERATURE is {self.patch_temperature}; use a positive number"
            )
        if self.teacher_predicts and not self.teacher_decay:
            raise ValueError(
                "ADAPTATION.TEACHER_PREDICTS is True, but there is no teacher: "
                "set ADAPTATION.TEACHER_DECAY, to 0.9 say"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AdaptationSettings:
        """The settings that `cfg.ADAPTATION` says."""
        keys = cfg.ADAPTATION
        return cls(
            parameters=keys.PARAMETERS,
            lr=keys.BASE_LR,
            weight_decay=keys.WEIGHT_DECAY,
            confidence_margin=keys.CONFIDENCE_MARGIN,
            patch_temperature=keys.PATCH_TEMPERATURE,
            image_weight=keys.IMAGE_WEIGHT,
            teacher_decay=keys.TEACHER_DECAY,
            teacher_share=keys.TEACHER_SHARE,
            teacher_predicts=keys.TEACHER_PREDICTS,
            anchor=keys.ANCHOR,
            rollback=keys.ROLLBACK,
            rollback_tolerance=keys.ROLLBACK_TOLERANCE,
            rollback_patience=keys.ROLLBACK_PATIENCE,
        )


def _check_name(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        words = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ValueError(f"ADAPTATION.{key} is {value!r}; use {words}")


def _check_number(key: str, value: float, highest: float) -> None:
    if not 0 <= value <= highest:
        raise ValueError(f"ADAPTATION.{key} is {value}; use a number from 0 to {highest}")
