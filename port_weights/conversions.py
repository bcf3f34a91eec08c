"""Conversions of the hub's checkpoints, kept: the second start reads arrays as Keras wants them, and ports nothing.

A conversion is one safetensors file: the weights by their Keras paths, and in the header architecture and loss, the
commit and the hashes of the files that it came from, and a checksum of each weight. Where these are not those of the
commit that is asked for, the commit is ported again. They lie in `$TFDETR_CACHE`, or in `tfdetr_keras` in the user's
cache folder, under the names of repository and commit, and may be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from port_weights.checkpoints import Tensors
from port_weights.hub import Commit
from tfdetr_keras.backend.serialized import criterion_of
from tfdetr_keras.losses.criterion import SetCriterion

logger = logging.getLogger(__name__)

FORMAT = 4  # another one where a path comes to mean another array, or more is kept


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What porting makes of a checkpoint, before anything is changed for a new task.

    Args:
        architecture: the checkpoint's, as plain values with the name of its class.
        criterion: its loss.
        readers: its weights by Keras path, read one at a time.
        lacking: the paths of the weights that it does not hold.
        are_names_unknown: whether the checkpoint names its classes in a way that does not fit its head, so that the
            caller has to.
    """

    architecture: Mapping[str, Any]
    criterion: SetCriterion
    readers: Mapping[str, Callable[[], np.ndarray]]
    lacking: list[str]
    are_names_unknown: bool = False


def find(commit: Commit) -> Conversion | None:
    """Return the conversion of a commit, if it is kept, whole, and of that commit's files."""
    from safetensors import safe_open

    path = _path(commit)
    if not path.is_file():
        return None

    tensors = Tensors(path)

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: tensors[name]

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            header, names = file.metadata() or {}, list(file.keys())
            described = {key: json.loads(header[key]) for key in ("config", "criterion", "lacking", "sums")}
            if json.loads(header["origin"]) != _origin(commit):
                raise ValueError(f"it is not of the files of commit {commit.name}")
            if described["sums"] != {name: _sum(file.get_tensor(name)) for name in names}:
                raise ValueError("its weights are not those that were written")
        return Conversion(
            described["config"],
            criterion_of(described["criterion"], path.name),
            {name: reader(name) for name in names},
            described["lacking"],
        )
    except Exception as error:  # whatever a file that anybody may have written there makes of it
        logger.warning("%s cannot be used, so %s is ported again (%s)", path, commit.hub_id, error)
        return None


def keep(commit: Commit, conversion: Conversion) -> Conversion:
    """Write a conversion for the next start; where that is impossible a warning says so.

    Returns:
        The same conversion, with its weights in memory.
    """
    from safetensors.numpy import save_file

    arrays = {path: np.ascontiguousarray(read()) for path, read in conversion.readers.items()}
    header = {
        "config": json.dumps(conversion.architecture),
        "criterion": json.dumps(keras.saving.serialize_keras_object(conversion.criterion)),
        "lacking": json.dumps(conversion.lacking),
        "origin": json.dumps(_origin(commit)),
        "sums": json.dumps({name: _sum(array) for name, array in arrays.items()}),
    }
    path = _path(commit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own: several processes may start at once.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            save_file(arrays, Path(scratch) / path.name, metadata=header)
            os.replace(Path(scratch) / path.name, path)
    except OSError as error:
        logger.warning("the conversion of %s could not be kept: %s", commit.hub_id, error)
    return dataclasses.replace(conversion, readers={name: _reader(array) for name, array in arrays.items()})


def _reader(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def _origin(commit: Commit) -> dict[str, str]:
    """Return what a conversion came from."""
    return {"repository": commit.hub_id, "commit": commit.name, **commit.origin}


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _path(commit: Commit) -> Path:
    """Return where a commit's conversion lies."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfdetr_keras"
    cache = Path(os.environ.get("TFDETR_CACHE") or default)
    return cache / commit.hub_id.replace("/", "--") / f"{commit.name}-{FORMAT}.safetensors"
