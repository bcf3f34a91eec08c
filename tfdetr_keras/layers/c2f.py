"""The projector between a vision transformer and a decoder: features of several depths become one map, or two sizes.

Source:
    Chen et al. 2024, "LW-DETR", arXiv:2406.03459, section 3.1 ("Projector"), after YOLOv8's C2f block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from keras import layers, ops

from tfdetr_keras.layers.activations import activation_named
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm, pytorch_uniform
from tfdetr_keras.layers.mlp import linear_initializers

NORM_EPSILON = 1e-6
WIDE = 512  # channels from beyond which a map is made narrower before it is made finer
Norm = BatchNorm | Literal["layer"]


class ConvLayerNorm(layers.Layer):
    """Convolution, a normalisation of each pixel over its channels, and an activation."""

    def __init__(
        self, channels: int, kernel_size: int, activation: str, kernel_initializer: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.activation = activation_named(activation)
        self.convolution = layers.Conv2D(
            channels,
            kernel_size,
            padding="same",
            use_bias=False,
            kernel_initializer=kernel_initializer or "glorot_uniform",
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.normalization = layers.LayerNormalization(
            epsilon=NORM_EPSILON, name="normalization", dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        self.convolution.build(input_shape)
        self.normalization.build((None, None, None, self.convolution.filters))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, height, width, filters)`."""
        return self.activation(self.normalization(self.convolution(inputs)))


def _convolution(inputs: int, channels: int, kernel_size: int, norm: Norm, activation: str, **kwargs: Any) -> Any:
    start = pytorch_uniform(kernel_size, inputs)
    if norm == "layer":
        return ConvLayerNorm(channels, kernel_size, activation, start, **kwargs)
    return ConvNorm(channels, kernel_size, activation=activation, batch_norm=norm, kernel_initializer=start, **kwargs)


class C2f(layers.Layer):
    """A convolution, then a chain of pairs of convolutions on half of its channels, all of which are kept and mixed.

    Args:
        inputs: channels of the map.
        channels: of the result.
        hidden: channels of each part.
        blocks: pairs of convolutions.
        norm: "layer", or how batch normalisation is done: "frozen", "trainable" or "folded".
        activation: by its Keras name.
    """

    def __init__(
        self, inputs: int, channels: int, hidden: int, blocks: int, norm: Norm, activation: str = "silu", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inputs, self.hidden, self.number = inputs, hidden, blocks
        options: dict[str, Any] = {"norm": norm, "activation": activation, "dtype": self.dtype_policy}
        self.conv1 = _convolution(inputs, 2 * hidden, 1, name="conv1", **options)
        self.blocks = [
            [_convolution(hidden, hidden, 3, name=f"block{index}_conv{part}", **options) for part in (1, 2)]
            for index in range(blocks)
        ]
        self.conv2 = _convolution((2 + blocks) * hidden, channels, 1, name="conv2", **options)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        self.conv1.build((None, None, None, self.inputs))
        for block in self.blocks:
            for convolution in block:
                convolution.build((None, None, None, self.hidden))
        self.conv2.build((None, None, None, (2 + self.number) * self.hidden))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, inputs)` → `(batch, height, width, channels)`."""
        x = self.conv1(inputs, training=training)
        parts = [x]
        x = x[..., self.hidden :]
        for block in self.blocks:
            for convolution in block:
                x = convolution(x, training=training)
            parts.append(x)
        return self.conv2(ops.concatenate(parts, axis=-1), training=training)


class Sampling(layers.Layer):
    """A map of half or twice the size, or the map itself.

    Args:
        channels: of the map.
        scale: 2, 1 or 0.5.
        batch_norm: of its convolutions.
    """

    def __init__(self, channels: int, scale: float, batch_norm: BatchNorm, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs = channels
        self.convolution: Any = None
        self.upsampling: Any = None
        options: dict[str, Any] = {"batch_norm": batch_norm, "activation": "relu", "dtype": self.dtype_policy}
        if scale == 2:
            if channels > WIDE:
                start = pytorch_uniform(1, channels)
                channels //= 2
                self.convolution = ConvNorm(channels, 1, kernel_initializer=start, name="convolution", **options)
            self.narrow = channels
            channels //= 2
            self.upsampling = layers.Conv2DTranspose(
                channels, 2, strides=2, name="upsampling", dtype=self.dtype_policy, **linear_initializers(4 * channels)
            )
        elif scale == 0.5:
            start = pytorch_uniform(3, channels)
            self.convolution = ConvNorm(channels, 3, 2, kernel_initializer=start, name="convolution", **options)
        elif scale != 1:
            raise ValueError(f"a map is made 2, 1 or 0.5 times as large, not {scale}")
        self.outputs = channels

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        if self.convolution is not None:
            self.convolution.build((None, None, None, self.inputs))
        if self.upsampling is not None:
            self.upsampling.build((None, None, None, self.narrow))

    def call(self, x: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → a map of the other size."""
        if self.convolution is not None:
            x = self.convolution(x, training=training)
        return x if self.upsampling is None else self.upsampling(x)


class Projector(layers.Layer):
    """Features of several depths, joined to one map of a size, of the decoder's width.

    Args:
        inputs: channels of each feature map.
        channels: of the result.
        scale: how large the result is, as a factor: 2, 1 or 0.5.
        hidden: channels of the parts of its C2f block.
        blocks: of that.
        norm: "layer", or how batch normalisation is done.
    """

    def __init__(
        self, inputs: Sequence[int], channels: int, scale: float, hidden: int, blocks: int, norm: Norm, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        batch_norm: BatchNorm = "trainable" if norm == "layer" else norm
        self.samplings = [
            Sampling(own, scale, batch_norm, name=f"sampling{index}", dtype=policy) for index, own in enumerate(inputs)
        ]
        joined = sum(sampling.outputs for sampling in self.samplings)
        self.channels = channels
        self.c2f = C2f(joined, channels, hidden, blocks, norm, name="c2f", dtype=policy)
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=policy)

    def build(self, input_shape: Any) -> None:
        """Build all parts; their shapes depend on the configuration alone."""
        for sampling in self.samplings:
            sampling.build(None)
        self.c2f.build(None)
        self.norm.build((None, None, None, self.channels))

    def call(self, maps: Sequence[Any], training: bool = False) -> Any:
        """Map the feature maps `(batch, height, width, …)` → `(batch, h, w, channels)`."""
        sampled = [sampling(x, training=training) for sampling, x in zip(self.samplings, maps, strict=True)]
        return self.norm(self.c2f(ops.concatenate(sampled, axis=-1), training=training))
