"""Progress of a long pass, on stderr."""

from __future__ import annotations

import sys
import time


class Counter:
    """A counter of images on stderr: "read 120 of 5000 images"; a short pass stays silent.

    Args:
        verb: what was done with them.
        total: how many there are, or −1 if that is not known.
    """

    SILENT = 2  # seconds, at the beginning
    EVERY = 0.5  # seconds, where the line on a terminal is written anew
    EVERY_LINE = 30  # seconds, in a log, where each is a line of its own

    def __init__(self, verb: str, total: int) -> None:
        self._verb = verb
        self._of = f" of {total}" if total >= 0 else ""
        self._live = sys.stderr.isatty()
        self._every = self.EVERY if self._live else self.EVERY_LINE
        self._next = time.monotonic() + self.SILENT
        self._shown = False
        self._count = self._written = 0

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            if self._count != self._written:
                self._write()
            if self._live:
                print(file=sys.stderr)

    def show(self, count: int) -> None:
        """Print that `count` images are done, if it is time to; the last count is printed at the end."""
        self._count = count
        now = time.monotonic()
        if now >= self._next:
            self._next, self._shown = now + self._every, True
            self._write()

    def _write(self) -> None:
        self._written = self._count
        start, end = ("\r", "") if self._live else ("", "\n")
        print(f"{start}{self._verb} {self._count}{self._of} images", end=end, file=sys.stderr, flush=True)
