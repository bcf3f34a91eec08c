"""Files that torch writes and reads: pickles (`.pth`), and safetensors of half precision."""

import argparse
import os
import pickle

import numpy as np
import torch
from safetensors.torch import save_file


def write(path, content):
    """Writes arrays, as tensors, in nested dicts, and whatever else stands there."""
    torch.save(_tensors(content), path)


def _tensors(value):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {key: _tensors(one) for key, one in value.items()}
    return value


def write_half(state, dtype, safetensors, pickled):
    """Writes named arrays in half precision into two files; returns them as float32 again."""
    half = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in state.items()}
    save_file(half, safetensors)
    torch.save(half, pickled)
    return {name: tensor.float() for name, tensor in half.items()}


def read(path):
    """The content of a file that holds weights and a training script's arguments alone."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


class Intruder:
    """A pickle that creates a folder when opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_intruder(path, trace, among_weights, legacy):
    """Writes a pickle that makes the folder `trace` when it is opened without care, alone or beside a tensor."""
    content = Intruder(trace)
    if among_weights:
        content = {"model": {"a": torch.ones(1)}, "x": content}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)


def open_without_care(path):
    """Opens a file and lets it run what it wants to."""
    torch.load(path, weights_only=False)


def write_odd(path, kind):
    """Writes a state dict among whose tensors one is of a kind that no array is, or is none."""
    odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.ones(3, device="meta"),
        "complex": lambda: torch.ones(3, dtype=torch.complex64),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "text": lambda: "weights",
        "module": lambda: torch.nn.Linear(2, 2),
    }[kind]()
    torch.save({"plain": torch.ones(2), "odd": odd}, path)


def write_arguments_that_run(path, trace, place):
    """Writes a training program's file whose arguments make the folder `trace` when it is opened without care."""
    weights = {"model.a": torch.ones(1)}
    torch.save({"state_dict": weights, place: {"resolution": 64, "callback": Intruder(trace)}}, path)
