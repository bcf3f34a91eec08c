"""Checkpoint files: opening and reading them; no knowledge of any model.

Safetensors are read lazily by name and need neither torch nor transformers. A pickle is opened by torch, in a process
of its own that leaves safetensors in a temporary folder; they are deleted with the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
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

PICKLES = (".pth", ".pt", ".bin")


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


def open_checkpoint(source: Any) -> Checkpoint:
    """Opens a checkpoint that is on this machine.

    Args:
        source: a folder with `config.json` and `model.safetensors`, a `.safetensors` or `.pth` file, or a state dict
            (name → array or torch tensor).

    Raises:
        ValueError: nothing is there, or it cannot be read; the message names the file.
    """
    if isinstance(source, Mapping):
        return _from_state_dict("the state dict", source)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        if path.suffix in PICKLES:
            return _open_pickle(path)
        config = path.parent / "config.json"
        # A file by another name may stand beside somebody else's configuration.
        return _open_safetensors(path, config if path.name == "model.safetensors" and config.is_file() else None)
    raise ValueError(
        f"{source}: no such file or folder, nor a hub id of the form owner/name; expected a folder with config.json "
        "and model.safetensors, a .safetensors, a .pth, or a .keras file"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _open_folder(folder: Path) -> Checkpoint:
    config = folder / "config.json"
    weights = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if weights.is_file():
        return _open_safetensors(weights, config if config.is_file() else None)
    if index.is_file():
        return _open_shards(index, config if config.is_file() else None)
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        opened = _open_pickle(pickled)
        return dataclasses.replace(opened, config=read_json(config)) if config.is_file() else opened
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise ValueError(f"{folder} has no model.safetensors (nor pytorch_model.bin); it holds {found}")


def _open_safetensors(path: Path, config: Path | None, title: str | None = None) -> Checkpoint:
    """Opens a file, which messages call by its path unless they have another title for it."""
    title = title or os.fspath(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{title} is not a safetensors file, or it is truncated or damaged ({error})") from error

    def read(name: str) -> np.ndarray:
        # Opened for each tensor: what was read of a mapped file stays in this process's memory until it is closed.
        with safe_open(os.fspath(path), framework="numpy") as file:
            return _as_float32(file.get_tensor(name), f"{title}: {name}")

    return Checkpoint(title, shapes, read, None if config is None else read_json(config))


def _open_shards(index: Path, config: Path | None) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    shards = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise ValueError(f"{index} names {file!r}, which is not a file of its own folder")
        shards[file] = _open_safetensors(index.parent / file, None)
    try:
        shapes = {name: shards[file].shapes[name] for name, file in weight_map.items()}
    except KeyError as error:
        raise ValueError(f"{index} lists the tensor {error}, but its file does not hold it") from error
    return Checkpoint(
        os.fspath(index),
        shapes,
        lambda name: shards[weight_map[name]].read(name),
        None if config is None else read_json(config),
    )


def _open_pickle(path: Path) -> Checkpoint:
    folder = Path(tempfile.mkdtemp(prefix="port_weights-"))
    try:
        require("torch")
        arguments = run("port_weights.pytorch.pickles:read", folder, path=os.fspath(path.absolute()))
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
    return dataclasses.replace(opened, arguments=arguments)


def _from_state_dict(name: str, tensors: Mapping[str, Any]) -> Checkpoint:
    odd = [key for key, tensor in tensors.items() if not hasattr(tensor, "shape")]
    if odd or not tensors:
        raise ValueError(
            f"{name} is not a state dict of named tensors: {', '.join(map(str, odd[:5])) or 'it is empty'}"
        )

    def read(key: str) -> np.ndarray:
        tensor = tensors[key]
        if hasattr(tensor, "detach"):  # a torch tensor, told without importing torch; numpy has no bfloat16
            tensor = tensor.detach().cpu().float().numpy()
        return _as_float32(tensor, f"{name}: {key}")

    return Checkpoint(name, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, read)


def _as_float32(array: Any, name: str) -> np.ndarray:
    array = np.asarray(array).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array
