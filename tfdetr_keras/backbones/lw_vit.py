"""LW-DETR's vision transformer: attention in sixteen windows, joined in some blocks.

Source:
    Chen et al. 2024, "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", arXiv:2406.03459, section
    3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from keras import layers, ops

from tfdetr_keras.backbones.config import BackboneConfig, share, whole_number
from tfdetr_keras.backbones.dinov2 import checked_taps
from tfdetr_keras.backbones.vit import PositionTable, ViTBlock, in_windows, joined
from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.mlp import linear_initializers


@dataclasses.dataclass(frozen=True)
class LWViTConfig(BackboneConfig):
    """LW-DETR's ViT; height and width of its images are multiples of `patch_size` × `windows`.

    Args:
        patch_size: side of a patch, pixels; the stride of all feature maps.
        windows: windows along each side of an image.
        width: channels.
        depth: blocks.
        heads: of each attention.
        windowed: blocks, counted from 0, whose attention stays within windows.
        taps: after how many blocks each feature map is taken.
        table_side: places along each side of the table of positions, which is resized to the image's grid.
        layer_scale: factors of each channel of a branch, to start with.
        drop_path: share of the windows for which a branch of the last block is left out in training; it rises from 0 in
            the first.
    """

    patch_size: int = 16
    windows: int = 4
    width: int = 192
    depth: int = 10
    heads: int = 12
    windowed: Sequence[int] = (0, 1, 3, 6, 7, 9)
    taps: Sequence[int] = (3, 5, 6, 10)
    table_side: int = 14
    layer_scale: float = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch_size", "windows", "width", "depth", "heads", "table_side"):
            whole_number(name, getattr(self, name))
        object.__setattr__(self, "taps", checked_taps(self.taps, self.depth))
        windowed = self.windowed
        if not isinstance(windowed, list | tuple) or not all(
            isinstance(block, Integral) and 0 <= int(block) < self.depth for block in windowed
        ):
            raise ValueError(f"windowed must be numbers of blocks, from 0 to {self.depth - 1}, not {windowed!r}")
        object.__setattr__(self, "windowed", tuple(int(block) for block in windowed))
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not divisible by heads={self.heads}")
        share("drop_path", self.drop_path)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the backbone's parts, in the order of computation: `"embeddings"`, `"block0"`, …"""
        return ("embeddings", *(f"block{index}" for index in range(self.depth)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map."""
        return (self.width,) * len(self.taps)

    @property
    def multiple_of(self) -> int:
        """What height and width of the images are multiples of, pixels."""
        return self.patch_size * self.windows

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return f"a ViT/{self.patch_size} of {self.depth} blocks of {self.width} channels"

    def make(self, **kwargs: Any) -> LWViT:
        """Make the network."""
        return LWViT(self, **kwargs)


class Patches(layers.Layer):
    """Patches with their positions."""

    def __init__(self, config: LWViTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.projection = layers.Conv2D(
            config.width,
            config.patch_size,
            strides=config.patch_size,
            name="projection",
            dtype=self.dtype_policy,
            **linear_initializers(3 * config.patch_size**2),  # alone of all in the authors' ViT
        )
        self.positions = PositionTable(
            config.table_side, config.width, antialias=False, name="positions", dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        self.projection.build((None, None, None, 3))
        self.positions.build()

    def call(self, pixels: Any) -> Any:
        """Map `(batch, height, width, 3)` → `(batch, h, w, width)`."""
        patches = self.projection(pixels)
        grid, _ = self.positions(size=ops.shape(patches)[1:3])
        return patches + grid


class LWViT(layers.Layer):
    """The backbone: patches and blocks, giving the feature maps after some of them."""

    def __init__(self, config: LWViTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.embeddings = Patches(config, name="embeddings", dtype=self.dtype_policy)
        most = max(1, config.depth - 1)
        self.blocks = [
            ViTBlock(
                config.width,
                config.heads,
                config.windows**2,
                is_global=index not in config.windowed,
                scale=config.layer_scale,
                drop_path=config.drop_path * index / most,
                key_bias=False,
                is_used=index < config.taps[-1],
                name=f"block{index}",
                dtype=self.dtype_policy,
            )
            for index in range(config.depth)
        ]

    @property
    def parts(self) -> dict[str, layers.Layer]:
        """The parts by their names in the configuration."""
        return dict(zip(self.config.parts, (self.embeddings, *self.blocks), strict=True))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        self.embeddings.build(input_shape)
        for block in self.blocks:
            block.build((None, None, self.config.width))

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """Map `(batch, height, width, 3)` → the feature maps `(batch, h, w, width)`, all of one size."""
        config = self.config
        patches = self.embeddings(inputs)
        height, width = ops.shape(patches)[1:3]
        x, maps = in_windows(patches, config.windows), []
        for index, block in enumerate(self.blocks[: config.taps[-1]]):
            x = called(block, x, training=training)
            if index + 1 in config.taps:
                maps.append(joined(x, config.windows, height, width))
        return maps
