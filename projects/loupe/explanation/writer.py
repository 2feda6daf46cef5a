"""Text by a language model about one image and its prediction, checked against the mask.

The text is always shown apart from the measured facts. It is checked: a claim of a place, size,
tone or side that is not the mask's is reported, and so is a text that was cut.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from loupe.checkpoint import load_into, load_weights
from loupe.evaluation.text.parsing import parse
from loupe.evaluation.text.scores import contradictions
from loupe.explanation.explainer import Explainer
from loupe.explanation.guidance import region_claims
from loupe.explanation.prompts import question_of, verdict_word
from loupe.structures import THRESHOLD, Prediction
from loupe.vocabulary import Claims


class Text(NamedTuple):
    """A text about an image.

    Attributes:
        text: As the model wrote it.
        complete: False = it was cut at the limit of tokens.
        warnings: Where it contradicts the mask or the verdict, or was cut.
    """

    text: str
    complete: bool
    warnings: tuple[str, ...]


class Writer:
    """A trained explainer, ready to write.

    Args:
        model: With its weights.
        size: Longest side of an image that it sees.
    """

    def __init__(self, model: Explainer, size: int) -> None:
        self.model = model.eval()
        self.size = size

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Writer:
        """The explainer of a configuration with MODEL.WEIGHTS.

        Raises:
            ValueError: There are no weights, or they do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("no weights of an explainer: set MODEL.WEIGHTS")
        weights = load_weights(cfg.MODEL.WEIGHTS)
        model = build_model(cfg)
        load_into(model, weights, source=cfg.MODEL.WEIGHTS)
        return cls(model, cfg.INPUT.SIZE)

    @torch.no_grad()
    def write(self, image: np.ndarray, prediction: Prediction) -> Text:
        """A text about an image.

        Args:
            image: (H, W, 3) uint8 RGB, as the forgery map lies.
            prediction: Of a detector.
        """
        item = self._item(image, prediction)
        self.model.check()
        (written,) = self.model.write([item])
        warnings = list(contradicted(parse(written.text), item))
        if not written.complete:
            warnings.append("The text was cut at the limit of its length.")
        return Text(written.text, written.complete, tuple(warnings))

    def _item(self, image: np.ndarray, prediction: Prediction) -> dict[str, Any]:
        """One image and its region at the network's size, which is at most INPUT.SIZE."""
        region: np.ndarray = (prediction.forgery_map > THRESHOLD).astype(np.uint8)
        scale = min(1.0, self.size / max(image.shape[:2]))
        if scale < 1:
            size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            region = cv2.resize(region, size, interpolation=cv2.INTER_AREA)
        shown = region.astype(bool) if region.any() else None
        verdict = verdict_word(prediction.score, prediction.verdict)
        item = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "valid_size": image.shape[:2],
            "region": shown,
            "verdict": verdict,
        }
        claims = region_claims(item, shown)
        told = claims if self.model.tell_region else None
        question = question_of(verdict, shown is not None, told)
        return item | {"question": question, "region_claims": claims}


def contradicted(claims: Claims, item: dict[str, Any]) -> list[str]:
    """Where claims contradict what is known, in sentences.

    Args:
        claims: Of a text.
        item: `verdict` of the detector, and `region_claims`, what is true of the region.
    """
    region: Claims | None = item["region_claims"]
    lines = []
    if claims.verdict != item["verdict"]:
        said = claims.verdict or "nothing"
        lines.append(f"The text contradicts the verdict: {said}, the detector {item['verdict']}.")
    for name in contradictions(claims, region):
        if region is None:
            lines.append("The text names a region, and none is marked.")
            continue
        claimed, true = getattr(claims, name), getattr(region, name)
        lines.append(f"The text contradicts the mask: {name} {claimed}, measured {true}.")
    return lines
