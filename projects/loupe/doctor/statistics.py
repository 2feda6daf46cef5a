"""Figures about one set: balance, sizes, formats, and the alphas of the losses.

An alpha weighs the forged class by alpha and the authentic one by 1 - alpha. Both classes weigh the
same in sum if alpha is the fraction of the authentic class, which is what is computed here:

    image   fraction of authentic images among the labelled ones
    pixel   mean over forged images of the fraction of authentic pixels, at the network's size
    patch   mean over forged images and patches of the authentic fraction of the patch

The latter two are over forged images whose mask is known and not empty. The patches' targets are
fractions, so that the patch alpha equals the pixel alpha but for rounding; with hard targets (a
patch is forged from one half) it is `patch_hard`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from loupe.doctor.facts import ImageFacts
from loupe.doctor.faults import Examined

_QUANTILES = (0, 0.05, 0.5, 0.95, 1)


def summarise(examined: Examined) -> dict[str, Any]:
    """Figures of a set, ready for JSON."""
    entries, facts = examined.entries, examined.facts
    readable = [fact for fact in facts if not fact.image_error]
    labels = Counter(entry["label"] for entry in entries)
    return {
        "images": len(entries),
        "forged": labels[1],
        "authentic": labels[0],
        "unlabelled": labels[None],
        "wholly_forged": sum(bool(entry.get("wholly_forged")) for entry in entries),
        "masks": sum(entry["mask_file_name"] is not None for entry in entries),
        "techniques": _counts(entry["technique"] for entry in entries if entry["technique"]),
        "formats": {
            "forged": _counts(_formats(examined, 1)),
            "authentic": _counts(_formats(examined, 0)),
            "unlabelled": _counts(_formats(examined, None)),
        },
        "sizes": len({(fact.width, fact.height) for fact in readable}),
        "most_common_sizes": _counts((f"{f.width} x {f.height}" for f in readable), 5),
        "width": _quantiles([fact.width for fact in readable]),
        "height": _quantiles([fact.height for fact in readable]),
        "forged_fraction": _quantiles([s for s in _fractions(examined, "forged") if 0 < s < 1]),
        "alphas": alphas(examined),
    }


def alphas(examined: Examined) -> dict[str, float | None]:
    """Weights of the forged class that balance the classes; None where nothing says so."""
    labels = [entry["label"] for entry in examined.entries if entry["label"] is not None]
    return {
        "image": 1 - sum(labels) / len(labels) if labels else None,
        "patch": _authentic(_fractions(examined, "patches")),
        "patch_hard": _authentic(_fractions(examined, "full_patches")),
        "pixel": _authentic(_fractions(examined, "pixels")),
        "forged_images_measured": len(_fractions(examined, "pixels")),
    }


def _fractions(examined: Examined, name: str) -> list[float]:
    """A fraction of the masks of forged images, 1 for wholly forged ones; empty masks left out."""
    fractions = []
    for entry, facts in zip(examined.entries, examined.facts, strict=True):
        if entry["label"] != 1 or facts.image_error:
            continue
        if entry.get("wholly_forged"):
            fractions.append(1.0)
        elif facts.mask is not None and facts.mask.forged > 0:
            fractions.append(getattr(facts.mask, name))
    return fractions


def _authentic(fractions: list[float]) -> float | None:
    return 1 - float(np.mean(fractions)) if fractions else None


def _formats(examined: Examined, label: int | None) -> list[str]:
    pairs: list[tuple[dict, ImageFacts]] = list(zip(examined.entries, examined.facts, strict=True))
    return [fact.format for entry, fact in pairs if entry["label"] == label and fact.format]


def _counts(values: Any, limit: int | None = None) -> dict[str, int]:
    return dict(Counter(values).most_common(limit))


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"{q:g}": float(np.quantile(values, q)) for q in _QUANTILES}
