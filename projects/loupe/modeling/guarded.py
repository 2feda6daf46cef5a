"""A model whose failure on one image does not end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]


def guarded(model: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """Wraps a model in evaluation mode; an image that it fails on has an "error" as its output.

    A batch that fails is predicted again image by image, so that only those images are lost that
    fail alone. The first failure is logged with its traceback: it may be a fault of the model.

    Args:
        model: Batch items -> one output for each.
    """
    told: list[Exception] = []

    def predict(batch: Batch) -> Batch:
        try:
            return model(batch)
        except Exception as error:  # Out of memory, a size that a layer refuses, ...
            if len(batch) > 1:
                return [output for item in batch for output in predict([item])]
            if not told:
                _logger.warning("the model failed on an image", exc_info=error)
            told.append(error)
            name = batch[0].get("file_name", "an image")
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return [{"error": f"{name}: the model failed on it ({reason})"}]

    return predict
