"""What one step of adaptation may be told: a field for each key of `ADAPTATION` about steps."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.utils import comm

PARAMETERS = ("segmenter", "norms")
IMAGE_WEIGHTS = ("none", "agreement")


@dataclass(frozen=True, kw_only=True)
class AdaptationSettings:
    """The released behaviour by default.

    Attributes:
        parameters: What changes: "segmenter" or "norms".
        lr: Learning rate.
        weight_decay: Of AdamW; biases and norms are not decayed.
        patch_temperature: T, divides the patch logits. Below 1 the patch map becomes sharper, so
            that it does not teach masks to be as unsure as itself.
        image_weight: Weight of an image's gradient: "none" (1), or "agreement" of the patch map
            with the present mask.
        seed: Of the points at which masks are compared, the same in all processes.

    Raises:
        ValueError: A value is not allowed; names the key, the value and what is.
    """

    parameters: str = "segmenter"
    lr: float = 1e-4
    weight_decay: float = 5e-2
    patch_temperature: float = 1.0
    image_weight: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_name("PARAMETERS", self.parameters, PARAMETERS)
        _check_name("IMAGE_WEIGHT", self.image_weight, IMAGE_WEIGHTS)
        if self.patch_temperature <= 0:
            raise ValueError(
                f"ADAPTATION.PATCH_TEMPERATURE is {self.patch_temperature}; use a positive number"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AdaptationSettings:
        """The settings that `cfg.ADAPTATION` and `cfg.SEED` say."""
        keys = cfg.ADAPTATION
        return cls(
            parameters=keys.PARAMETERS,
            lr=keys.BASE_LR,
            weight_decay=keys.WEIGHT_DECAY,
            patch_temperature=keys.PATCH_TEMPERATURE,
            image_weight=keys.IMAGE_WEIGHT,
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        )


def _check_name(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"ADAPTATION.{key} is {value!r}; use {' or '.join(known)}")
