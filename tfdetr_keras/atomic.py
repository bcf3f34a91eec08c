"""Files and folders that appear complete or not at all, whenever the process stops, and where they may."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Container, Iterator
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


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a folder to write into; afterwards it stands at `path`, or nothing has changed there."""
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        written, old = Path(scratch) / "new", Path(scratch) / "old"
        written.mkdir()
        yield written
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(written, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            raise


@contextlib.contextmanager
def made_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder and those that it is in; where an error follows, the new ones go again, unless they hold files."""
    path = Path(path)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_new_file(path: Path, overwrite: bool) -> None:
    """Refuses a file that cannot be written, or that would be lost.

    Raises:
        ValueError: no such folder, a folder of that name, or, without `overwrite`, a file.
    """
    _check_parent(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: say overwrite, or name another file")


def check_new_folder(folder: Path, names: Container[str], overwrite: bool) -> None:
    """Refuses a folder that cannot be written, or that holds what would be lost.

    Args:
        folder: to be written.
        names: of what an earlier export leaves there; anything else is somebody's.
        overwrite: whether an earlier export may be replaced.

    Raises:
        ValueError: no such parent, a file of that name, other files in it, or, without `overwrite`, an export.
    """
    _check_parent(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder to write")
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    foreign = [entry for entry in held if entry not in names]
    if foreign:
        raise ValueError(f"{folder} holds other files ({', '.join(foreign[:8])}): name a new or an empty folder")
    if held and not overwrite:
        raise ValueError(f"{folder} holds an export already: say overwrite, or name another folder")


def _check_parent(target: Path) -> None:
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
