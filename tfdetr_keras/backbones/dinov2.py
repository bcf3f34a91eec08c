"""DINOv2's vision transformer in windows, as RF-DETR has it: one stride, and features of several depths.

Source:
    Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193; windows, and
    which blocks join them, as in Chen et al. 2024, "LW-DETR", arXiv:2406.03459, section 3.2, and RF-DETR's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from tfdetr_keras.backbones.config import BackboneConfig, share, whole_number
from tfdetr_keras.backbones.vit import NORM_EPSILON, PositionTable, ViTBlock, in_windows, joined, normal
from tfdetr_keras.backend.recompute import called


@dataclasses.dataclass(frozen=True)
class DINOv2Config(BackboneConfig):
    """A windowed DINOv2; height and width of its images are multiples of `patch_size` × `windows`.

    Args:
        patch_size: side of a patch, pixels; the stride of all feature maps.
        windows: windows along each side of an image.
        width: channels.
        depth: blocks.
        heads: of each attention.
        taps: after how many blocks each feature map is taken. Blocks of these numbers, counted from 0, join the windows
            of an image, which is not the block before a tap, but the one behind it.
        table_side: places along each side of the table of positions, which is resized to the image's grid.
        layer_scale: factors of each channel of a branch, to start with.
        drop_path: share of the windows for which a branch of the last block is left out in training; it rises from 0 in
            the first.
    """

    patch_size: int = 16
    windows: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    taps: Sequence[int] = (3, 6, 9, 12)
    table_side: int = 24
    layer_scale: float = 1.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch_size", "windows", "width", "depth", "heads", "table_side"):
            whole_number(name, getattr(self, name))
        object.__setattr__(self, "taps", checked_taps(self.taps, self.depth))
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not divisible by heads={self.heads}")
        share("drop_path", self.drop_path)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the backbone's parts, in the order of computation: `"embeddings"`, `"block0"`, …, `"norm"`."""
        return ("embeddings", *(f"block{index}" for index in range(self.depth)), "norm")

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
        size = {384: "S", 768: "B", 1024: "L"}.get(self.width, "")
        return f"a DINOv2 ViT{'-' + size if size else ''}/{self.patch_size} in {self.windows} × {self.windows} windows"

    def make(self, **kwargs: Any) -> DINOv2:
        """Make the network."""
        return DINOv2(self, **kwargs)


def checked_taps(taps: Any, depth: int) -> tuple[int, ...]:
    """Return the taps as a tuple.

    Raises:
        ValueError: unless they are rising numbers of blocks.
    """
    if not isinstance(taps, list | tuple) or not taps:
        raise ValueError(f"taps must be numbers of blocks, not {taps!r}")
    for tap in taps:
        whole_number("taps", tap)
    if list(taps) != sorted(set(taps)) or taps[-1] > depth:
        raise ValueError(f"taps must rise from 1 to at most depth={depth}, not {tuple(taps)}")
    return tuple(int(tap) for tap in taps)


class Embeddings(layers.Layer):
    """Patches with their positions, in windows, each with a token that stands for the image."""

    def __init__(self, config: DINOv2Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.projection = layers.Conv2D(
            config.width,
            config.patch_size,
            strides=config.patch_size,
            kernel_initializer=normal(),
            name="projection",
            dtype=self.dtype_policy,
        )
        self.positions = PositionTable(
            config.table_side, config.width, antialias=True, name="positions", dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        width = self.config.width
        self.projection.build((None, None, None, 3))
        self.positions.build()
        self.class_token = self.add_weight(shape=(width,), initializer=normal(), name="class_token")
        # That of DINOv2's pretraining, which no detector uses, and all files have.
        self.mask_token = self.add_weight(shape=(width,), initializer="zeros", name="mask_token", trainable=False)

    def call(self, pixels: Any) -> tuple[Any, Any, Any]:
        """Map `(batch, height, width, 3)` → `(batch · windows², 1 + positions, width)`, and the grid's two sides."""
        config = self.config
        patches = self.projection(pixels)
        height, width = ops.shape(patches)[1:3]
        grid, of_image = self.positions(size=(height, width))
        tokens = in_windows(patches + grid, config.windows)
        image = ops.broadcast_to(self.class_token + of_image, (ops.shape(tokens)[0], 1, config.width))
        return ops.concatenate([image, tokens], axis=1), height, width


class DINOv2(layers.Layer):
    """The backbone: embeddings and blocks, giving the feature maps after some of them."""

    def __init__(self, config: DINOv2Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.embeddings = Embeddings(config, name="embeddings", dtype=self.dtype_policy)
        most = max(1, config.depth - 1)
        self.blocks = [
            ViTBlock(
                config.width,
                config.heads,
                config.windows**2,
                is_global=index in config.taps or index > config.taps[-1],
                scale=config.layer_scale,
                drop_path=config.drop_path * index / most,
                is_used=index < config.taps[-1],
                name=f"block{index}",
                dtype=self.dtype_policy,
            )
            for index in range(config.depth)
        ]
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)

    @property
    def parts(self) -> dict[str, layers.Layer]:
        """The parts by their names in the configuration."""
        return dict(zip(self.config.parts, (self.embeddings, *self.blocks, self.norm), strict=True))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, 3)`."""
        self.embeddings.build(input_shape)
        for layer in (*self.blocks, self.norm):
            layer.build((None, None, self.config.width))

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """Map `(batch, height, width, 3)` → the feature maps `(batch, h, w, width)`, all of one size."""
        config = self.config
        x, height, width = self.embeddings(inputs)
        maps = []
        for index, block in enumerate(self.blocks[: config.taps[-1]]):
            x = called(block, x, training=training)
            if index + 1 in config.taps:
                maps.append(joined(self.norm(x)[:, 1:], config.windows, height, width))
        return maps
