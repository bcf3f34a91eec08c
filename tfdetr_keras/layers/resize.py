"""Resizing as PyTorch does it, to the nearest neighbour or bilinear: of padding masks, and of feature maps."""

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


def resize_bilinear(images: Any, height: Any, width: Any) -> Any:
    """Resize `(batch, h, w, channels)` → `(batch, height, width, channels)` as PyTorch does it, without smoothing.

    By a product of matrices each for rows and columns, so that any size will do, also one that is known only when the
    graph runs.
    """
    batch, height_before, width_before, channels = ops.shape(images)
    rows, columns = (
        ops.cast(_shares(old, new), images.dtype) for old, new in ((height_before, height), (width_before, width))
    )
    # Of `einsum` LiteRT's converter makes arrays of a wrong size.
    tall = ops.matmul(rows, ops.reshape(images, (batch, height_before, width_before * channels)))
    return ops.matmul(columns, ops.reshape(tall, (batch, height, width_before, channels)))


def _shares(inputs: Any, outputs: Any) -> Any:
    """Return the share of each input in each output, `(outputs, inputs)` float32."""
    scale = ops.cast(inputs, "float32") / ops.cast(outputs, "float32")
    centres = (ops.arange(outputs, dtype="float32") + 0.5) * scale - 0.5
    centres = ops.clip(centres, 0.0, ops.cast(inputs, "float32") - 1.0)
    return ops.relu(1.0 - ops.abs(ops.arange(inputs, dtype="float32") - centres[:, None]))
