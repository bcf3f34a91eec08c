"""RepVGG's block: two parallel convolutions in training, which are one convolution in inference.

Source:
    Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", arXiv:2101.03697, section 3.3; without its
    identity branch, as RT-DETR has it.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from tfdetr_keras.layers.activations import activation_named
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm, pytorch_uniform


class RepVGGBlock(layers.Layer):
    """The activation of the sum of a 3×3 and a 1×1 convolution, each with batch normalisation.

    Folded, it is the activation of one 3×3 convolution: `tfdetr_keras.backbones.folding` adds the two kernels.

    Args:
        channels: of input and output.
        activation: by its Keras name.
        batch_norm: "frozen", "trainable" or "folded".
    """

    def __init__(
        self, channels: int, activation: str = "silu", batch_norm: BatchNorm = "trainable", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.activation = channels, activation_named(activation)

        def branch(kernel_size: int, name: str) -> ConvNorm:
            start = pytorch_uniform(kernel_size, channels)
            options = {"batch_norm": batch_norm, "kernel_initializer": start, "name": name, "dtype": self.dtype_policy}
            return ConvNorm(channels, kernel_size, activation=None, **options)

        self.dense = branch(3, "dense")
        self.pointwise = None if batch_norm == "folded" else branch(1, "pointwise")

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        for branch in (self.dense, self.pointwise):
            if branch is not None:
                branch.build((None, None, None, self.channels))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → the same shape."""
        x = self.dense(inputs, training=training)
        if self.pointwise is not None:
            x = x + self.pointwise(inputs, training=training)
        return self.activation(x)
