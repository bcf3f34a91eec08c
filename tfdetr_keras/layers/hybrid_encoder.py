"""RT-DETR's encoder: attention on the coarsest map alone, then maps of all sizes fused by convolutions (section 4.2).

"AIFI" (attention-based intra-scale feature interaction) is a transformer encoder over the pixels of one map; "CCFM"
(CNN-based cross-scale feature-fusion module) hands what it found to the finer maps and back to the coarser ones. D-FINE
fuses and goes down in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from keras import layers, ops

from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.conv_norm import ConvNorm, pytorch_uniform
from tfdetr_keras.layers.fusion import AggregationBlock, FusionBlock, SeparableDownsampling
from tfdetr_keras.layers.position import grid_encoding
from tfdetr_keras.layers.transformer import Encoder


class ProjectedMaps(layers.Layer):
    """A 1×1 convolution with batch normalisation for each map, to one width.

    Args:
        channels: of the maps.
        width: channels of the results.
        batch_norm: "frozen", "trainable" or "folded".
        kernel_initializer: PyTorch's of a convolution by default.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        batch_norm: BatchNorm = "trainable",
        kernel_initializer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = list(channels)
        self.stack = [
            ConvNorm(
                width,
                1,
                activation=None,
                batch_norm=batch_norm,
                kernel_initializer=kernel_initializer or pytorch_uniform(1, own),
                name=f"level{level}",
                dtype=self.dtype_policy,
            )
            for level, own in enumerate(self.channels)
        ]

    def build(self, input_shape: Any) -> None:
        """Build all projections; their shapes depend on the configuration alone."""
        for projection, channels in zip(self.stack, self.channels, strict=True):
            projection.build((None, None, None, channels))

    def call(self, maps: Sequence[Any], training: bool = False) -> list[Any]:
        """Map `(batch, height, width, channels)`, of each map, → `(batch, height, width, width of the results)`."""
        return [projection(x, training=training) for projection, x in zip(self.stack, maps, strict=True)]


class HybridEncoded(NamedTuple):
    """What the encoder makes of the maps.

    Attributes:
        attended: the maps that were attended to, after it, `(batch, height, width, channels)` each.
        maps: all maps after their fusion, finest first.
    """

    attended: list[Any]
    maps: list[Any]


class HybridEncoder(layers.Layer):
    """Attention inside some maps, then fusion from the coarsest to the finest map and back.

    Args:
        levels: number of maps, each twice as fine as the next.
        channels: of each map.
        attended: numbers of the maps whose pixels attend to each other, 0 = the finest.
        depth: layers of each attention.
        heads: of the attention.
        hidden: channels inside its feed-forward networks.
        expansion: of the fusion blocks.
        blocks: of RepVGG in each fusion block.
        activation: of the convolutions, by its Keras name.
        encoder_activation: of the feed-forward networks.
        dropout: of the residual branches of the attention.
        attention_dropout: of its weights.
        activation_dropout: inside its feed-forward networks.
        batch_norm: "frozen", "trainable" or "folded".
        fusion: `"csp"`, RT-DETR's; or `"aggregation"`, D-FINE's, whose convolutions between levels have no activation.

    Source:
        Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069, section 4.2.
    """

    def __init__(
        self,
        levels: int,
        channels: int,
        attended: Sequence[int] = (2,),
        depth: int = 1,
        heads: int = 8,
        hidden: int = 1024,
        expansion: float = 1.0,
        blocks: int = 3,
        activation: str = "silu",
        encoder_activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        batch_norm: BatchNorm = "trainable",
        fusion: Literal["csp", "aggregation"] = "csp",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.attended = channels, list(attended)
        policy = self.dtype_policy
        self.aifi = [
            Encoder(
                depth,
                channels,
                heads=heads,
                hidden=hidden,
                activation=encoder_activation,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
                xavier_output=False,
                xavier_feed_forward=False,
                name=f"aifi{index}",
                dtype=policy,
            )
            for index in range(len(self.attended))
        ]

        is_csp = fusion == "csp"
        options: dict[str, Any] = {"batch_norm": batch_norm, "dtype": policy}

        def convolution(kernel_size: int, stride: int, name: str) -> ConvNorm:
            start, own = pytorch_uniform(kernel_size, channels), activation if is_csp else None
            return ConvNorm(
                channels, kernel_size, stride, activation=own, kernel_initializer=start, name=name, **options
            )

        def down(name: str) -> layers.Layer:
            return convolution(3, 2, name) if is_csp else SeparableDownsampling(channels, name=name, **options)

        def block(name: str) -> layers.Layer:
            kind = FusionBlock if is_csp else AggregationBlock
            return kind(channels, expansion, blocks, activation, name=name, **options)

        steps = range(levels - 1)
        self.lateral = [convolution(1, 1, f"lateral{step}") for step in steps]
        self.top_down = [block(f"top_down{step}") for step in steps]
        self.downsample = [down(f"downsample{step}") for step in steps]
        self.bottom_up = [block(f"bottom_up{step}") for step in steps]

    def build(self, input_shape: Any) -> None:
        """Build all parts; their shapes depend on the configuration alone."""
        for encoder in self.aifi:
            encoder.build((None, None, self.channels))
        for convolution in (*self.lateral, *self.downsample):
            convolution.build((None, None, None, self.channels))
        for fusion in (*self.top_down, *self.bottom_up):
            fusion.build((None, None, None, 2 * self.channels))

    def call(self, maps: Sequence[Any], training: bool = False) -> HybridEncoded:
        """Encode.

        Args:
            maps: `(batch, height, width, channels)` each, finest first.
            training: whether dropout is on, and batch normalisation goes by the batch.
        """
        maps = list(maps)
        for encoder, level in zip(self.aifi, self.attended, strict=True):
            maps[level] = self._attend(encoder, maps[level], training)
        attended = [maps[level] for level in self.attended]

        # Each lateral map is what the finer map is told, and what the way back begins with.
        x, inner = maps[-1], []
        for lateral, fusion, finer in zip(self.lateral, self.top_down, reversed(maps[:-1]), strict=True):
            x = lateral(x, training=training)
            inner.append(x)
            x = called(fusion, ops.concatenate([doubled(x), finer], axis=-1), training=training)
        fused = [x]
        for downsample, fusion, coarser in zip(self.downsample, self.bottom_up, reversed(inner), strict=True):
            x = downsample(x, training=training)
            x = called(fusion, ops.concatenate([x, coarser], axis=-1), training=training)
            fused.append(x)
        return HybridEncoded(attended, fused)

    def _attend(self, encoder: Encoder, x: Any, training: bool) -> Any:
        batch, height, width = ops.shape(x)[:3]
        position = ops.cast(grid_encoding(height, width, self.channels), self.compute_dtype)
        position = ops.reshape(position, (1, height * width, self.channels))
        tokens = ops.reshape(x, (batch, height * width, self.channels))
        encoded = encoder(tokens, position, None, training=training)[-1]
        return ops.reshape(encoded, (batch, height, width, self.channels))


def doubled(x: Any) -> Any:
    """Double height and width of `(batch, height, width, channels)`: each pixel becomes four."""
    return ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
