"""Damaged copies of a PyTorch checkpoint, opened as the package opens them in PyTorch's own process.

Run as a program, with a path, a seed, the number of copies and "zip" or "legacy", it prints what came of each as one
line of JSON.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from port_weights.pytorch import TENSORS
from port_weights.pytorch.pickles import read as read_pickle
from tfdetr_keras.backend.whole_files import refuse_damaged_archive


def damage(path, seed, count, legacy):
    """Opens damaged copies of a checkpoint as the package does, and returns what came of each.

    Returns:
        For each copy `"right"`, `"ValueError"`, or the name of another exception; and `"wrong"` where the arrays of an
        archive, whose bytes have checksums, are others than were written.
    """
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
            read_pickle(path.parent, str(path), path.name)
            arrays = load_file(path.parent / TENSORS)
            same = arrays.keys() == state.keys() and all(np.array_equal(arrays[n], t.numpy()) for n, t in state.items())
            outcomes.append("right" if same or legacy else "wrong")
        except Exception as error:
            outcomes.append(type(error).__name__)
    return outcomes


if __name__ == "__main__":
    path, seed, count, form = sys.argv[1:]
    print(json.dumps(damage(Path(path), int(seed), int(count), form == "legacy")))
