"""What goes wrong with an image file, always as one exception that names file, fault and remedy."""

from __future__ import annotations

COPY_AGAIN = "copy it again from its source"


class UnreadableImageError(ValueError):
    """An image or mask file that cannot be used: names the file, what is wrong and the remedy."""

    def __init__(self, file_name: str, problem: str, remedy: str) -> None:
        """Keeps the three parts as arguments, so that the error survives pickling by a worker."""
        super().__init__(str(file_name), problem, remedy)
        self.file_name = str(file_name)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: file, problem, remedy."""
        return f"{self.file_name}: {self.problem}; {self.remedy}"


class MaskSizeError(UnreadableImageError):
    """A mask whose size is not its image's."""


class ImageFaultError(Exception):
    """A fault found by a part that does not know the file's name; the door adds the name."""

    def __init__(self, problem: str, remedy: str = COPY_AGAIN) -> None:
        """Takes what is wrong and what to do about it."""
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy


class TooLargeError(ImageFaultError):
    """The fault of an image that would cost more than is allowed."""


def damaged(how: str) -> ImageFaultError:
    """The fault of a file whose content is broken."""
    return ImageFaultError(f"the file is damaged ({how})")
