"""Seeded forgeries with exact masks, made of photographs while a network trains.

From photograph to sample: `histories` takes host and donor, `regions` cuts, `techniques` fills
(with `inpainting`, `enhancement` and `generated`), `seams` blends, `histories` processes the whole;
`generator` puts it together. `views` are hosts and donors as people meet photographs.
"""

from loupe.synthesis.generated import regenerate
from loupe.synthesis.generator import (
    AUTHENTIC,
    DEFAULT_TECHNIQUES,
    SMALLEST,
    TECHNIQUES,
    SyntheticSample,
    forge,
    make_forgery,
    make_view,
)

__all__ = [
    "AUTHENTIC",
    "DEFAULT_TECHNIQUES",
    "SMALLEST",
    "TECHNIQUES",
    "SyntheticSample",
    "forge",
    "make_forgery",
    "make_view",
    "regenerate",
]
