"""Classified batches in parts."""

from __future__ import annotations

from typing import Any

from loupe.modeling.loupe import ClassifiedBatch


def images_of(batch: ClassifiedBatch) -> list[ClassifiedBatch]:
    """Each image of a batch as a batch of its own, on the canvas that it had."""
    inputs, classification = batch.inputs, batch.classification
    return [
        ClassifiedBatch(
            _image(inputs, i),
            {name: feature[i : i + 1] for name, feature in batch.features.items()},
            _image(classification, i),
            (image_id,),
        )
        for i, image_id in enumerate(batch.image_ids)
    ]


def _image(parts: Any, i: int) -> Any:
    """Image i of a tuple of tensors, some of which may be None."""
    return type(parts)(*(None if part is None else part[i : i + 1] for part in parts))
