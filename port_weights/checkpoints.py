"""Checkpoint files: opening and reading them; no knowledge of any model.

Safetensors are read lazily by name and need neither torch nor transformers. A pickle is opened by torch, in a process
of its own that leaves safetensors in a temporary folder; they are deleted with the checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from port_weights.pytorch import TENSORS
from port_weights.pytorch.process import PyTorchMissingError, require, run
from tfdetr_keras.backend.whole_files import read_json, refuse_damaged_archive, refuse_stand_in

logger = logging.getLogger(__name__)

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
# The weights of a folder, in the order in which they are looked for; an index names the files of several shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = ".index.json"
_ZIP = b"PK\x03\x04"
_PICKLED = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Named tensors, read one at a time.

    Args:
        name: what to call the checkpoint in messages.
        shapes: each tensor's shape.
        read: returns a tensor by name as a float32 array.
        config: the content of `config.json`, where there is one.
        arguments: the training script's arguments, where the file keeps them.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    config: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Tensors:
    """The tensors of a safetensors file, read one at a time.

    What was read of a mapped file stays in this process's memory until it is closed: it is opened anew after a while,
    and not for each tensor, which takes as long as reading one.
    """

    WHILE = 64 * 2**20  # bytes

    def __init__(self, path: Path) -> None:
        self._path, self._since = path, 0
        self._file: Any = None

    def __getitem__(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        if self._file is None or self._since > self.WHILE:
            self._file, self._since = None, 0
            self._file = safe_open(os.fspath(self._path), framework="numpy").__enter__()
        tensor: np.ndarray = self._file.get_tensor(name)
        self._since += tensor.nbytes
        return tensor


def open_checkpoint(source: Any) -> Checkpoint:
    """Open a checkpoint that is on this machine.

    Args:
        source: a folder with `config.json` and weights (`WEIGHTS`), a `.safetensors`, `.pth` or `.ckpt` file, or a
            state dict (name → array or torch tensor). What a file is, its content tells, not its name.

    Raises:
        ValueError: nothing is there, or it cannot be read; the message names the file.
    """
    if isinstance(source, Mapping):
        return _from_state_dict("the state dict", source)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        if is_pickle(path):
            return _open_pickle(path)
        config = path.parent / "config.json"
        # A file by another name may stand beside somebody else's configuration.
        return _open_safetensors(path, config if path.name == "model.safetensors" and config.is_file() else None)
    raise ValueError(
        f"{source}: no such file or folder, nor a hub id of the form owner/name; expected a folder with config.json "
        "and model.safetensors, a .safetensors, a .pth, or a .keras file"
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is one that torch has to open, by its first bytes; where these say nothing, by its name.

    Raises:
        ValueError: it is a Git LFS pointer or a web page.
    """
    refuse_stand_in(path)
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, eight bytes, and the header, a JSON object.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return False
    return start.startswith((_ZIP, *_PICKLED)) or path.suffix in PICKLES


def weights_of(folder: Path) -> Path | None:
    """Return the file of a folder's weights, or the index of its shards; None where there is none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def shards_of(index: Path) -> dict[str, str]:
    """Return the file that holds each tensor, by the tensor's name, as an index says.

    Raises:
        ValueError: the index is damaged, or names a file elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map from tensors to files")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index} names {file!r}, which is not a file of its own folder")
    return weight_map


def _open_folder(folder: Path) -> Checkpoint:
    weights, config = weights_of(folder), folder / "config.json"
    if weights is None:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"{folder} has no model.safetensors (nor pytorch_model.bin); it holds {found}")
    if weights.name.endswith(_INDEX):
        opened = _open_shards(weights)
    else:
        opened = _open_pickle(weights) if is_pickle(weights) else _open_safetensors(weights, None)
    return dataclasses.replace(opened, config=read_json(config)) if config.is_file() else opened


def _open_safetensors(path: Path, config: Path | None, title: str | None = None) -> Checkpoint:
    """Open a file, which messages call by its path unless they have another title for it."""
    title = title or os.fspath(path)
    from safetensors import safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError and whatever its parts raise of a header that makes no sense
        raise ValueError(f"{title} is not a safetensors file, or it is truncated or damaged ({error})") from error

    tensors = Tensors(path)

    def read(name: str) -> np.ndarray:
        try:
            tensor = tensors[name]
        except Exception as error:  # of a type that NumPy does not have, or of a file that changed meanwhile
            raise ValueError(f"{title}: {name} cannot be read ({error})") from error
        return _as_float32(tensor, f"{title}: {name}")

    return Checkpoint(title, shapes, read, None if config is None else read_json(config))


def _open_shards(index: Path) -> Checkpoint:
    weight_map = shards_of(index)
    shards = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if not path.is_file():
            raise ValueError(
                f"{path} is not a safetensors file or a pickle, for it is not there: {index.name} names it, so the "
                "copy of the folder is not complete"
            )
        shards[file] = _open_pickle(path) if is_pickle(path) else _open_safetensors(path, None)
    try:
        shapes = {name: shards[file].shapes[name] for name, file in weight_map.items()}
    except KeyError as error:
        raise ValueError(f"{index} lists the tensor {error}, but its file does not hold it") from error
    return Checkpoint(os.fspath(index), shapes, lambda name: shards[weight_map[name]].read(name))


def _open_pickle(path: Path) -> Checkpoint:
    folder = Path(tempfile.mkdtemp(prefix="port_weights-"))
    try:
        require("torch")
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
        if is_zip:
            refuse_damaged_archive(path)
        place, name = os.fspath(path.absolute()), os.fspath(path)
        answer = run("port_weights.pytorch.pickles:read", folder, path=place, name=name)
        opened = _open_safetensors(folder / TENSORS, None, title=os.fspath(path))
    except PyTorchMissingError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(
            f"{path} is a pickle, which only torch can open: pip install torch, or use safetensors ({error})"
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(opened.read, shutil.rmtree, folder, ignore_errors=True)
    for note in answer["notes"]:
        logger.warning("%s: %s", path, note)
    return dataclasses.replace(opened, arguments=answer["arguments"])


def _from_state_dict(name: str, tensors: Mapping[str, Any]) -> Checkpoint:
    odd = [key for key, tensor in tensors.items() if not (isinstance(key, str) and hasattr(tensor, "shape"))]
    if odd or not tensors:
        raise ValueError(
            f"{name} is not a state dict of named tensors: {', '.join(map(str, odd[:5])) or 'it is empty'}"
        )

    def read(key: str) -> np.ndarray:
        tensor = tensors[key]
        try:
            # A torch tensor, told without importing torch; numpy has no bfloat16.
            if hasattr(tensor, "detach") and not tensor.is_complex():
                tensor = tensor.detach().cpu().float().numpy()
        except Exception as error:  # sparse, quantised, without content (meta)
            raise ValueError(f"{name}: {key} is no ordinary tensor ({str(error).splitlines()[0]})") from error
        return _as_float32(tensor, f"{name}: {key}")

    return Checkpoint(name, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, read)


def _as_float32(array: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(array)
        if array.dtype.kind == "c":
            raise TypeError("it is complex")
        array = array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not hold real numbers ({error})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array
