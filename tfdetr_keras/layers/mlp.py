"""The small perceptron of DETR's heads (DETR, section 3.2, "Prediction feed-forward networks")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import initializers, layers


def linear_initializers(inputs: int, kernel: Any = None) -> dict[str, Any]:
    """Make PyTorch's initialisers of a dense layer or 1×1 convolution: U(±1/√inputs) for kernel and bias."""
    limit = 1 / math.sqrt(inputs)
    return {
        "kernel_initializer": kernel or initializers.RandomUniform(-limit, limit),
        "bias_initializer": initializers.RandomUniform(-limit, limit),
    }


class MLP(layers.Layer):
    """Dense layers with an activation between them, and none after the last.

    Args:
        inputs: channels of the input.
        widths: channels after each layer.
        zero_output: whether the last layer starts as all zeros rather than at random.
        kernel_initializer: of the kernels; None for PyTorch's.
        activation: by its Keras name.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        zero_output: bool = False,
        kernel_initializer: str | None = None,
        activation: str = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = [inputs, *widths]
        self.stack = []
        for index, units in enumerate(widths):
            is_last = index == len(widths) - 1
            start = linear_initializers(self.channels[index], kernel_initializer)
            if is_last and zero_output:
                start = {name: initializers.Zeros() for name in start}
            own = None if is_last else activation
            self.stack.append(layers.Dense(units, own, name=f"layer{index}", dtype=self.dtype_policy, **start))

    def build(self, input_shape: Any) -> None:
        """Build for `(…, inputs)`."""
        for layer, channels in zip(self.stack, self.channels, strict=False):
            layer.build((None, channels))

    def call(self, inputs: Any) -> Any:
        """Map `(…, inputs)` → `(…, widths[-1])`."""
        x = inputs
        for layer in self.stack:
            x = layer(x)
        return x
