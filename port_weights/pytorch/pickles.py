"""Pickles, which only torch reads and writes: `.pth`, `.pt` and `.bin` files. Runs in PyTorch's process.

A pickle is opened with nothing allowed but tensors, plain containers and the argparse Namespace that training scripts
leave beside the weights.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from port_weights.pytorch import TENSORS


def read(folder: Path, path: str) -> dict[str, Any]:
    """Write the state dict of a pickle to `TENSORS` in the folder, in float32.

    Args:
        folder: where to write.
        path: the pickle.

    Returns:
        The arguments of the training script that are numbers and texts.

    Raises:
        ValueError: the file is damaged, holds anything but weights, or no state dict.
    """
    content = _opened(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    arguments = content.get("args")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    odd = [key for key, tensor in content.items() if not isinstance(tensor, torch.Tensor)]
    if odd or not content:
        raise ValueError(
            f"{path} is not a state dict of named tensors: {', '.join(map(str, odd[:5])) or 'it is empty'}"
        )
    save_file({str(name): _array(f"{path}: {name}", tensor) for name, tensor in content.items()}, folder / TENSORS)
    return _plain(vars(arguments)) if isinstance(arguments, argparse.Namespace) else {}


def write(folder: Path, path: str, arguments: Mapping[str, Any]) -> None:
    """Write `TENSORS` in the folder as facebookresearch/detr keeps weights.

    Args:
        folder: where the tensors are.
        path: the file to write, `{"model": state dict, "args": argparse.Namespace}`.
        arguments: what the namespace holds.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: torch.from_numpy(array) for name, array in load_file(folder / TENSORS).items()}
    try:
        torch.save({"model": state, "args": argparse.Namespace(**arguments)}, path)
    except RuntimeError as error:  # as torch's own writer has it when the disk is full
        raise OSError(f"{path} could not be written: {_first_line(error)}") from error


def _opened(path: str) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Without torch's advice on how to let it run all the same.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0].split(" Please use")[0]
        raise ValueError(
            f"{path} is damaged, or holds more than weights and is refused, because opening it could run code: {reason}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a PyTorch checkpoint, or it is truncated: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    try:
        return np.ascontiguousarray(tensor.detach().float().numpy())  # numpy has no bfloat16
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is no ordinary tensor: {_first_line(error)}") from error


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts among the arguments; the others (a device, a list of paths) say nothing of the architecture."""
    return {name: value for name, value in arguments.items() if isinstance(value, str | int | float)}
