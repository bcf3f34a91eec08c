"""ResNet v1.5 with frozen batch normalisation and optional dilation (DETR, section 3.2), and its variant "vd".

Source:
    He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385; He et al. 2018, "Bag of Tricks for
    Image Classification with Convolutional Neural Networks", arXiv:1812.01187, section 4, for what "vd" differs in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from keras import layers, ops

from tfdetr_keras.backbones.batch_norm import by_part, of_part
from tfdetr_keras.backbones.config import BackboneConfig, one_of, whole_number
from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm, pad_spatially


@dataclasses.dataclass(frozen=True)
class ResNetConfig(BackboneConfig):
    """A ResNet v1.5 backbone: a stem of stride 4, then stages that halve the resolution from the second on.

    Args:
        block: `"basic"` (two 3×3 convolutions) or `"bottleneck"` (1×1, 3×3, 1×1 with a quarter of the channels).
        depths: residual blocks per stage.
        channels: output channels per stage.
        stem_channels: output channels of the stem.
        variant: `"v1.5"`; or `"vd"`, RT-DETR's, whose stem is three 3×3 convolutions instead of one of 7×7, and whose
            shortcuts halve the resolution by averaging instead of leaving three of four pixels out.
        dilation: DETR's DC5: the last stage keeps the resolution and dilates its 3×3 convolutions instead.
        batch_norm: `"frozen"` uses fixed statistics and affine parameters, as DETR does from pretrained weights;
            `"trainable"` is ordinary batch normalisation, for training from scratch; `"folded"` is none, with biases
            in the convolutions that do its work, for inference (`DETR.fold`). Or a mapping of parts to "frozen" or
            "trainable", e.g. `{"stem": "frozen", "stage1": "frozen"}`; parts that it does not name are "trainable".
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_channels: int = 64
    dilation: bool = False
    variant: Literal["v1.5", "vd"] = "v1.5"
    batch_norm: BatchNorm | Mapping[str, BatchNorm] = "frozen"

    def __post_init__(self) -> None:
        for name in ("depths", "channels"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be whole numbers, one for each stage, not {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for value in getattr(self, name):
                whole_number(name, value)
        whole_number("stem_channels", self.stem_channels)
        one_of("block", self.block, ("basic", "bottleneck"))
        one_of("variant", self.variant, ("v1.5", "vd"))
        if self.variant == "vd" and self.dilation:
            raise ValueError('variant="vd" has no dilated form: leave dilation out')
        if len(self.depths) != len(self.channels) or not self.depths:
            raise ValueError(f"depths {self.depths} and channels {self.channels} must name the same stages")
        object.__setattr__(self, "batch_norm", by_part(self.batch_norm, self.parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the backbone's parts, in the order of computation: `"stem"`, `"stage1"`, …"""
        return ("stem", *(f"stage{index + 1}" for index in range(len(self.depths))))

    @property
    def title(self) -> str:
        """What to call it in a sentence: by the name of the published network, if it is one."""
        plain = dataclasses.replace(self, dilation=False, batch_norm="frozen", variant="v1.5")
        known = next((name for name, config in RESNETS.items() if config == plain), None)
        name = "small ResNet" if known is None else known.replace("resnet", "ResNet")
        variant = "-vd" if self.variant == "vd" else ""
        return f"a {name}{variant}{' with a dilated last stage (DC5)' if self.dilation else ''}"

    def make(self, **kwargs: Any) -> ResNet:
        """Make the network."""
        return ResNet(self, **kwargs)

    @property
    def is_foldable(self) -> bool:
        """Whether batch normalisation is not folded yet."""
        return self.batch_norm != "folded"

    def folded(self) -> ResNetConfig:
        """Return the same network with biases in place of batch normalisation."""
        return dataclasses.replace(self, batch_norm="folded")


RESNETS: dict[str, ResNetConfig] = {
    "resnet-18": ResNetConfig(block="basic", depths=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
    "resnet-34": ResNetConfig(block="basic", depths=(3, 4, 6, 3), channels=(64, 128, 256, 512)),
    "resnet-50": ResNetConfig(),
    "resnet-101": ResNetConfig(depths=(3, 4, 23, 3)),
}


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
        batch_norm: "frozen", "trainable" or "folded".
    """

    recompute = False  # see `Detector.recompute`

    def __init__(
        self,
        config: ResNetConfig,
        channels: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        project: bool,
        batch_norm: BatchNorm,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = {"batch_norm": batch_norm, "dtype": self.dtype_policy}
        if config.block == "basic":
            self.convolutions = [
                ConvNorm(channels, 3, stride, first_dilation, name="conv1", **options),
                ConvNorm(channels, 3, 1, dilation, activation=None, name="conv2", **options),
            ]
        else:
            self.convolutions = [
                ConvNorm(channels // 4, 1, name="conv1", **options),
                ConvNorm(channels // 4, 3, stride, first_dilation, name="conv2", **options),
                ConvNorm(channels, 1, activation=None, name="conv3", **options),
            ]
        # "vd" averages before the projection; where the size is odd, the last pixels are averaged with fewer others.
        self.pool = None
        if config.variant == "vd" and stride > 1:
            self.pool = layers.AveragePooling2D(stride, stride, padding="same", name="pool", dtype=self.dtype_policy)
            stride = 1
        self.shortcut = ConvNorm(channels, 1, stride, activation=None, name="shortcut", **options) if project else None

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        if self.pool is not None:
            self.pool.build(input_shape)
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = (None, None, None, convolution.convolution.filters)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, channels)`."""
        shortcut = inputs if self.pool is None else self.pool(inputs)
        shortcut = shortcut if self.shortcut is None else self.shortcut(shortcut, training=training)
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
                project=block == 0 and (stride > 1 or in_channels != channels or config.variant == "vd"),
                batch_norm=of_part(config.batch_norm, f"stage{index + 1}"),
                name=f"block{block}",
                dtype=self.dtype_policy,
            )
            for block in range(config.depths[index])
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        for block in self.blocks:
            block.build(input_shape)
            input_shape = (None, None, None, block.convolutions[-1].convolution.filters)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → this stage's feature map."""
        x = inputs
        for block in self.blocks:
            x = called(block, x, training=training)
        return x


class DeepStem(layers.Layer):
    """Three 3×3 convolutions, the first with a stride of 2, in place of one of 7×7."""

    def __init__(self, channels: int, batch_norm: BatchNorm, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        widths = (channels // 2, channels // 2, channels)
        self.convolutions = [
            ConvNorm(width, 3, stride, batch_norm=batch_norm, name=f"conv{number}", dtype=self.dtype_policy)
            for number, width, stride in zip((1, 2, 3), widths, (2, 1, 1), strict=True)
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = (None, None, None, convolution.convolution.filters)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, 3)` → `(batch, ⌈height/2⌉, ⌈width/2⌉, channels)`."""
        x = inputs
        for convolution in self.convolutions:
            x = convolution(x, training=training)
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
        of_stem = of_part(config.batch_norm, "stem")
        if config.variant == "vd":
            self.stem: layers.Layer = DeepStem(config.stem_channels, of_stem, name="stem", **options)
        else:
            self.stem = ConvNorm(config.stem_channels, 7, stride=2, batch_norm=of_stem, name="stem", **options)
        self.pool = layers.MaxPooling2D(3, strides=2, padding="valid", name="pool", **options)
        self.stages = []
        in_channels, last = config.stem_channels, len(config.depths) - 1
        for index, channels in enumerate(config.channels):
            stride, dilation = (1 if index == 0 else 2), 1
            if config.dilation and index == last:
                stride, dilation = 1, stride
            self.stages.append(Stage(config, index, in_channels, stride, dilation, name=f"stage{index + 1}", **options))
            in_channels = channels

    @property
    def parts(self) -> dict[str, layers.Layer]:
        """The stem and the stages by their names in the configuration."""
        return dict(zip(self.config.parts, (self.stem, *self.stages), strict=True))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        self.stem.build(input_shape)
        input_shape = (None, None, None, self.config.stem_channels)
        self.pool.build(input_shape)
        for stage, channels in zip(self.stages, self.config.channels, strict=True):
            stage.build(input_shape)
            input_shape = (None, None, None, channels)

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """Map `(batch, height, width, 3)` → the feature maps of all stages, finest first."""
        x = self.stem(inputs, training=training)
        # After the ReLU nothing is negative: padding with zeros is padding with minus infinity.
        x = self.pool(pad_spatially(x, 1))
        features = []
        for stage in self.stages:
            x = stage(x, training=training)
            features.append(x)
        return features
