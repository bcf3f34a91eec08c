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


def damage(path, seed, count, legacy):
    """Opens damaged copies of a checkpoint as the package does, and returns what came of each.

    Returns:
        For each copy `"right"`, `"ValueError"`, or the name of another exception; and `"wrong"` where the arrays of an
        archive, whose bytes have checksums, are others than were written.
    """
    import random

    import numpy as np
    from safetensors.numpy import load_file

    from port_weights.pytorch import TENSORS
    from port_weights.pytorch.pickles import read as read_pickle
    from tfdetr_keras.models.whole_files import refuse_damaged_archive

    torch.manual_seed(seed)
    state = {f"layer{i}.weight": torch.randn(3, 4) for i in range(4)}
    content = {"model": state, "args": argparse.Namespace(nheads=2), "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole, rng, outcomes = path.read_bytes(), random.Random(seed), []
    for _ in range(count):
        harmed = bytearray(whole)
        kind = rng.choice(["flip", "flips", "cut", "zeros", "insert", "remove"])
        place = rng.randrange(len(harmed))
        if kind == "flip":
            harmed[place] ^= 1 << rng.randrange(8)
        elif kind == "flips":
            for _ in range(8):
                harmed[rng.randrange(len(harmed))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del harmed[place:]
        elif kind == "zeros":
            harmed[place : place + 16] = bytes(len(harmed[place : place + 16]))
        elif kind == "insert":
            harmed[place:place] = rng.randbytes(5)
        else:
            del harmed[place : place + 5]
        path.write_bytes(harmed)
        try:
            if harmed.startswith(b"PK\x03\x04"):
                refuse_damaged_archive(path)
            read_pickle(path.parent, str(path))
            arrays = load_file(path.parent / TENSORS)
            same = arrays.keys() == state.keys() and all(np.array_equal(arrays[n], t.numpy()) for n, t in state.items())
            outcomes.append("right" if same or legacy else "wrong")
        except Exception as error:
            outcomes.append(type(error).__name__)
    return outcomes
