"""Classified batches in parts."""

from __future__ import annotations

from loupe.modeling.loupe import ClassifiedBatch


def images_of(batch: ClassifiedBatch) -> list[ClassifiedBatch]:
    """Each image of a batch as a batch of its own, on the canvas that it had."""
    inputs, classification = batch.inputs, batch.classification
    return [
        ClassifiedBatch(
            type(inputs)(*(None if part is None else part[i : i + 1] for part in inputs)),
            {name: feature[i : i + 1] for name, feature in batch.features.items()},
            type(classification)(
                *(None if part is None else part[i : i + 1] for part in classification)
            ),
            (image_id,),
        )
        for i, image_id in enumerate(batch.image_ids)
    ]
