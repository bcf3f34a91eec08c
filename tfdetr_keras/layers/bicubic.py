"""Bicubic resizing as PyTorch does it, with antialiasing or without: of tables of positions to another grid.

The two differ in their kernel, too: with antialiasing a is −0.5, without it −0.75. Rows and columns are resized by a
product of matrices each, so that any size will do, also one that is known only when the graph runs.

Source:
    Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 15.
"""

from __future__ import annotations

from typing import Any

from keras import ops

SHARPNESS = {True: -0.5, False: -0.75}  # a, by whether there is antialiasing


def resize_bicubic(x: Any, height: Any, width: Any, antialias: bool) -> Any:
    """Resize `(rows, columns, channels)` → `(height, width, channels)`, float32.

    Args:
        x: float32, of known rows and columns.
        height: rows of the result.
        width: columns of the result.
        antialias: whether a smaller result is smoothed.
    """
    rows, columns = (_weights(old, new, antialias) for old, new in zip(x.shape[:2], (height, width), strict=True))
    x = ops.einsum("hr,rcd->hcd", rows, x)
    return ops.einsum("wc,hcd->hwd", columns, x)


def _weights(inputs: int, outputs: Any, antialias: bool) -> Any:
    """Return the share of each input in each output, `(outputs, inputs)` float32."""
    scale = inputs / ops.cast(outputs, "float32")
    centres = (ops.arange(outputs, dtype="float32") + 0.5) * scale
    if antialias:
        distances = ops.arange(inputs, dtype="float32") + 0.5 - centres[:, None]
        shares = _kernel(distances / ops.maximum(scale, 1.0), SHARPNESS[True])
        return shares / ops.sum(shares, axis=1, keepdims=True)
    first = ops.floor(centres - 0.5) - 1
    shares = ops.zeros((outputs, inputs), "float32")
    for tap in range(4):  # those beyond the edge are the pixel at the edge
        place = first + tap
        share = _kernel(place + 0.5 - centres, SHARPNESS[False])
        nearest = ops.cast(ops.clip(place, 0, inputs - 1), "int32")
        shares = shares + share[:, None] * ops.one_hot(nearest, inputs, dtype="float32")
    return shares


def _kernel(distances: Any, a: float) -> Any:
    """Return the cubic kernel at some distances, in pixels; 0 from 2 on."""
    x = ops.abs(distances)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return ops.where(x <= 1, near, ops.where(x < 2, far, 0.0))
