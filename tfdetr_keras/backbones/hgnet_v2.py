"""HGNetV2: stages whose blocks keep every layer's map and mix them at their end; the coarse ones are mostly depthwise.

Source:
    The backbone of PP-HGNetV2 (PaddleClas, 2023) as D-FINE uses it, Peng et al. 2024, "D-FINE: Redefine Regression Task
    in DETRs as Fine-grained Distribution Refinement", arXiv:2410.13842; layers are kept and mixed as in Lee et al.
    2019, "An Energy and GPU-Computation Efficient Backbone Network", arXiv:1904.09730, without its attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras import initializers, layers, ops

from tfdetr_keras.backbones.batch_norm import by_part, of_part
from tfdetr_keras.backbones.config import BackboneConfig, whole_number
from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm

LIGHT = 2  # from this stage on, counted from 0, layers are light
KERNEL, LIGHT_KERNEL = 3, 5


@dataclasses.dataclass(frozen=True)
class HGNetV2Config(BackboneConfig):
    """An HGNetV2 backbone: a stem of stride 4, then stages that halve the resolution from the second on.

    Layers of the first two stages are 3×3 convolutions, those of the others a 1×1 and a depthwise 5×5 one.

    Args:
        stem_channels: channels inside the stem, and of its output.
        hidden_channels: of each layer of a stage's blocks.
        channels: output channels per stage.
        depths: blocks per stage.
        block_layers: layers of each block.
        learnable_affine: whether a learned factor and summand, one each for all channels, follow each activation, which
            the smaller published networks have.
        batch_norm: `"frozen"`, `"trainable"` or `"folded"`, or a mapping of parts, see `ResNetConfig`.
    """

    stem_channels: tuple[int, int] = (32, 48)
    hidden_channels: tuple[int, ...] = (48, 96, 192, 384)
    channels: tuple[int, ...] = (128, 512, 1024, 2048)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    block_layers: int = 6
    learnable_affine: bool = False
    batch_norm: BatchNorm | Mapping[str, BatchNorm] = "trainable"

    def __post_init__(self) -> None:
        for name in ("stem_channels", "hidden_channels", "channels", "depths"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple):
                raise ValueError(f"{name} must be whole numbers, not {values!r}")
            object.__setattr__(self, name, tuple(values))
            for value in values:
                whole_number(name, value)
        whole_number("block_layers", self.block_layers)
        if len(self.stem_channels) != 2:
            raise ValueError(f"stem_channels must be two numbers, inside and after the stem, not {self.stem_channels}")
        if not len(self.depths) == len(self.channels) == len(self.hidden_channels) or not self.depths:
            raise ValueError(
                f"depths {self.depths}, hidden_channels {self.hidden_channels} and channels {self.channels} must name "
                "the same stages"
            )
        if self.stem_channels[0] % 2 or any(width % 2 for width in self.channels):
            raise ValueError(
                f"the first of stem_channels {self.stem_channels} and all of channels {self.channels} are halved "
                "inside: give even numbers"
            )
        if not isinstance(self.learnable_affine, bool):
            raise ValueError(f"learnable_affine must be True or False, not {self.learnable_affine!r}")
        object.__setattr__(self, "batch_norm", by_part(self.batch_norm, self.parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the backbone's parts, in the order of computation: `"stem"`, `"stage1"`, …"""
        return ("stem", *(f"stage{index + 1}" for index in range(len(self.depths))))

    @property
    def title(self) -> str:
        """What to call it in a sentence: by the name of the published network, if it is one."""
        plain = dataclasses.replace(self, batch_norm="trainable", learnable_affine=False)
        known = next((name for name, config in HGNETS.items() if config == plain), None)
        return "a small HGNetV2" if known is None else f"an HGNetV2-{known.rsplit('-', 1)[1].upper()}"

    def make(self, **kwargs: Any) -> HGNetV2:
        """Make the network."""
        return HGNetV2(self, **kwargs)

    @property
    def is_foldable(self) -> bool:
        """Whether batch normalisation is not folded yet."""
        return self.batch_norm != "folded"

    def folded(self) -> HGNetV2Config:
        """Return the same network with biases in place of batch normalisation."""
        return dataclasses.replace(self, batch_norm="folded")


HGNETS: dict[str, HGNetV2Config] = {
    "hgnet-v2-b0": HGNetV2Config((16, 16), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "hgnet-v2-b1": HGNetV2Config((24, 32), (32, 48, 96, 192), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "hgnet-v2-b2": HGNetV2Config((24, 32), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4),
    "hgnet-v2-b3": HGNetV2Config((24, 32), (32, 64, 128, 256), (128, 512, 1024, 2048), (1, 1, 3, 1), 5),
    "hgnet-v2-b4": HGNetV2Config((32, 48), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
    "hgnet-v2-b5": HGNetV2Config((32, 64), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
    "hgnet-v2-b6": HGNetV2Config((48, 96), (96, 192, 384, 768), (192, 512, 1024, 2048), (2, 3, 6, 3), 6),
}


class Affine(layers.Layer):
    """A learned factor and summand, one each for all channels.

    Source:
        "Learnable affine block" of Cui et al. 2021, "PP-LCNet", as D-FINE's backbones have it.
    """

    def build(self, input_shape: Any) -> None:
        """Create the two numbers."""
        self.scale = self.add_weight(shape=(1,), initializer=initializers.Ones(), name="scale")
        self.bias = self.add_weight(shape=(1,), initializer=initializers.Zeros(), name="bias")

    def call(self, inputs: Any) -> Any:
        """Map `(…, channels)` → the same shape."""
        return inputs * self.scale + self.bias


class Layer(layers.Layer):
    """A convolution with batch normalisation, a ReLU, and perhaps an `Affine`; a light one with a 1×1 before it.

    Args:
        channels: of the output.
        kernel_size: of the convolution.
        stride: likewise.
        is_light: whether it is depthwise, on the channels that a 1×1 convolution gives.
        affine: whether an `Affine` follows.
        batch_norm: "frozen", "trainable" or "folded".
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        is_light: bool = False,
        affine: bool = False,
        batch_norm: BatchNorm = "trainable",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        options: dict[str, Any] = {"batch_norm": batch_norm, "dtype": self.dtype_policy}
        self.pointwise = ConvNorm(channels, 1, activation=None, name="pointwise", **options) if is_light else None
        self.dense = ConvNorm(channels, kernel_size, stride, depthwise=is_light, name="conv", **options)
        self.affine = Affine(name="affine", dtype=self.dtype_policy) if affine else None

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        if self.pointwise is not None:
            self.pointwise.build(input_shape)
            input_shape = (None, None, None, self.channels)
        self.dense.build(input_shape)
        if self.affine is not None:
            self.affine.build((None, None, None, self.channels))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/stride⌉, ⌈width/stride⌉, channels)`."""
        x = inputs if self.pointwise is None else self.pointwise(inputs, training=training)
        x = self.dense(x, training=training)
        return x if self.affine is None else self.affine(x)


class Stem(layers.Layer):
    """Convolutions beside a maximum, between two of stride 2.

    Args:
        config: of the backbone.
    """

    def __init__(self, config: HGNetV2Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        inside, outside = config.stem_channels
        self.inside, how = inside, of_part(config.batch_norm, "stem")
        options: dict[str, Any] = {"affine": config.learnable_affine, "batch_norm": how, "dtype": self.dtype_policy}
        self.stem1 = Layer(inside, 3, 2, name="stem1", **options)
        # An even kernel is padded at the bottom and on the right.
        self.stem2a = Layer(inside // 2, 2, name="stem2a", **options)
        self.stem2b = Layer(inside, 2, name="stem2b", **options)
        self.stem3 = Layer(inside, 3, 2, name="stem3", **options)
        self.stem4 = Layer(outside, 1, name="stem4", **options)
        self.pool = layers.MaxPooling2D(2, strides=1, padding="valid", name="pool", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        inside = self.inside
        inputs = (3, inside, inside // 2, 2 * inside, inside)
        stack = (self.stem1, self.stem2a, self.stem2b, self.stem3, self.stem4)
        for layer, channels in zip(stack, inputs, strict=True):
            layer.build((None, None, None, channels))
        self.pool.build((None, None, None, inside))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, 3)` → `(batch, height/4, width/4, channels)`."""
        x = self.stem1(inputs, training=training)
        branch = self.stem2b(self.stem2a(x, training=training), training=training)
        # With zeros, not minus infinity: after an `Affine` all that is there may be below 0, and zero counts.
        pooled = self.pool(ops.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]))
        x = self.stem3(ops.concatenate([pooled, branch], axis=-1), training=training)
        return self.stem4(x, training=training)


class Block(layers.Layer):
    """Layers in a chain, whose input and results are all mixed by two 1×1 convolutions.

    Args:
        config: of the backbone.
        index: of the stage, from 0.
        inputs: channels of the input.
        is_residual: whether the input is added to the result.
    """

    recompute = False  # see `Detector.recompute`

    def __init__(self, config: HGNetV2Config, index: int, inputs: int, is_residual: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs, self.hidden, self.is_residual = inputs, config.hidden_channels[index], is_residual
        self.joined = inputs + config.block_layers * self.hidden
        channels, is_light = config.channels[index], index >= LIGHT
        options: dict[str, Any] = {
            "affine": config.learnable_affine,
            "batch_norm": of_part(config.batch_norm, f"stage{index + 1}"),
            "dtype": self.dtype_policy,
        }
        size = LIGHT_KERNEL if is_light else KERNEL
        self.stack = [
            Layer(self.hidden, size, is_light=is_light, name=f"layer{number}", **options)
            for number in range(config.block_layers)
        ]
        self.squeeze = Layer(channels // 2, 1, name="aggregation0", **options)
        self.excite = Layer(channels, 1, name="aggregation1", **options)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        for number, layer in enumerate(self.stack):
            layer.build((None, None, None, self.hidden if number else self.inputs))
        self.squeeze.build((None, None, None, self.joined))
        self.excite.build((None, None, None, self.squeeze.channels))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, inputs)` → `(batch, height, width, channels)`."""
        maps = [inputs]
        for layer in self.stack:
            maps.append(layer(maps[-1], training=training))
        x = self.squeeze(ops.concatenate(maps, axis=-1), training=training)
        x = self.excite(x, training=training)
        return x + inputs if self.is_residual else x


class Stage(layers.Layer):
    """Blocks of one width; but for the first stage, a depthwise convolution before them halves the resolution.

    Args:
        config: of the backbone.
        index: of the stage, from 0.
        inputs: channels of the input.
    """

    def __init__(self, config: HGNetV2Config, index: int, inputs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs, self.channels = inputs, config.channels[index]
        policy = self.dtype_policy
        self.downsample = None
        if index > 0:
            how = of_part(config.batch_norm, f"stage{index + 1}")
            options: dict[str, Any] = {"activation": None, "batch_norm": how, "depthwise": True, "dtype": policy}
            self.downsample = ConvNorm(inputs, 3, 2, name="downsample", **options)
        self.blocks = [
            Block(config, index, self.channels if number else inputs, number > 0, name=f"block{number}", dtype=policy)
            for number in range(config.depths[index])
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        if self.downsample is not None:
            self.downsample.build((None, None, None, self.inputs))
        for block in self.blocks:
            block.build((None, None, None, block.inputs))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, inputs)` → this stage's feature map."""
        x = inputs if self.downsample is None else self.downsample(inputs, training=training)
        for block in self.blocks:
            x = called(block, x, training=training)
        return x


class HGNetV2(layers.Layer):
    """The backbone: stem and stages, giving every stage's feature map.

    Args:
        config: the architecture.
    """

    def __init__(self, config: HGNetV2Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.stem = Stem(config, name="stem", dtype=self.dtype_policy)
        inputs = (config.stem_channels[1], *config.channels)
        self.stages = [
            Stage(config, index, inputs[index], name=f"stage{index + 1}", dtype=self.dtype_policy)
            for index in range(len(config.depths))
        ]

    @property
    def parts(self) -> dict[str, layers.Layer]:
        """The stem and the stages by their names in the configuration."""
        return dict(zip(self.config.parts, (self.stem, *self.stages), strict=True))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        self.stem.build((None, None, None, 3))
        for stage in self.stages:
            stage.build((None, None, None, stage.inputs))

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """Map `(batch, height, width, 3)` → the feature maps of all stages, finest first."""
        x = self.stem(inputs, training=training)
        features = []
        for stage in self.stages:
            x = stage(x, training=training)
            features.append(x)
        return features
