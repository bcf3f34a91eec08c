"""Files as they should be: no stand-in for one that was never fetched, of JSON an object, of an archive every byte."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_HTML = (b"<!doctype html", b"<html")
_CHUNK = 1 << 20  # bytes


def refuse_stand_in(path: Path) -> None:
    """Raise a `ValueError` if a file is a Git LFS pointer, or a web page, in place of what its name says."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(_LFS):
        raise ValueError(
            f"{path} is a Git LFS pointer, a few lines of text in place of the file: run `git lfs install` and `git "
            "lfs pull` in its repository, or download the file itself"
        )
    if start.lstrip().lower().startswith(_HTML):
        raise ValueError(f"{path} is a web page, not the file: download the file itself, from its raw address")


def read_json(path: Path, wanted: str = "a JSON object") -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: the file.
        wanted: what it should hold, for the message.

    Raises:
        ValueError: a stand-in, not JSON, or not an object.
    """
    refuse_stand_in(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold {wanted}, not a {type(content).__name__}")
    return content


def refuse_damaged_archive(path: Path) -> None:
    """Raise a `ValueError` if a zip file is not whole, or one of its members has another checksum than it was given.

    Neither HDF5 nor PyTorch would notice a changed number. An archive without any checksums, which torch writes where
    it is told to, is taken as it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members if any(member.CRC for member in members) else ():
                with archive.open(member) as file:  # which compares the checksum at the end
                    while file.read(_CHUNK):
                        pass
    except Exception as error:  # zipfile has many for headers that make no sense
        raise ValueError(f"{path} is damaged or truncated: {str(error) or type(error).__name__}") from error
