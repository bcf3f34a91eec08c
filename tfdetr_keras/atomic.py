"""Files that appear complete or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields the place to write a file to; afterwards it stands at `path`, or nothing has changed there.

    The place is in the same folder and has the same ending. What an earlier, killed writer left there is overwritten,
    so nothing piles up; two writers of one file at once would disturb each other.

    Args:
        path: the file that is to appear, or to be replaced.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # or, after a power cut, the new name could stand for an empty file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
