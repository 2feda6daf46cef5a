"""Puts parts of one checkpoint in place of those of another.

    python -m research.detector.graft output/loupe_tiny/stage1/model_best.pth \
        output/loupe_tiny_copies.safetensors output/loupe_tiny/start2.safetensors

gives the encoder and classifier of the first with the segmenter of the second, so that stage 2
starts from a segmenter that has learned already.
"""

from __future__ import annotations

import argparse

from loupe.checkpoint import load_weights, save_weights
from loupe.checkpoint.weights import Weights


def graft(base: Weights, donor: Weights, parts: list[str]) -> Weights:
    """Tensors of `base`, but those below `parts`, which are the donor's.

    Raises:
        ValueError: the donor has nothing of a part.
    """
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in donor):
            raise ValueError(f"the donor has no part {part}; it has {sorted(_parts(donor))}")

    def grafted(name: str) -> bool:
        return any(name.startswith(f"{part}.") for part in parts)

    kept = {name: value for name, value in base.items() if not grafted(name)}
    return kept | {name: value.float() for name, value in donor.items() if grafted(name)}


def _parts(weights: Weights) -> set[str]:
    return {name.split(".")[0] for name in weights}


def main() -> None:
    """Grafts one file onto another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="checkpoint")
    parser.add_argument("donor", help="checkpoint whose parts are taken")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--parts", nargs="+", default=["segmenter"])
    arguments = parser.parse_args()
    base, donor = (load_weights(path) for path in (arguments.base, arguments.donor))
    save_weights(graft(base, donor, arguments.parts), arguments.output)


if __name__ == "__main__":
    main()
