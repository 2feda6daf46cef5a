"""One line to a prediction: the small model that comes with Loupe."""

from __future__ import annotations

from functools import cache

from loupe.config import load_config
from loupe.inference.predictor import ImageSource, LoupePredictor
from loupe.model_zoo import CONFIGS
from loupe.structures import Prediction


@cache
def default_predictor() -> LoupePredictor:
    """The shipped model, loaded once for each process."""
    return LoupePredictor(load_config(CONFIGS / "loupe_tiny.yaml"))


def predict(image: ImageSource) -> Prediction:
    """Says how probable it is that a photograph was forged, and where.

    Args:
        image: See `LoupePredictor`.

    Raises:
        ValueError: It is no image, or a damaged one; the message says which and why.

    Example:
        >>> import loupe
        >>> prediction = loupe.predict("photograph.jpg")
        >>> prediction.forgery_map.shape
        (96, 128)
    """
    return default_predictor()(image)
