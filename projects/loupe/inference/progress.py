"""How far a run over many images is: a line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

# Seconds between two lines where there is no terminal, and on one.
LINES, MOVES = 30.0, 0.2


class Progress:
    """Counts images and says how many are done, how fast, and how long the rest takes.

    Args:
        total: Number of images.
        quiet: Say nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        # Stdout holds results alone.
        self.stream = sys.stderr
        self.done = self.new = 0
        self._start = time.monotonic()
        self._said = self._start
        self._moves = self.stream.isatty()
        self._width = 0

    def add(self, *, is_new: bool = True) -> None:
        """Counts an image; `is_new` is False for one that an earlier run had done."""
        self.done += 1
        self.new += is_new
        self.say()

    def say(self) -> None:
        """Says how far the run is, if enough time has passed."""
        now = time.monotonic()
        is_last = self.done == self.total and self._moves
        if self.quiet or now - self._said < (MOVES if self._moves else LINES) and not is_last:
            return
        self._said = now
        text = self.line(now - self._start)
        if self._moves:
            self.stream.write(f"\r{text:<{self._width}}")
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def line(self, seconds: float) -> str:
        """The line after so many seconds.

        Example:
            >>> progress = Progress(1000, quiet=True)
            >>> for _ in range(100):
            ...     progress.add()
            >>> progress.line(50)
            '100/1000 images, 2.0/s, 0:07:30 left'
        """
        rate = self.new / seconds if seconds > 0 else 0.0
        if not rate:
            return f"{self.done}/{self.total} images"
        left = round((self.total - self.done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        return f"{self.done}/{self.total} images, {rate:.1f}/s, {clock} left"

    def close(self) -> None:
        """Ends a line that moved."""
        if self._width:
            self.stream.write("\n")
            self.stream.flush()
