"""The file of a training state: what it gives back, who can read it, and that no damage passes."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfdetr_keras.training.state_file import StateFile, write_arrays

ARRAYS = {
    "b/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a/seed": np.array([1, 2], np.uint32),
    "flag": np.array(True),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "half": np.array([0.5, 1.5], np.float16),
    "view": np.arange(8.0)[::2],
}
# A sum of the file inside of what it sums up must not be taken for the file's own.
NOTES = {"history": [{"loss": 1.5}], "text": f'é "sha256":"{"0" * 64}"'}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.safetensors"
    write_arrays(path, ARRAYS, NOTES)
    return path


def test_it_gives_back_what_was_written(path):
    state = StateFile(path)
    assert state.notes == NOTES
    found = dict(state.arrays())
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_safetensors_reads_it(path):
    found = load_file(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_an_earlier_version_is_read_without_its_sum(tmp_path):
    arrays = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    save_file(arrays, tmp_path / "old.safetensors", metadata={"notes": json.dumps(NOTES)})
    state = StateFile(tmp_path / "old.safetensors")
    assert state.notes == NOTES
    np.testing.assert_array_equal(dict(state.arrays())["b/kernel"], ARRAYS["b/kernel"])


def test_no_flipped_bit_passes(path):
    """Every bit of the file: of header, notes, padding, arrays and the sum itself."""
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.safetensors is (damaged|not a complete training state)"):
            StateFile(path)


@pytest.mark.parametrize("seed", range(50))
def test_no_hole_exchange_or_cut_passes(path, seed):
    lots, content = random.Random(seed), path.read_bytes()
    damaged = bytearray(content)
    first, second = sorted(lots.sample(range(len(content)), 2))
    kind = lots.choice(["zeroed", "exchanged", "two bits", "cut", "longer"])
    if kind == "zeroed":
        damaged[first:second] = bytes(second - first)
    elif kind == "exchanged":
        damaged[first], damaged[second] = damaged[second], damaged[first]
    elif kind == "two bits":
        damaged[first] ^= 1
        damaged[second] ^= 1
    elif kind == "cut":
        del damaged[first:]
    else:
        damaged += bytes(second - first)
    path.write_bytes(damaged)
    if damaged == content:  # the exchange of equals, a hole in zeros
        damaged[first] ^= 1
        path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"state\.safetensors is (damaged|not a complete training state)"):
        StateFile(path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="is not a complete training state"):
        StateFile(tmp_path / "none.safetensors")
