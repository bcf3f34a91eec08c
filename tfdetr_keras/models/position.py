"""Position embeddings of the image features, and the padding mask they depend on (DETR, section 3.2, appendix A.4)."""

from __future__ import annotations

import math
from typing import Any

from keras import initializers, layers, ops

MAX_LEARNED_POSITIONS = 50


def shrink_mask(mask: Any, height: Any, width: Any) -> Any:
    """Nearest-neighbour reduction of a padding mask to a feature map's size, the way PyTorch does it by default.

    Row i takes source row ⌊i · (H / h)⌋ with the ratio rounded to float32: not the centre-of-pixel rule of most resize
    functions, which gives another mask in about half of all sizes.

    Args:
        mask: `(batch, H, W)`, any dtype.
        height: rows h of the result.
        width: columns w of the result.

    Returns:
        `(batch, h, w)` of the mask's dtype.
    """

    def source(count: Any, available: Any) -> Any:
        ratio = ops.cast(available, "float32") / ops.cast(count, "float32")
        index = ops.floor(ops.cast(ops.arange(count), "float32") * ratio)
        return ops.minimum(ops.cast(index, "int32"), available - 1)

    rows, columns = ops.shape(mask)[1:]
    return ops.take(ops.take(mask, source(height, rows), axis=1), source(width, columns), axis=2)


class SinePositionEmbedding(layers.Layer):
    """Sines and cosines of each position, counted over the unpadded image and scaled to [0, 2π].

    The angles are computed in float32 under every policy: bfloat16 cannot tell neighbouring positions apart.

    Args:
        d_model: channels of the embedding: the first half encodes y, the second x.

    Source:
        DETR, appendix A.4 ("Spatial positional encoding"), after Parmar et al. 2018.
    """

    TEMPERATURE = 10000.0
    SCALE = 2 * math.pi
    EPSILON = 1e-6

    def __init__(self, d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model = d_model

    def build(self, mask_shape: Any) -> None:
        """Has no weights."""

    def call(self, mask: Any) -> Any:
        """`(batch, height, width)`, 1 = image, 0 = padding → `(batch, height, width, d_model)`."""
        mask = ops.cast(mask, "float32")
        features = self.d_model // 2
        # Channels 2k and 2k + 1 share a frequency: the sine stands in the first, the cosine in the second.
        frequency = ops.power(self.TEMPERATURE, 2 * ops.arange(features // 2, dtype="float32") / features)

        def encode(axis: int) -> Any:
            position = ops.cumsum(mask, axis=axis)
            extent = position[:, -1:, :] if axis == 1 else position[:, :, -1:]
            angle = (position / (extent + self.EPSILON) * self.SCALE)[..., None] / frequency
            return ops.reshape(ops.stack([ops.sin(angle), ops.cos(angle)], axis=-1), (*ops.shape(mask), features))

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
        """Creates the two tables, `(50, d_model / 2)` each."""
        shape = (MAX_LEARNED_POSITIONS, self.d_model // 2)
        self.row = self.add_weight(shape=shape, initializer=initializers.RandomUniform(0.0, 1.0), name="row")
        self.column = self.add_weight(shape=shape, initializer=initializers.RandomUniform(0.0, 1.0), name="column")

    def call(self, mask: Any) -> Any:
        """`(batch, height, width)` → `(batch, height, width, d_model)`, the same for each image."""
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
