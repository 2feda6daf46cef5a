"""A model whose failure on one image does not end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

_logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
Result = TypeVar("Result")


def guarded(model: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """Wraps a model in evaluation mode; an image that it fails on has an "error" as its output.

    A batch that fails is predicted again image by image, so that only those images are lost that
    fail alone. The first failure is logged with its traceback: it may be a fault of the model.

    Args:
        model: Batch items -> one output for each.
    """
    told: list[str] = []

    def predict(batch: Batch) -> Batch:
        try:
            return model(batch)
        except Exception as error:  # Out of memory, a size that a layer refuses, ...
            if len(batch) > 1:
                return [output for item in batch for output in predict([item])]
            if not told:
                _logger.warning("the model failed on an image", exc_info=error)
            told.append(_reason(batch[0], error))
            return [{"error": told[-1]}]

    return predict


def without_failing(call: Callable[[Batch], Result], batch: Batch) -> Result:
    """Calls a part of the model on a batch, without the images that it fails on.

    Those lose their "image" and get an "error", in place: items as the mapper gives them for files
    that cannot be read.

    Args:
        call: Takes items, with or without "image".
        batch: Items of the dataset mapper.
    """
    try:
        return call(batch)
    except Exception as error:
        _logger.warning("the model failed on a batch", exc_info=error)
    for item in batch:
        if "image" in item:
            try:
                call([item])
            except Exception as error:
                item["error"] = _reason(item, error)
                del item["image"]
    return call(batch)


def _reason(item: dict[str, Any], error: Exception) -> str:
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{item.get('file_name', 'an image')}: the model failed on it ({first})"
