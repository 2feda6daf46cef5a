"""What the doctor can find: the kinds of faults, and one finding."""

from __future__ import annotations

from typing import NamedTuple

# error: a model would learn or be scored wrongly; warning: look at it; note: good to know.
SEVERITIES = ("error", "warning", "note")


class Check(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: one of SEVERITIES.
        title: what was found, for people.
        remedy: what to do.
    """

    severity: str
    title: str
    remedy: str


CHECKS = {
    "pairs": Check(
        "error", "files do not pair", "add the missing file, rename it, or remove the orphan"
    ),
    "unreadable-image": Check(
        "error", "images cannot be read", "copy them again from their source, or drop them"
    ),
    "image-warning": Check(
        "warning", "images are read, but something is wrong", "copy them again from their source"
    ),
    "unreadable-mask": Check(
        "error", "masks cannot be read", "copy them again from their source, or drop the images"
    ),
    "mask-size": Check(
        "error",
        "masks have another size than their images",
        "correct the pairs; INPUT.MASK_SIZE_MISMATCH decides what training does with them",
    ),
    "empty-mask": Check(
        "error", "forged images have a mask without a forged pixel", "correct mask or label"
    ),
    "faint-mask": Check(
        "error",
        "masks have values, but none that counts as forged (half of the range)",
        "scale them: save 0 and 255",
    ),
    "label-against-mask": Check(
        "error", "authentic images have a mask with forged pixels", "correct mask or label"
    ),
    "inverted-masks": Check(
        "error",
        "most masks of the set are mostly forged, and forged at the border: inverted?",
        "look at some; invert them, or ignore this if backgrounds were replaced",
    ),
    "inverted-mask": Check(
        "warning",
        "masks are mostly forged, and forged at the border: inverted?",
        "look at them; invert them, or ignore this if backgrounds were replaced",
    ),
    "full-mask": Check(
        "warning",
        "masks are forged everywhere",
        "right for wholly generated images (mask * in a manifest); else correct them",
    ),
    "grey-mask": Check(
        "warning",
        "masks are not binary",
        "soft edges are cut at half; save masks without loss as 0 and 255",
    ),
    "mask-missing": Check(
        "warning",
        "forged images have no mask",
        "they count for the image's verdict only; add the masks if there are any",
    ),
    "shared-mask": Check(
        "note", "several images name one mask file", "right for variants of one forgery only"
    ),
    "twins-differ": Check(
        "error",
        "equal images have different labels or masks",
        "find out which is right and drop the other",
    ),
    "twins": Check("warning", "files are equal byte for byte", "keep one of each"),
    "equal-pixels": Check("warning", "different files decode to equal pixels", "keep one of each"),
    "near-twins": Check(
        "note",
        "images look alike",
        "usual where a forgery lies beside its original; keep such images in one split",
    ),
    "leak": Check(
        "error", "equal images are in both sets", "never train on one and test on the other"
    ),
    "near-leak": Check(
        "error",
        "images of both sets look alike",
        "look at them; never train on one and test on the other",
    ),
    "one-class": Check(
        "note", "all labelled images are of one class", "the image's AUC needs both classes"
    ),
    "unbalanced": Check(
        "warning",
        "one class has less than 5% of the images",
        "DATALOADER.SAMPLER_TRAIN BalancedSampler evens it out",
    ),
    "format-tells": Check(
        "warning",
        "the file format alone tells authentic from forged",
        "a detector may learn the format: store both classes alike",
    ),
    "size-tells-class": Check(
        "warning",
        "a class of images has a size of its own",
        "a detector may learn the size: score it on images of one size for all, too",
    ),
    "format-tells-class": Check(
        "warning",
        "a class of images has a file format of its own",
        "a detector may learn the format: store all classes alike, and score it so, too",
    ),
    "suffix": Check("note", "files are of another format than their suffix says", "rename them"),
}


class Finding(NamedTuple):
    """What was found of one kind in one set, or between two.

    Attributes:
        check: key of CHECKS.
        dataset: name of the set, or "first + second".
        items: the images, or pairs of them, or messages; all of them.
        total: number of items that could have had it; 0 where that says nothing.
    """

    check: str
    dataset: str
    items: list[str]
    total: int = 0

    @property
    def severity(self) -> str:
        """One of SEVERITIES."""
        return CHECKS[self.check].severity
