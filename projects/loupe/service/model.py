"""Builds the predictor of a worker from what the command line says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from loupe.model_zoo import digest_of
from loupe.service.worker import Made


@dataclass(frozen=True)
class ModelBuild:
    """Makes a `LoupePredictor` in the process that calls it; the server itself loads no model.

    Attributes:
        config_file: Of the model.
        weights: Its checkpoint; None = MODEL.WEIGHTS.
        options: `KEY VALUE` pairs.
        explainer: Configuration of the language model that writes texts; None = none does.
    """

    config_file: str
    weights: str | None
    options: tuple[str, ...]
    explainer: str | None = None

    def __call__(self) -> Made:
        """The predictor, what describes its predictions, and facts of it.

        Raises:
            ImportError: The explainer needs a package that is not installed.
            ValueError: Weights do not fit, or there are none.
        """
        import torch

        from loupe.config import load_config
        from loupe.inference import LoupePredictor
        from loupe.service.description import describe

        cfg = load_config(self.config_file, list(self.options))
        predictor = LoupePredictor(cfg, self.weights)
        name = predictor.cfg.MODEL.WEIGHTS
        facts = {
            "configuration": Path(self.config_file).name,
            "weights": name if "://" in name else Path(name).name,
            "sha256": digest_of(name),
            "device": cfg.MODEL.DEVICE,
            "threads": torch.get_num_threads(),
            "operating_point": "" if predictor.rule is None else predictor.rule.statement,
            "versions": {name: metadata.version(name) for name in ("loupe", "torch")},
        }
        if self.explainer is None:
            return Made(predictor, describe, facts)
        from loupe.explanation.writer import Writer

        keys = load_config(self.explainer, ["MODEL.DEVICE", cfg.MODEL.DEVICE])
        writer = Writer.from_config(keys)
        facts["explainer"] = keys.MODEL.WEIGHTS
        return Made(predictor, partial(describe, writer=writer), facts)
