"""The convolutional backbone: ResNet v1.5 with frozen batch normalisation and optional dilation (DETR, section 3.2).

Two details decide whether ported weights give the same numbers. PyTorch pads a strided convolution alike on both sides,
Keras' `"same"` only at the end: strided layers here pad explicitly. And its batch norm has epsilon 1e-5, not 1e-3.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfdetr_keras.models.config import ResNetConfig

EPSILON = 1e-5


def _he_normal() -> keras.initializers.Initializer:
    """Kaiming's, over the outputs: keeps the gradient's scale through ReLU networks (He et al. 2015).

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
        """Creates the four vectors of length `channels`, kept in float32 under any policy."""

        def vector(name: str, initializer: str) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],), initializer=initializer, name=name, trainable=False, autocast=False
            )

        self.gamma = vector("gamma", "ones")
        self.beta = vector("beta", "zeros")
        self.moving_mean = vector("moving_mean", "zeros")
        self.moving_variance = vector("moving_variance", "ones")

    def affine(self) -> tuple[Any, Any]:
        """The scale and the shift of each channel that the normalisation comes to, `(channels,)`, float32."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + EPSILON)
        return scale, self.beta - self.moving_mean * scale


class ConvNorm(layers.Layer):
    """Convolution, batch normalisation (or, where that is folded, a bias), and ReLU where wanted."""

    def __init__(
        self,
        config: ResNetConfig,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
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
            use_bias=config.batch_norm == "folded",
            kernel_initializer=_he_normal(),
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.normalization: Any = None
        if config.batch_norm == "frozen":
            self.normalization = FrozenBatchNormalization(name="normalization", dtype=self.dtype_policy)
        elif config.batch_norm == "trainable":
            self.normalization = layers.BatchNormalization(
                momentum=0.9, epsilon=EPSILON, name="normalization", dtype=self.dtype_policy
            )

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, height, width, channels)`."""
        self.convolution.build(input_shape)
        if self.normalization is not None:
            self.normalization.build((None, None, None, self.convolution.filters))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, filters)`."""
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
    """Zero-pads height and width of `(batch, height, width, channels)` alike on all four sides."""
    return ops.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])


class ResidualBlock(layers.Layer):
    """A basic or bottleneck block; the shortcut is projected where the shape changes.

    Args:
        config: the backbone this block belongs to.
        channels: output channels.
        stride: stride of the block, taken by its (first) 3×3 convolution: "v1.5".
        dilation: dilation of its 3×3 convolutions.
        first_dilation: dilation of the convolution that would carry the stride: one less step in the first block of a
            dilated stage, whose input is not yet dilated.
        project: whether the shortcut needs a 1×1 convolution.
    """

    def __init__(
        self,
        config: ResNetConfig,
        channels: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        project: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = {"dtype": self.dtype_policy}
        if config.block == "basic":
            self.convolutions = [
                ConvNorm(config, channels, 3, stride, first_dilation, name="conv1", **options),
                ConvNorm(config, channels, 3, 1, dilation, relu=False, name="conv2", **options),
            ]
        else:
            self.convolutions = [
                ConvNorm(config, channels // 4, 1, name="conv1", **options),
                ConvNorm(config, channels // 4, 3, stride, first_dilation, name="conv2", **options),
                ConvNorm(config, channels, 1, relu=False, name="conv3", **options),
            ]
        self.shortcut = (
            ConvNorm(config, channels, 1, stride, relu=False, name="shortcut", **options) if project else None
        )

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, height, width, channels)`."""
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = (None, None, None, convolution.convolution.filters)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, channels)`."""
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        x = inputs
        for convolution in self.convolutions:
            x = convolution(x, training=training)
        return ops.relu(x + shortcut)


class Stage(layers.Layer):
    """Residual blocks of one width; the first one changes width and resolution."""

    def __init__(
        self, config: ResNetConfig, index: int, in_channels: int, stride: int, dilation: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        channels = config.channels[index]
        self.blocks = [
            ResidualBlock(
                config,
                channels,
                stride=stride if block == 0 else 1,
                dilation=dilation,
                first_dilation=1 if block == 0 else dilation,
                project=block == 0 and (stride > 1 or in_channels != channels),
                name=f"block{block}",
                dtype=self.dtype_policy,
            )
            for block in range(config.depths[index])
        ]

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, height, width, channels)`."""
        for block in self.blocks:
            block.build(input_shape)
            input_shape = (None, None, None, block.convolutions[-1].convolution.filters)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`(batch, height, width, channels)` → this stage's feature map."""
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return x


class ResNet(layers.Layer):
    """The backbone: stem and stages, giving every stage's feature map.

    Source:
        He et al. 2016, with the stride of a bottleneck in its 3×3 convolution; dilation as DETR, section 4 ("DC5").
    """

    def __init__(self, config: ResNetConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = {"dtype": self.dtype_policy}
        self.config = config
        self.stem = ConvNorm(config, config.stem_channels, 7, stride=2, name="stem", **options)
        self.pool = layers.MaxPooling2D(3, strides=2, padding="valid", name="pool", **options)
        self.stages = []
        in_channels, last = config.stem_channels, len(config.depths) - 1
        for index, channels in enumerate(config.channels):
            stride, dilation = (1 if index == 0 else 2), 1
            if config.dilation and index == last:
                stride, dilation = 1, stride
            self.stages.append(Stage(config, index, in_channels, stride, dilation, name=f"stage{index + 1}", **options))
            in_channels = channels

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, height, width, 3)`."""
        self.stem.build(input_shape)
        input_shape = (None, None, None, self.config.stem_channels)
        self.pool.build(input_shape)
        for stage, channels in zip(self.stages, self.config.channels, strict=True):
            stage.build(input_shape)
            input_shape = (None, None, None, channels)

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """`(batch, height, width, 3)` → the feature maps of all stages, finest first."""
        x = self.stem(inputs, training=training)
        # After the ReLU nothing is negative: padding with zeros is padding with minus infinity.
        x = self.pool(pad_spatially(x, 1))
        features = []
        for stage in self.stages:
            x = stage(x, training=training)
            features.append(x)
        return features
