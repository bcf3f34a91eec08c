"""How an encoder's maps are joined and made coarser: RT-DETR's blocks, and D-FINE's, which take fewer operations.

Source:
    RT-DETR, section 4.2; for D-FINE's "GELAN" Wang et al. 2024, "YOLOv9: Learning What You Want to Learn Using
    Programmable Gradient Information", arXiv:2402.13616, section 4.2, and for its way down ("SCDown") Wang et al. 2024,
    "YOLOv10: Real-Time End-to-End Object Detection", arXiv:2405.14458, section 3.2.
"""

from __future__ import annotations

from typing import Any

from keras import layers, ops

from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm, pytorch_uniform
from tfdetr_keras.layers.rep_vgg import RepVGGBlock


class FusionBlock(layers.Layer):
    """A map → one of another width: a branch of RepVGG blocks, added to one without ("CSPRep").

    Args:
        channels: of the result.
        expansion: the branches' channels, as a share of the result's.
        blocks: number of RepVGG blocks.
        activation: by its Keras name.
        batch_norm: "frozen", "trainable" or "folded".
        inputs: channels of the input; those of two maps of the result's width where left out.

    Source:
        RT-DETR, figure 4 ("Fusion").
    """

    recompute = False  # see `Detector.recompute`

    def __init__(
        self,
        channels: int,
        expansion: float = 1.0,
        blocks: int = 3,
        activation: str = "silu",
        batch_norm: BatchNorm = "trainable",
        inputs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs, self.hidden = inputs or 2 * channels, int(channels * expansion)
        options: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "dtype": self.dtype_policy}

        def pointwise(inputs: int, outputs: int, name: str) -> ConvNorm:
            return ConvNorm(outputs, 1, kernel_initializer=pytorch_uniform(1, inputs), name=name, **options)

        self.conv1 = pointwise(self.inputs, self.hidden, "conv1")
        self.conv2 = pointwise(self.inputs, self.hidden, "conv2")
        self.blocks = [RepVGGBlock(self.hidden, name=f"block{index}", **options) for index in range(blocks)]
        self.conv3 = None if self.hidden == channels else pointwise(self.hidden, channels, "conv3")

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        for convolution in (self.conv1, self.conv2):
            convolution.build((None, None, None, self.inputs))
        for layer in (*self.blocks, self.conv3):
            if layer is not None:
                layer.build((None, None, None, self.hidden))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, inputs)` → `(batch, height, width, channels)`."""
        x = self.conv1(inputs, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        x = x + self.conv2(inputs, training=training)
        return x if self.conv3 is None else self.conv3(x, training=training)


class AggregationBlock(layers.Layer):
    """Two maps that were concatenated → one: half of a mixed map goes through blocks whose results are all kept.

    "RepNCSPELAN4": a 1×1 convolution, two `FusionBlock`s each with a 3×3 convolution behind it, and a 1×1 convolution
    over both halves and both results.

    Args:
        channels: of the result; the input has twice as many.
        expansion: twice the channels inside, as a share of the result's; they are rounded down.
        blocks: number of RepVGG blocks in each fusion block.
        activation: by its Keras name.
        batch_norm: "frozen", "trainable" or "folded".

    Source:
        YOLOv9, figure 4, with the numbers of D-FINE's code.
    """

    recompute = False  # see `Detector.recompute`

    def __init__(
        self,
        channels: int,
        expansion: float = 1.0,
        blocks: int = 3,
        activation: str = "silu",
        batch_norm: BatchNorm = "trainable",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.hidden = channels, channels_inside(channels, expansion)
        options: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "dtype": self.dtype_policy}

        def convolution(inputs: int, outputs: int, kernel_size: int, name: str) -> ConvNorm:
            start = pytorch_uniform(kernel_size, inputs)
            return ConvNorm(outputs, kernel_size, kernel_initializer=start, name=name, **options)

        hidden = self.hidden
        self.conv1 = convolution(2 * channels, 2 * channels, 1, "conv1")
        self.fusion1 = FusionBlock(hidden, blocks=blocks, inputs=channels, name="fusion1", **options)
        self.conv2 = convolution(hidden, hidden, 3, "conv2")
        self.fusion2 = FusionBlock(hidden, blocks=blocks, inputs=hidden, name="fusion2", **options)
        self.conv3 = convolution(hidden, hidden, 3, "conv3")
        self.conv4 = convolution(2 * (channels + hidden), channels, 1, "conv4")

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 2 · channels)`."""
        channels, hidden = self.channels, self.hidden
        inputs = (2 * channels, channels, hidden, hidden, hidden, 2 * (channels + hidden))
        stack: tuple[layers.Layer, ...] = (self.conv1, self.fusion1, self.conv2, self.fusion2, self.conv3, self.conv4)
        for layer, width in zip(stack, inputs, strict=True):
            layer.build((None, None, None, width))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, 2 · channels)` → `(batch, height, width, channels)`."""
        mixed = self.conv1(inputs, training=training)
        first = self.conv2(self.fusion1(mixed[..., self.channels :], training=training), training=training)
        second = self.conv3(self.fusion2(first, training=training), training=training)
        return self.conv4(ops.concatenate([mixed, first, second], axis=-1), training=training)


def channels_inside(channels: int, expansion: float) -> int:
    """Return the channels inside an `AggregationBlock`, as D-FINE's authors round them."""
    return round(expansion * channels // 2)


class SeparableDownsampling(layers.Layer):
    """A map of half the height and width: a 1×1 convolution, then a depthwise 3×3 one, without activations ("SCDown").

    Args:
        channels: of input and output.
        batch_norm: "frozen", "trainable" or "folded".
    """

    def __init__(self, channels: int, batch_norm: BatchNorm = "trainable", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        options: dict[str, Any] = {"activation": None, "batch_norm": batch_norm, "dtype": self.dtype_policy}
        start = pytorch_uniform(1, channels)
        self.pointwise = ConvNorm(channels, 1, kernel_initializer=start, name="conv1", **options)
        start = pytorch_uniform(3, 1)
        self.depthwise = ConvNorm(channels, 3, 2, kernel_initializer=start, depthwise=True, name="conv2", **options)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        self.pointwise.build((None, None, None, self.channels))
        self.depthwise.build((None, None, None, self.channels))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/2⌉, ⌈width/2⌉, channels)`."""
        return self.depthwise(self.pointwise(inputs, training=training), training=training)
