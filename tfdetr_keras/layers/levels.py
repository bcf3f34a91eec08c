"""Feature maps of several sizes as one sequence of tokens (Deformable DETR, section 4.1 and appendix A.2).

Tokens are the pixels of all levels, level after level, each row by row. Where images are padded, each level has a part
of its own that is image; places are given in parts of that, so that 1 is the image's edge at every level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from tfdetr_keras.layers.conv_norm import pad_spatially

NORM_GROUPS = 32  # of channels, over which a level is normalised
NORM_EPSILON = 1e-5  # PyTorch's default; Keras' own is 1e-3
BASE_SIZE = 0.05  # side of the finest level's anchors, in parts of the image; each next level's is twice as large


class Projection(layers.Layer):
    """A convolution to the transformer's width, and normalisation in groups of channels.

    Args:
        inputs: channels of the map.
        d_model: channels of the level.
        kernel_size: 1 keeps the size; 3 comes with a stride of 2 and halves it.
    """

    def __init__(self, inputs: int, d_model: int, kernel_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs, self.d_model, self.padding = inputs, d_model, kernel_size // 2
        self.convolution = layers.Conv2D(
            d_model,
            kernel_size,
            strides=1 if kernel_size == 1 else 2,
            kernel_initializer="glorot_uniform",
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.group_norm = layers.GroupNormalization(
            NORM_GROUPS, epsilon=NORM_EPSILON, name="group_norm", dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        self.convolution.build((None, None, None, self.inputs))
        self.group_norm.build((None, None, None, self.d_model))

    def call(self, x: Any) -> Any:
        """Map `(batch, height, width, inputs)` → `(batch, height or half of it, …, d_model)`."""
        return self.group_norm(self.convolution(pad_spatially(x, self.padding) if self.padding else x))


class Levels(layers.Layer):
    """The levels that a transformer looks at: maps of the backbone, each projected, and coarser ones made of the last.

    Args:
        channels: of the maps.
        levels: how many levels are wanted, at least one for each map.
        d_model: channels of each level.

    Source:
        Deformable DETR, appendix A.2 ("Constructing multi-scale feature maps").
    """

    def __init__(self, channels: Sequence[int], levels: int, d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The first level beyond the maps is made of the last map itself, each further one of the level before it.
        inputs = [*channels, channels[-1], *[d_model] * levels][:levels]
        self.stack = [
            Projection(own, d_model, 1 if level < len(channels) else 3, name=f"level{level}", dtype=self.dtype_policy)
            for level, own in enumerate(inputs)
        ]

    def build(self, input_shape: Any) -> None:
        """Build all projections; their shapes depend on the configuration alone."""
        for projection in self.stack:
            projection.build(None)

    def call(self, maps: Sequence[Any]) -> list[Any]:
        """Map the backbone's maps, finest first, → the levels `(batch, height, width, d_model)`, finest first."""
        levels = [projection(x) for projection, x in zip(self.stack, maps, strict=False)]
        x = maps[-1]
        for projection in self.stack[len(maps) :]:
            x = projection(x)
            levels.append(x)
        return levels


def flattened(maps: Sequence[Any]) -> Any:
    """Join maps `(batch, height, width, channels)`, or masks without channels, into `(batch, tokens, channels)`."""
    tokens = []
    for x in maps:
        batch, height, width, *channels = ops.shape(x)
        tokens.append(ops.reshape(x, (batch, height * width, *channels)))
    return ops.concatenate(tokens, axis=1)


def sizes_of(maps: Sequence[Any]) -> Any:
    """Return height and width of each map, `(levels, 2)`: numbers if all are known, else an int32 tensor."""
    sizes = [tuple(ops.shape(x)[1:3]) for x in maps]
    if all(isinstance(side, int) for size in sizes for side in size):
        return sizes
    return ops.stack([ops.stack([ops.cast(side, "int32") for side in size]) for size in sizes])


def extents_of(masks: Sequence[Any]) -> Any:
    """Return width and height of what is image, in pixels of each level.

    Args:
        masks: `(batch, height, width)` each, 1 = image, 0 = padding at the bottom and on the right.

    Returns:
        `(batch, levels, 2)` float32, at least 1 where the first pixel is image.
    """
    extents = []
    for mask in masks:
        is_image = ops.cast(mask, "float32")
        extents.append(ops.stack([ops.sum(is_image[:, 0, :], axis=1), ops.sum(is_image[:, :, 0], axis=1)], axis=-1))
    return ops.stack(extents, axis=1)


def valid_ratios(maps: Sequence[Any], extents: Any) -> Any:
    """Return the shares of each level's width and height that are image, `(batch, levels, 2)` float32."""
    return extents / whole_extents(maps)


def whole_extents(maps: Sequence[Any]) -> Any:
    """Return width and height of each level, `(1, levels, 2)` float32: the extents where all is image."""
    sizes = [[ops.cast(side, "float32") for side in reversed(ops.shape(x)[1:3])] for x in maps]
    return ops.stack([ops.stack(size) for size in sizes])[None]


def pixel_centres(maps: Sequence[Any], extents: Any) -> Any:
    """Return x and y of each token's centre, in parts of the image: beyond 1 in the padding.

    Args:
        maps: the levels `(batch, height, width, …)`.
        extents: as `extents_of` gives them.

    Returns:
        `(batch, tokens, 2)` float32.
    """
    centres = []
    for level, x in enumerate(maps):
        height, width = ops.shape(x)[1:3]
        columns, rows = (ops.arange(side, dtype="float32") + 0.5 for side in (width, height))
        grid = [ops.broadcast_to(columns[None], (height, width)), ops.broadcast_to(rows[:, None], (height, width))]
        pixels = ops.reshape(ops.stack(grid, axis=-1), (1, height * width, 2))
        centres.append(pixels / extents[:, level : level + 1])
    return ops.concatenate(centres, axis=1)


def anchors(maps: Sequence[Any], extents: Any) -> Any:
    """Return a box around each token's centre, whose side doubles from level to level.

    Args:
        maps: the levels `(batch, height, width, …)`.
        extents: as `extents_of` gives them.

    Returns:
        `(batch, tokens, 4)` float32, cxcywh in parts of the image.

    Source:
        Deformable DETR, appendix A.4 ("Two-stage Deformable DETR").
    """
    centres, sides = pixel_centres(maps, extents), []
    for level, x in enumerate(maps):
        height, width = ops.shape(x)[1:3]
        sides.append(ops.full((1, height * width, 2), BASE_SIZE * 2.0**level, dtype="float32"))
    side = ops.concatenate(sides, axis=1)
    return ops.concatenate([centres, ops.broadcast_to(side, ops.shape(centres))], axis=-1)
