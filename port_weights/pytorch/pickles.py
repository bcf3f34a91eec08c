"""Pickles, which only torch reads and writes: `.pth`, `.pt` and `.bin` files. Runs in PyTorch's process.

A pickle is opened with nothing allowed but tensors, plain containers and the two kinds of namespaces in which training
scripts leave their arguments beside the weights.
"""

from __future__ import annotations

import argparse
import pickle
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from port_weights.pytorch import TENSORS

_NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
# Under which names programs keep a model's state dict, that which counts first.
_USUAL = ("model", "state_dict", "model_state_dict", "model_state")
OF_MODEL, VERSION = "model_config", "rfdetr_version"  # of RF-DETR's package
_AVERAGED = re.compile(r"(^|[._-])(ema|swa|avg|averaged?|shadow|teacher)([._-]|$)", re.IGNORECASE)
# A tensor of networks whose authors evaluate and publish the average of their weights: RT-DETR, D-FINE.
_OF_AVERAGES = "decoder.dec_score_head.0.weight"
_NO_MODEL = re.compile(r"optim|sched|scaler|criterion|callback|loop|hyper_parameters|metric|^args$", re.IGNORECASE)


def read(folder: Path, path: str, name: str) -> dict[str, Any]:
    """Write the state dict of a pickle to `TENSORS` in the folder, in float32.

    Args:
        folder: where to write.
        path: the pickle: a state dict, or what a training program keeps, which has one among other things.
        name: what to call it in messages.

    Returns:
        `"arguments"`: those of the training script, or Lightning's hyperparameters, and what RF-DETR's package says of
        the model beside them, that are numbers, texts and lists of these; and
        `"notes"`: sentences on what was left out.

    Raises:
        ValueError: the file is damaged, holds anything but weights, or not one state dict.
    """
    content = _opened(path, name)
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}, not a state dict")
    state, notes = _state_of(name, content)
    save_file({key: _array(f"{name}: {key}", tensor) for key, tensor in state.items()}, folder / TENSORS)
    arguments = content.get("args", content.get("hyper_parameters"))
    told: dict[str, Any] = {}
    for one in (arguments, content.get(OF_MODEL), {VERSION: content.get(VERSION)}):
        fields = vars(one) if isinstance(one, _NAMESPACES) else one
        told |= _plain(fields) if isinstance(fields, Mapping) else {}
    return {"arguments": told, "notes": notes}


def _state_of(title: str, content: Mapping[Any, Any]) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    """Return the one state dict of a model in what a training program keeps, and what is to be said of it."""
    if _is_state(content):
        return content, []
    states = dict(_states(content))
    averaged = [name for name in states if _AVERAGED.search(name)]
    plain = [name for name in states if name not in averaged]
    chosen = [name for name in _USUAL if name in plain][:1] or plain or averaged
    if best := [name for name in averaged if any(tensor.endswith(_OF_AVERAGES) for tensor in states[name])]:
        chosen = best
    if len(chosen) > 1:
        raise ValueError(f"{title} holds several state dicts ({', '.join(chosen)}): save that of the model alone")
    if not chosen:
        named = next((content[key] for key in _USUAL if isinstance(content.get(key), Mapping)), content)
        odd = [name for name, tensor in named.items() if not _is_named_tensor(name, tensor)]
        raise ValueError(
            f"{title} is not a state dict of named tensors: {', '.join(map(str, odd[:5])) or 'it is empty'}"
        )
    left = [name for name in states if name not in chosen]
    what = "an average of the weights" if set(left) <= set(averaged) else "other weights"
    is_average = chosen[0] in averaged
    taken = f"the average of the weights is taken ({chosen[0]}), as its authors do; " if is_average and left else ""
    notes = [f"{taken}it also holds {what} ({', '.join(left)}), left out: save them alone to port them"] if left else []
    return states[chosen[0]], notes


def _states(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Return the state dicts of models among a program's entries, and within these, by their names."""
    for key, value in content.items():
        if not isinstance(value, Mapping) or _NO_MODEL.search(str(key)):
            continue
        if _is_state(value):
            yield f"{before}{key}", value
        elif not before:
            yield from _states(value, f"{key}.")


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(_is_named_tensor(name, tensor) for name, tensor in value.items())


def _is_named_tensor(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, torch.Tensor)


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


def _opened(path: str, name: str) -> Any:
    try:
        # From an open file: by its name torch would take some for safetensors.
        with torch.serialization.safe_globals([*_NAMESPACES]), Path(path).open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Without torch's advice on how to let it run all the same.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0].split(" Please use")[0]
        raise ValueError(
            f"{name} is damaged, or holds more than weights and is refused, because opening it could run code: {reason}"
        ) from error
    except Exception as error:  # torch has one of many kinds for each byte that is wrong
        raise ValueError(f"{name} is not a PyTorch checkpoint, or it is truncated: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    try:
        if tensor.is_complex():
            raise TypeError("it is complex")
        return np.ascontiguousarray(tensor.detach().float().numpy())  # numpy has no bfloat16
    except Exception as error:  # sparse, quantised, without content (meta)
        raise ValueError(f"{name} is no ordinary tensor: {_first_line(error)}") from error


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, texts and lists of these among the arguments; the others say nothing of the architecture."""
    plain = str | int | float

    def is_list(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(part, plain) for part in value)

    return {
        str(name): list(value) if is_list(value) else value
        for name, value in arguments.items()
        if isinstance(value, plain) or is_list(value)
    }
