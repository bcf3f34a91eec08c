"""Position embeddings of the image features, and the padding mask they depend on (DETR, section 3.2, appendix A.4)."""

from __future__ import annotations

import math
from typing import Any

from keras import initializers, layers, ops

MAX_LEARNED_POSITIONS = 50
TEMPERATURE = 10000.0
SCALE = 2 * math.pi


def sine_encoding(angles: Any, features: int, temperature: float = TEMPERATURE) -> Any:
    """Compute sines and cosines of angles at falling frequencies: channels 2k and 2k + 1 share one, sine first.

    Args:
        angles: float32 of any shape `(…)`, in [0, 2π] over the image.
        features: channels of the encoding, even.
        temperature: by what the lowest frequency is less than the highest, nearly.

    Returns:
        `(…, features)` float32.
    """
    frequency = ops.power(temperature, 2 * ops.arange(features // 2, dtype="float32") / features)
    angles_at = angles[..., None] / frequency
    return ops.reshape(ops.stack([ops.sin(angles_at), ops.cos(angles_at)], axis=-1), (*ops.shape(angles), features))


def encode_coordinates(coordinates: Any, features: int) -> Any:
    """Encode points or boxes as the image's positions are: y before x, and then width and height.

    Args:
        coordinates: float32 in [0, 1] of the image, `(…, 2)` x and y, or `(…, 4)` cxcywh.
        features: channels of each coordinate, even.

    Returns:
        `(…, coordinates × features)` float32.
    """
    order = (1, 0, *range(2, coordinates.shape[-1]))
    return ops.concatenate([sine_encoding(coordinates[..., place] * SCALE, features) for place in order], axis=-1)


def grid_encoding(height: Any, width: Any, features: int) -> Any:
    """Encode each position of a map by its row and its column, counted from 0 and not scaled.

    Args:
        height: rows.
        width: columns.
        features: channels of the encoding, divisible by 4: sines and cosines of the row, then those of the column.

    Returns:
        `(height, width, features)` float32.

    Source:
        RT-DETR's code ("build_2d_sincos_position_embedding"), whose rows come first, as transformers has them for
        images of any shape.
    """
    frequency = ops.power(TEMPERATURE, -ops.arange(features // 4, dtype="float32") / (features // 4))
    rows, columns = (ops.arange(side, dtype="float32")[:, None] * frequency for side in (height, width))
    rows, columns = (ops.concatenate([ops.sin(x), ops.cos(x)], axis=-1) for x in (rows, columns))
    shape = (height, width, features // 2)
    grid = ops.broadcast_to(rows[:, None], shape), ops.broadcast_to(columns[None], shape)
    return ops.concatenate(grid, axis=-1)


class SinePositionEmbedding(layers.Layer):
    """Sines and cosines of each position, counted over the unpadded image and scaled to [0, 2π].

    The angles are computed in float32 under every policy: bfloat16 cannot tell neighbouring positions apart.

    Args:
        d_model: channels of the embedding: the first half encodes y, the second x.
        temperature: of the frequencies, see `sine_encoding`; or one for y and one for x.
        centred: whether a position is that of the pixel's centre, as in Deformable DETR, instead of its far edge.

    Source:
        DETR, appendix A.4 ("Spatial positional encoding"), after Parmar et al. 2018.
    """

    EPSILON = 1e-6

    def __init__(
        self,
        d_model: int,
        temperature: float | tuple[float, float] = TEMPERATURE,
        centred: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.d_model, self.centred = d_model, centred
        self.temperatures = temperature if isinstance(temperature, tuple) else (temperature, temperature)

    def build(self, mask_shape: Any) -> None:
        """Do nothing: there are no weights."""

    def call(self, mask: Any) -> Any:
        """Map `(batch, height, width)`, 1 = image, 0 = padding → `(batch, height, width, d_model)`."""
        mask = ops.cast(mask, "float32")

        def encode(axis: int) -> Any:
            position = ops.cumsum(mask, axis=axis)
            extent = position[:, -1:, :] if axis == 1 else position[:, :, -1:]
            position = position - 0.5 if self.centred else position
            temperature = self.temperatures[axis - 1]
            return sine_encoding(position / (extent + self.EPSILON) * SCALE, self.d_model // 2, temperature)

        return ops.cast(ops.concatenate([encode(1), encode(2)], axis=-1), self.compute_dtype)


class LearnedPositionEmbedding(layers.Layer):
    """A learned vector per row and per column, for feature maps of at most 50 × 50 positions.

    Args:
        d_model: channels of the embedding: the first half comes from the column, the second from the row.
    """

    def __init__(self, d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model = d_model

    def build(self, mask_shape: Any) -> None:
        """Create the two tables, `(50, d_model / 2)` each."""
        shape = (MAX_LEARNED_POSITIONS, self.d_model // 2)
        self.row = self.add_weight(shape=shape, initializer=initializers.RandomUniform(0.0, 1.0), name="row")
        self.column = self.add_weight(shape=shape, initializer=initializers.RandomUniform(0.0, 1.0), name="column")

    def call(self, mask: Any) -> Any:
        """Map `(batch, height, width)` → `(batch, height, width, d_model)`, the same for each image."""
        if any(side is not None and side > MAX_LEARNED_POSITIONS for side in mask.shape[1:]):
            raise ValueError(
                f"learned position embeddings know {MAX_LEARNED_POSITIONS} × {MAX_LEARNED_POSITIONS} positions, but "
                f"the feature map has {mask.shape[1]} × {mask.shape[2]}: use smaller images or sine embeddings"
            )
        batch, height, width = ops.shape(mask)
        half = self.d_model // 2
        column = ops.broadcast_to(self.column[None, None, :width], (batch, height, width, half))
        row = ops.broadcast_to(self.row[None, :height, None], (batch, height, width, half))
        return ops.concatenate([column, row], axis=-1)
