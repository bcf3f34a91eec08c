"""A convolution with batch normalisation, as PyTorch's networks have it: trained, frozen, or folded into the weights.

PyTorch pads a strided convolution alike on both sides, Keras' `"same"` only at the end: with that, ported weights would
not give the same numbers, so strided layers here pad explicitly.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfdetr_keras.layers.activations import activation_named
from tfdetr_keras.layers.batch_norm import BatchNorm, BatchNormalization, FrozenBatchNormalization
from tfdetr_keras.layers.depthwise import DepthwiseConvolution
from tfdetr_keras.layers.mlp import linear_initializers


def _he_normal() -> keras.initializers.Initializer:
    """Make Kaiming's initialiser over the outputs, which keeps the gradient's scale (He et al. 2015).

    A new one for each layer: an initialiser draws its seed once, and then always gives the same values.
    """
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


def pytorch_uniform(kernel_size: int, channels: int) -> keras.initializers.Initializer:
    """Make PyTorch's initialiser of a convolution's kernel: U(±1/√n), n = the inputs of one output."""
    initializer: keras.initializers.Initializer = linear_initializers(kernel_size**2 * channels)["kernel_initializer"]
    return initializer


class ConvNorm(layers.Layer):
    """Convolution, batch normalisation (or, where that is folded, a bias), and an activation where wanted.

    Args:
        channels: of the output.
        kernel_size: odd; or 2 with a stride of 1, for which the last row and column are padded.
        stride: 1 keeps height and width.
        dilation: of the kernel.
        activation: by its Keras name, or None.
        batch_norm: "frozen", "trainable" or "folded".
        kernel_initializer: Kaiming's by default.
        depthwise: whether each channel is convolved alone, so that there are as many before; without a dilation.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        activation: str | None = "relu",
        batch_norm: BatchNorm = "frozen",
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        depthwise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.is_depthwise = channels, depthwise
        self.activation = None if activation is None else activation_named(activation)
        # Symmetric padding: with stride 1 that is what "same" does, with a stride not. A depthwise one pads itself.
        self.padding = kernel_size // 2 if stride > 1 and not depthwise else 0
        options: dict[str, Any] = {
            "strides": stride,
            "use_bias": batch_norm == "folded",
            "name": "convolution",
            "dtype": self.dtype_policy,
        }
        start = kernel_initializer or _he_normal()
        self.convolution: Any
        if depthwise:
            self.convolution = DepthwiseConvolution(kernel_size, depthwise_initializer=start, **options)
        else:
            options |= {"padding": "valid" if stride > 1 else "same", "dilation_rate": dilation}
            self.convolution = layers.Conv2D(channels, kernel_size, kernel_initializer=start, **options)
        self.normalization: Any = None
        if batch_norm == "frozen":
            self.normalization = FrozenBatchNormalization(name="normalization", dtype=self.dtype_policy)
        elif batch_norm == "trainable":
            self.normalization = BatchNormalization(name="normalization", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        self.convolution.build(input_shape)
        if self.normalization is not None:
            self.normalization.build((None, None, None, self.channels))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, filters)`."""
        x = pad_spatially(inputs, self.padding) if self.padding else inputs
        if isinstance(self.normalization, FrozenBatchNormalization):
            scale, shift = self.normalization.affine()
            kernel = self.convolution.kernel
            # That of a depthwise convolution has the channels on its last axis but one.
            scale = ops.reshape(scale, kernel.shape[-2:]) if self.is_depthwise else scale
            x = self.convolution.convolution_op(x, kernel * ops.cast(scale, kernel.dtype))
            x = x + ops.cast(shift, x.dtype)
        else:
            x = self.convolution(x)
            if self.normalization is not None:
                x = self.normalization(x, training=training)
        return x if self.activation is None else self.activation(x)


def pad_spatially(x: Any, padding: int) -> Any:
    """Zero-pad height and width of `(batch, height, width, channels)` alike on all four sides."""
    return ops.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
