"""A file of arrays with a checksum over every byte, in the format of safetensors, which can read it.

The arrays are written one by one: no second copy of them is in memory, and a disk without room is an error of the
system like any other. The checksum is in the file's own header, where its digits count as zeros.

Source: the format is described in the README of huggingface/safetensors: the length of the header in 8 bytes, the
header as JSON, and the arrays, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from tfdetr_keras.backend.atomic import whole_file

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
}
_DIGITS = 64  # of a SHA-256
_NOTES, _SUM = "notes", "sha256"
_SUM_IN_HEADER = re.compile(rf'"{_SUM}":"([0-9a-f]{{{_DIGITS}}})"'.encode())
_CHUNK = 1 << 20  # bytes


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], notes: Any) -> None:
    """Write arrays and notes into a file, which appears completely or not at all.

    Args:
        path: the file.
        arrays: by name, of any shape.
        notes: anything that JSON can hold.

    Raises:
        FullDiskError: the disk has no room; the file at `path` is unchanged.
    """
    # Larger items first, so that each array begins at a multiple of its items' size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {_SUM: "0" * _DIGITS, _NOTES: json.dumps(notes)}}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begun = len(text).to_bytes(8, "little") + text
    total = hashlib.sha256(begun)
    for _, array in ordered:
        total.update(_bytes_of(array))
    begun = begun.replace(b"0" * _DIGITS, total.hexdigest().encode(), 1)
    with whole_file(path, len(begun) + end) as partial, partial.open("wb") as file:
        file.write(begun)
        for _, array in ordered:
            file.write(_bytes_of(array))


def _bytes_of(array: np.ndarray) -> Any:
    """Return the bytes of an array, without a copy if they are contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class StateFile:
    """The content of a file from `write_arrays`, checked as a whole before anything is read from it.

    A file of an earlier version has no checksum and is read without a check.

    Args:
        path: the file.

    Attributes:
        notes: as they were written.
        shapes: of the arrays, by name.

    Raises:
        ValueError: the file is missing, or a byte of it is not what was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                expected, found = _checksums(file)
            with safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata() or {}
                self.notes = json.loads(metadata[_NOTES])
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a complete training state ({error})") from error
        if found != expected or (expected is None and set(metadata) != {_NOTES}):
            raise ValueError(f"{self.path} is damaged: its bytes are not those that were written")

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and values of each array, one after the other."""
        with safe_open(self.path, framework="numpy") as file:
            for name in self.shapes:
                yield name, file.get_tensor(name)


def _checksums(file: BinaryIO) -> tuple[bytes | None, bytes | None]:
    """Return the checksum that a file states and that of its content; None and None if it states none."""
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(size) if size < 1 << 30 else b""
    stated = _SUM_IN_HEADER.search(header)
    if stated is None:
        return None, None
    start, end = stated.span(1)
    total = hashlib.sha256(length + header[:start] + b"0" * _DIGITS + header[end:])
    while chunk := file.read(_CHUNK):
        total.update(chunk)
    return stated[1], total.hexdigest().encode()
