"""Nearest-neighbour resizing as PyTorch does it: of padding masks to feature maps, of feature maps to finer ones."""

from __future__ import annotations

from typing import Any

from keras import ops


def resize_nearest(images: Any, height: Any, width: Any) -> Any:
    """Resize to the nearest neighbour, as PyTorch does by default: a padding mask to a feature map's size.

    Row i takes source row ⌊i · (H / h)⌋ with the ratio rounded to float32: not the centre-of-pixel rule of most resize
    functions, which gives another mask in about half of all sizes.

    Args:
        images: `(batch, H, W)` or `(batch, H, W, channels)`, any dtype.
        height: rows h of the result.
        width: columns w of the result.

    Returns:
        `(batch, h, w)` or `(batch, h, w, channels)` of the same dtype.
    """

    def source(count: Any, available: Any) -> Any:
        ratio = ops.cast(available, "float32") / ops.cast(count, "float32")
        index = ops.floor(ops.cast(ops.arange(count), "float32") * ratio)
        return ops.minimum(ops.cast(index, "int32"), available - 1)

    rows, columns = ops.shape(images)[1:3]
    return ops.take(ops.take(images, source(height, rows), axis=1), source(width, columns), axis=2)
