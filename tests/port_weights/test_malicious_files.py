"""Files that would run code, or that lie about what they hold, are refused with a message that says so.

Pickles, and shards that name files elsewhere, are in `test_checkpoint_files.py`; what leaves the hub's cache in
`test_hub.py`; images with too many pixels in
`tests/data/test_images.py`.
"""

import json
import os
import struct

import keras
import numpy as np
import pytest

from port_weights import load_model
from port_weights.checkpoints import open_checkpoint


def test_a_keras_file_with_a_lambda(tmp_path):
    """Keras keeps a lambda as Python's bytecode, which loading it would run."""
    trace = tmp_path / "harm-was-done"
    place = str(trace)
    path = tmp_path / "detector.keras"
    keras.Sequential([keras.layers.Lambda(lambda x: [x, os.mkdir(place)][0])]).save(path)
    with pytest.raises(ValueError, match=r"detector\.keras holds a Sequential, no model known here.*Lambda"):
        load_model(path)
    assert not trace.exists()


def write_safetensors(path, header, data=b""):
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)


def tensor(begin, end, shape, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": tensor(0, 2**40, [2**38])}, 16),  # more than the file holds
        ({"a": tensor(0, 16, [2**30, 2**30])}, 16),  # a shape that its bytes do not fill
        ({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, 24),  # two tensors in one place
        ({"a": tensor(8, 24, [4])}, 24),  # a hole, where something else could be hidden
        ({"a": tensor(16, 0, [4])}, 16),  # backwards
        ({"a": tensor(0, 16, [4])}, 32),  # something after the last tensor
        ({"a": tensor(0, 16, [4], "OBJECT")}, 16),
    ],
)
def test_a_safetensors_header_that_lies(tmp_path, header, size):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, header, b"\0" * size)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file, or it is truncated"):
        open_checkpoint(path)


def test_a_safetensors_header_of_a_length_that_is_not_there(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        open_checkpoint(path)


def test_what_a_true_header_looks_like(tmp_path):
    """Or the cases above could be refused for another reason."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": tensor(0, 16, [4])}, np.arange(4, dtype="<f4").tobytes())
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), np.arange(4, dtype=np.float32))
