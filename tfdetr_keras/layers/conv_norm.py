"""A convolution with batch normalisation, as PyTorch's networks have it: trained, frozen, or folded into the weights.

Two details decide whether ported weights give the same numbers. PyTorch pads a strided convolution alike on both sides,
Keras' `"same"` only at the end: strided layers here pad explicitly. And its batch norm has epsilon 1e-5, not 1e-3.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import layers, ops

EPSILON = 1e-5
BatchNorm = Literal["frozen", "trainable", "folded"]


def _he_normal() -> keras.initializers.Initializer:
    """Make Kaiming's initialiser over the outputs, which keeps the gradient's scale (He et al. 2015).

    A new one for each layer: an initialiser draws its seed once, and then always gives the same values.
    """
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


class FrozenBatchNormalization(layers.Layer):
    """Batch normalisation whose statistics and affine parameters never change, even when the layer is made trainable.

    Its weights carry the names of `keras.layers.BatchNormalization`, so that either can take the other's place. It is
    not called: the convolution before it takes its scale and shift, which saves four passes over its results, forward
    and back.
    """

    def build(self, input_shape: Any) -> None:
        """Create the four vectors of length `channels`, kept in float32 under any policy."""

        def vector(name: str, initializer: str) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],), initializer=initializer, name=name, trainable=False, autocast=False
            )

        self.gamma = vector("gamma", "ones")
        self.beta = vector("beta", "zeros")
        self.moving_mean = vector("moving_mean", "zeros")
        self.moving_variance = vector("moving_variance", "ones")

    def affine(self) -> tuple[Any, Any]:
        """Return the scale and the shift of each channel that the normalisation comes to, `(channels,)`, float32."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + EPSILON)
        return scale, self.beta - self.moving_mean * scale


class ConvNorm(layers.Layer):
    """Convolution, batch normalisation (or, where that is folded, a bias), and ReLU where wanted."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        batch_norm: BatchNorm = "frozen",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.relu = relu
        # Symmetric padding: with stride 1 that is what "same" does, with a stride it is not.
        self.padding = kernel_size // 2 if stride > 1 else 0
        self.convolution = layers.Conv2D(
            channels,
            kernel_size,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            dilation_rate=dilation,
            use_bias=batch_norm == "folded",
            kernel_initializer=_he_normal(),
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.normalization: Any = None
        if batch_norm == "frozen":
            self.normalization = FrozenBatchNormalization(name="normalization", dtype=self.dtype_policy)
        elif batch_norm == "trainable":
            self.normalization = layers.BatchNormalization(
                momentum=0.9, epsilon=EPSILON, name="normalization", dtype=self.dtype_policy
            )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        self.convolution.build(input_shape)
        if self.normalization is not None:
            self.normalization.build((None, None, None, self.convolution.filters))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, filters)`."""
        x = pad_spatially(inputs, self.padding) if self.padding else inputs
        if isinstance(self.normalization, FrozenBatchNormalization):
            scale, shift = self.normalization.affine()
            kernel = self.convolution.kernel
            x = self.convolution.convolution_op(x, kernel * ops.cast(scale, kernel.dtype))
            x = x + ops.cast(shift, x.dtype)
        else:
            x = self.convolution(x)
            if self.normalization is not None:
                x = self.normalization(x, training=training)
        return ops.relu(x) if self.relu else x


def pad_spatially(x: Any, padding: int) -> Any:
    """Zero-pad height and width of `(batch, height, width, channels)` alike on all four sides."""
    return ops.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
