"""State dicts of torch in this process's memory, as somebody has them who loads a file on their own.

The one file outside of `tests/reference` that imports torch, which alone does not import triton; the tensors are
transformers' own, by way of a file.
"""

import numpy as np
import pytest
import torch

from port_weights import load_model
from port_weights.checkpoints import open_checkpoint


@pytest.fixture
def in_memory(pytorch, tmp_path):
    """The `state_dict()` of a described model."""

    def load(description):
        pytorch.call("models:save_state", description, tmp_path / "state.pth")
        return torch.load(tmp_path / "state.pth")

    return load


@pytest.mark.parametrize("family", ["Detr", "TableTransformer"])
def test_a_state_dict_is_the_model_that_its_folder_is(
    family, make_hugging_face_model, in_memory, pytorch, weights_of, tmp_path
):
    description = make_hugging_face_model(family)
    state = in_memory(description)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    pytorch.call("models:save", description, tmp_path / "folder")
    got, expected = weights_of(load_model(state, heads=2)), weights_of(load_model(tmp_path / "folder"))
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_read_as_float32(hf_model, in_memory, dtype):
    state = {name: tensor.to(dtype) for name, tensor in in_memory(hf_model).items()}
    checkpoint = open_checkpoint(state)
    assert dict(checkpoint.shapes) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        got = checkpoint.read(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, tensor.float().numpy(), err_msg=name)


def test_tensors_that_need_a_gradient(hf_model, in_memory):
    state = {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in in_memory(hf_model).items()}
    assert any(tensor.requires_grad for tensor in state.values())
    checkpoint = open_checkpoint(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor.detach().numpy(), err_msg=name)
