"""A window of a record, resized: its pixels resampled once, from the original ones.

A window `(4,)` int32, top, left, height and width in pixels of the image, may reach beyond the image, where it is
black. The result is that of painting the image on a black canvas, cutting the window out and resizing it, but for
rounding; the canvas, up to sixteen times as large as the image, is never made. Only as much black is put around the
image as the filter reaches over its edges.
"""

from typing import Any

import tensorflow as tf

from tfdetr_keras.data.record import Record
from tfdetr_keras.data.sizes import Resize, target_size
from tfdetr_keras.data.transforms import boxes_in_window, nearest, resized_boxes, resized_levels, whole_levels
from tfdetr_keras.preprocessing import Interpolation

# TensorFlow's names of the filters, and how far they reach, in pixels of the smaller of source and result.
_KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}


def resize_window(record: Record, window: tf.Tensor, resize: Resize) -> Record:
    """Cut a window out of a record, which may reach beyond the image, and resize it.

    Args:
        record: see `tfdetr_keras.data.record`.
        window: `(4,)` int32.
        resize: to the size that an image of the window's size gets.

    Returns:
        The record, with the boxes of the objects clipped to the window. An object's area shrinks in proportion to its
        box; nothing may remain of it.
    """
    sides = window[2:]
    size = tf.stack(target_size(sides[0], sides[1], resize))
    seen = resized_boxes(boxes_in_window(record, window), sides, size)
    levels = window_levels(record["image"], window, size, resize.interpolation, resize.antialias)
    seen["image"] = tf.cast(whole_levels(levels), tf.uint8)
    if "masks" in record:
        masks = record["masks"]
        for axis in (0, 1):
            masks = _sampled_masks(masks, axis + 1, window[axis] + nearest(sides[axis], size[axis]))
        seen["masks"] = masks
    return seen


def window_levels(
    image: tf.Tensor, window: tf.Tensor, size: tf.Tensor, interpolation: Interpolation, antialias: bool
) -> tf.Tensor:
    """Resample a window of an image `(height, width, 3)` uint8 to `size` `(2,)`; return float32, not rounded."""

    def sampled() -> tf.Tensor:
        return _sampled(image, window, size, interpolation, antialias)

    if interpolation != "bilinear":
        return sampled()
    # An enlarged window is smaller than the result, so it can be painted, and the plain resize is several times faster.
    painted = tf.cond(
        tf.reduce_all(size >= window[2:]),
        lambda: resized_levels(_padded(image, window, window[2:]), size, interpolation, antialias),
        sampled,
    )
    return tf.ensure_shape(painted, (None, None, 3))


def _padded(image: tf.Tensor, window: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Return the pixels of a window `(4,)`, black beyond the image."""
    end = tf.shape(image)[:2]
    first = tf.clip_by_value(window[:2], 0, end)
    last = tf.clip_by_value(window[:2] + sides, first, end)
    inside = image[first[0] : last[0], first[1] : last[1]]
    before = tf.minimum(tf.maximum(-window[:2], 0), sides)
    black = tf.stack([before, sides - before - (last - first)], axis=1)
    return tf.pad(inside, tf.concat([black, [[0, 0]]], axis=0))


def _sampled(
    image: tf.Tensor, window: tf.Tensor, size: tf.Tensor, interpolation: Interpolation, antialias: bool
) -> tf.Tensor:
    """Resample by TensorFlow's general filter, which takes any scale and translation, so that black can be left out."""
    kernel, radius = _KERNELS[interpolation]
    top_left, sides = window[:2], window[2:]
    scale = tf.cast(size, tf.float32) / tf.cast(sides, tf.float32)
    reach = radius * (tf.maximum(1 / scale, 1.0) if antialias else tf.ones_like(scale)) + 1

    # Pixels of the result into which the image reaches, at least one; the others are black.
    begin, end = -top_left, tf.shape(image)[:2] - top_left  # of the image, in pixels of the window
    low = tf.clip_by_value(_floor((tf.cast(begin, tf.float32) - reach) * scale), 0, size - 1)
    high = tf.clip_by_value(_floor((tf.cast(end, tf.float32) + reach) * scale) + 1, low + 1, size)

    # Such a pixel sees as much black beyond the image as the filter is wide.
    width = _floor(2 * reach) + 1
    first = tf.clip_by_value(begin - width, 0, sides - 1)
    last = tf.clip_by_value(end + width, first + 1, sides)
    source = _padded(image, tf.concat([first + top_left, last - first], axis=0), last - first)
    shift = tf.cast(first, tf.float32) * scale - tf.cast(low, tf.float32)

    def along(levels: tf.Tensor, axes: tuple[bool, bool]) -> tf.Tensor:
        sampled = tf.raw_ops.ScaleAndTranslate(
            images=levels[None],
            size=tf.where(axes, high - low, tf.shape(levels)[:2]),
            scale=tf.where(axes, scale, 1.0),
            translation=tf.where(axes, shift, 0.0),
            kernel_type=kernel,
            antialias=antialias,
        )
        return sampled[0]

    if interpolation == "bicubic":  # as `resized_levels`: each way by itself, with whole levels between
        levels = along(whole_levels(along(source, (False, True))), (True, False))
    else:
        levels = along(source, (True, True))
    return tf.pad(levels, tf.concat([tf.stack([low, size - high], axis=1), [[0, 0]]], axis=0))


def _floor(values: Any) -> tf.Tensor:
    return tf.cast(tf.floor(values), tf.int32)


def _sampled_masks(masks: tf.Tensor, axis: int, places: tf.Tensor) -> tf.Tensor:
    """Take rows or columns of masks; those beyond the image are empty."""
    end = tf.shape(masks)[axis]
    taken = tf.gather(masks, tf.clip_by_value(places, 0, end - 1), axis=axis)
    inside = (places >= 0) & (places < end)
    return taken & (inside[:, None] if axis == 1 else inside)
