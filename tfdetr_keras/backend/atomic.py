"""Files and folders that appear complete or not at all, whenever the process stops, and checks of where they may be."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path

from tfdetr_keras.backend.full_disk import told_if_full
from tfdetr_keras.backend.locks import HeldError, Lock, held

_SCRATCH = ".partial-"
_LOCK = ".lock"  # of a scratch folder: tells those of killed writers from others
_SCRATCH_FOLDER = re.compile(r"\.partial-[0-9a-f]{8}-(.+)")
_STARTS = (_SCRATCH, ".tmp")
_OLD = re.compile(r"\.partial-.+|\.tmp[0-9A-Za-z]{6}")  # files of earlier versions: their own, and safetensors'


@contextlib.contextmanager
def whole_file(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a path to write a file to; afterwards it is at `path`, or nothing has changed there.

    The path has the name of the file, in a folder of its own beside it. So two writers of one file do not disturb each
    other, and the last one's file remains; what a library writes beside it is removed, too. Remains of an earlier,
    killed writer of the file are removed.

    Args:
        path: the file to make or to replace.
        needed: bytes that it takes, if that is known, for the message if there is no room.

    Raises:
        FullDiskError: the disk has no room; the file is unchanged.
    """
    path = Path(path)
    if needed is None:
        with contextlib.suppress(OSError):
            needed = path.stat().st_size  # about as much as before
    clear_scratch(path.parent, path.name)
    with told_if_full(path, needed), _scratch(path) as folder:
        partial = folder / path.name
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # or, after a power cut, the new name could stand for an empty file
        os.replace(partial, path)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Make a folder beside a file for its writer alone, and remove it afterwards."""
    folder, lock = _new_scratch(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _new_scratch(path: Path) -> tuple[Path, Lock]:
    while True:
        folder = path.with_name(f"{_SCRATCH}{secrets.token_hex(4)}-{path.name}")
        folder.mkdir()
        try:
            return folder, Lock(folder / _LOCK)
        except (FileNotFoundError, HeldError):
            if folder.exists():
                raise
            # Somebody who clears up took it for an abandoned one, since its lock was not there yet.
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def clear_scratch(folder: str | Path, name: str | None = None) -> None:
    """Remove the remains of killed writers in a folder; keep what living ones write.

    Args:
        folder: where they wrote.
        name: of the file whose remains are removed; by default those of all files.
    """
    folder = Path(folder)
    # Names first, and nothing asked of other files: a command that writes thousands of pictures comes here for each.
    names = [one for one in os.listdir(folder) if one.startswith(_STARTS)] if folder.is_dir() else []
    for left in map(folder.joinpath, names):
        if left.is_symlink():
            continue
        if left.is_dir() and (found := _SCRATCH_FOLDER.fullmatch(left.name)) and name in (None, found[1]):
            with contextlib.suppress(OSError, HeldError), held(left / _LOCK) as lock:
                if lock.is_real:
                    shutil.rmtree(left)
        elif left.is_file() and (left.name == f"{_SCRATCH}{name}" or (name is None and _OLD.fullmatch(left.name))):
            left.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file completely or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder to write into; afterwards it is at `path`, or nothing has changed there."""
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
    """Make a folder and its parents; after an error, remove the new ones unless they hold files."""
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
    """Raise if a file cannot be written, or would be lost.

    Raises:
        ValueError: no such folder, a folder of that name, or, without `overwrite`, a file.
    """
    _check_parent(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: set overwrite, or name another file")


def check_new_folder(folder: Path, names: Container[str], overwrite: bool) -> None:
    """Raise if a folder cannot be written, or holds something that would be lost.

    Args:
        folder: to be written.
        names: of the files of an earlier export; anything else belongs to the user.
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
        raise ValueError(f"{folder} holds an export already: set overwrite, or name another folder")


def _check_parent(target: Path) -> None:
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
