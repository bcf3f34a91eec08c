"""How one PyTorch tensor and one Keras variable hold the same numbers: layouts, read in both directions.

Every layout is a permutation of entries, so a round trip returns each tensor bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of laying out a weight.

    Args:
        to_keras: PyTorch array and the Keras variable's shape → the Keras array.
        to_torch: the inverse.
        parts: into how many Keras variables the PyTorch tensor is cut along its first axis.
        part: which of them this one is.
    """

    to_keras: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    parts: int = 1
    part: int = 0

    def torch_shape(self, keras_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the PyTorch tensor (the whole one, if it is cut) for a Keras variable's shape."""
        first, *rest = self.to_torch(np.empty(keras_shape, np.bool_)).shape
        return (first * self.parts, *rest)

    def read(self, tensor: np.ndarray, keras_shape: tuple[int, ...]) -> np.ndarray:
        """Return this part of the PyTorch tensor as the Keras variable's value."""
        return self.to_keras(np.split(tensor, self.parts)[self.part], keras_shape)


def _transpose_heads_in(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return tensor.T.reshape(shape)


VECTOR = Layout(lambda tensor, shape: tensor, lambda array: array)
# Linear (out, in) ↔ Dense (in, out)
DENSE = Layout(lambda tensor, shape: tensor.T, lambda array: array.T)
# Conv2d (out, in, height, width) ↔ Conv2D (height, width, in, out)
CONV = Layout(lambda tensor, shape: tensor.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1))
# Conv2d of each channel alone (channels, 1, height, width) ↔ DepthwiseConv2D (height, width, channels, 1)
DEPTHWISE = Layout(lambda tensor, shape: tensor.transpose(2, 3, 0, 1), lambda array: array.transpose(2, 3, 0, 1))
# Linear (heads · width, in) ↔ query, key and value kernels (in, heads, width), biases (heads, width)
HEADS_IN = Layout(_transpose_heads_in, lambda array: array.reshape(array.shape[0], -1).T)
HEADS_BIAS = Layout(lambda tensor, shape: tensor.reshape(shape), lambda array: array.reshape(-1))
# Linear (out, heads · width) ↔ output kernel (heads, width, out)
HEADS_OUT = Layout(_transpose_heads_in, lambda array: array.reshape(-1, array.shape[-1]).T)


def packed(layout: Layout, part: int) -> Layout:
    """Return the layout of query, key or value (0, 1, 2), which PyTorch's `MultiheadAttention` keeps in one tensor."""
    return dataclasses.replace(layout, parts=3, part=part)
