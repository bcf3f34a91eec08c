"""The size that an image is resized to, and the canvas, `(height, width)`, that it is padded to."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfdetr_keras.preprocessing import Interpolation, Preprocessing, SizeRule, is_pair

logger = logging.getLogger(__name__)

NO_LIMIT = 2**31 - 1  # as longest_edge
BUCKET_STEPS = 3  # canvases between the square and the longest one, each way
BUCKET_MULTIPLE = 32  # of pixels: the stride of the backbone


class Resize(NamedTuple):
    """The way in which images are resized.

    Attributes:
        shortest_edge: wanted length of the shorter side, pixels; "table" ignores it. With "fit" and "stretch",
            the height.
        longest_edge: limit of the longer side, pixels; with "table", its length. With "fit" and "stretch", the width.
        rule: "huggingface", "facebook", "table", "fit" or "stretch", see `target_size`.
        strict: whether the limit is never exceeded, not even by the references' rounding: for canvases of that size.
        interpolation: "bilinear" or "bicubic".
        antialias: whether images that become smaller are smoothed.
        canvas: (height, width) that all images are padded to, pixels; those that would not fit are made smaller still.
    """

    shortest_edge: Any
    longest_edge: Any
    rule: SizeRule = "huggingface"
    strict: bool = False
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    canvas: tuple[int, int] | None = None

    @classmethod
    def of(cls, preprocessing: Preprocessing, canvases: Any = None) -> Resize:
        """Return how a preprocessing resizes images.

        Args:
            preprocessing: of a model.
            canvases: (height, width) that they are then padded to, or several of them; by default the preprocessing's.
        """
        canvases = preprocessing.pad_to if canvases is None else canvases
        canvas = canvases if is_pair(canvases) else None
        if canvas is not None:
            _tell_of_small_canvas(preprocessing, canvas)
        how = preprocessing.interpolation, preprocessing.antialias
        return cls(*preprocessing.size, preprocessing.rule, canvases is not None, *how, canvas)


def target_size(height: Any, width: Any, resize: Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the size to which an image is resized, to the pixel, by the rule of the model's authors.

    By Hugging Face's image processor and by facebookresearch, the shorter side becomes `shortest_edge`, unless the
    longer one would exceed `longest_edge`: then the shorter side is rounded (half to even), and the longer one computed
    from the unrounded value (Hugging Face) or from the rounded one (facebookresearch), and truncated. So the latter may
    exceed the limit, by half its ratio to the shorter; and both do with an image whose shorter side already has its
    length, which they leave unchanged.

    By Table Transformer ("table"), the longer side becomes `longest_edge`, of small images, too, and the shorter one
    follows, rounded (half to even). Hugging Face's rule does the same where both edges are equal, say 800, except for a
    pixel where it truncates 799.99…, and for the images that it leaves unchanged. With 800 and 1000 it resizes a square
    image to 800 pixels, not to 1000.

    An image that would be larger than `canvas` becomes as large as fits into it, each side truncated.

    With "fit", an image becomes as large as fits into `shortest_edge` × `longest_edge` (height × width), small ones,
    too, each side truncated. With "stretch" every image gets exactly that size.

    Args:
        height: integer tensor of any shape, pixels.
        width: as `height`.
        resize: to which edges, by which rule.

    Returns:
        Height and width, int32 of the arguments' shape, at least 1: for images narrower than a pixel, both references
        return no image at all.

    Source: `transformers.image_transforms.get_size_with_aspect_ratio` and, of "fit",
    `get_image_size_for_max_height_width`; facebookresearch/detr,
    `datasets/transforms.py`; microsoft/table-transformer, `src/inference.py`, where the longer side is 800 for
    detection and 1000 for structure recognition. In float64, as Python's floats.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    shorter, longer = tf.minimum(height, width), tf.maximum(height, width)
    edge, limit = tf.cast(resize.shortest_edge, tf.float64), tf.cast(resize.longest_edge, tf.float64)
    if resize.rule == "table":
        scale = limit / longer
        return fitted(*_whole(tf.round(scale * height), tf.round(scale * width)), resize.canvas)
    if resize.rule == "fit":
        scale = tf.minimum(edge / height, limit / width)
        return fitted(*_whole(tf.floor(scale * height), tf.floor(scale * width)), resize.canvas)
    if resize.rule == "stretch":
        return fitted(*_whole(edge + tf.zeros_like(height), limit + tf.zeros_like(width)), resize.canvas)
    limited = longer / shorter * edge > limit
    unrounded = tf.where(limited, limit * shorter / longer, edge)
    edge = tf.where(limited, tf.round(unrounded), edge)
    scaled = tf.floor((unrounded if resize.rule == "huggingface" else edge) * longer / shorter)
    scaled = tf.where(shorter == edge, longer, scaled)
    scaled = tf.minimum(scaled, limit) if resize.strict else scaled
    portrait = width < height
    new_height, new_width = tf.where(portrait, scaled, edge), tf.where(portrait, edge, scaled)
    return fitted(*_whole(new_height, new_width), resize.canvas)


def fitted(height: tf.Tensor, width: tf.Tensor, canvas: tuple[int, int] | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the size of an image on its canvas: smaller, of the same ratio, where it would be larger.

    Args:
        height: int32 tensor of any shape, pixels.
        width: as `height`.
        canvas: (height, width), pixels; None for one that holds any image.
    """
    if canvas is None:
        return height, width
    most_height, most_width = canvas
    is_larger = (height > most_height) | (width > most_width)
    is_high = height * most_width >= width * most_height  # so that the height limits it
    of_height, of_width = height * most_width // width, width * most_height // height
    new_height = tf.where(is_high, most_height, tf.maximum(of_height, 1))
    new_width = tf.where(is_high, tf.maximum(of_width, 1), most_width)
    return tf.where(is_larger, new_height, height), tf.where(is_larger, new_width, width)


@functools.cache
def _tell_of_small_canvas(preprocessing: Preprocessing, canvas: tuple[int, int]) -> None:
    """Log, once, that a canvas does not hold all images at their size."""
    largest = dataclasses.replace(preprocessing, pad_to=None).largest
    if canvas[0] < largest[0] or canvas[1] < largest[1]:
        logger.info(
            "images that are larger than the canvas pad_to=%s after the resize are made smaller to fit; "
            "pad_to=%s holds all of them",
            canvas,
            largest,
        )


def _whole(height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cast(tf.maximum(height, 1), tf.int32), tf.cast(tf.maximum(width, 1), tf.int32)


def buckets(size: tuple[int, int], rule: SizeRule = "huggingface") -> list[tuple[int, int]]:
    """Return a few canvases that images resized to `size` can be padded to with little waste.

    Args:
        size: (shortest_edge, longest_edge), pixels; (height, width) with "fit" and "stretch".
        rule: by which images are resized. With "table", the longer side always has its length, and the shorter one
            differs: the canvases are from `shortest_edge` to `longest_edge` wide. With "fit", one of the sides
            has its length, and the other is from half of its own to all of it. With "stretch" there is one canvas.

    Returns:
        (height, width) of each, pixels, in multiples of 32, by area. The last two hold every image, upright or lying,
        that was resized strictly; with "table", "fit" and "stretch" the last one does.
    """
    if rule == "stretch":
        return [(_in_steps(size[0]), _in_steps(size[1]))]
    if rule == "fit":
        shares = [0.5 + 0.5 * step / BUCKET_STEPS for step in range(BUCKET_STEPS + 1)]
        sides = [(_in_steps(size[0] * share), _in_steps(size[1] * share)) for share in shares]
        fitted = {canvas for height, width in sides for canvas in ((height, sides[-1][1]), (sides[-1][0], width))}
        return sorted(fitted, key=lambda canvas: (canvas[0] * canvas[1], canvas))
    shortest, longest = size
    lengths = [shortest + (longest - shortest) * step / BUCKET_STEPS for step in range(BUCKET_STEPS + 1)]
    lengths_in_steps = [_in_steps(length) for length in lengths]
    fixed = lengths_in_steps[-1] if rule == "table" else lengths_in_steps[0]
    canvases = {canvas for side in lengths_in_steps for canvas in ((fixed, side), (side, fixed))}
    return sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas))


def _in_steps(length: float) -> int:
    return -int(-length // BUCKET_MULTIPLE) * BUCKET_MULTIPLE


def smallest_bucket(size: tf.Tensor, canvases: Sequence[tuple[int, int]]) -> tf.Tensor:
    """Return the place of the smallest canvas that an image fits on.

    Args:
        size: `(2,)` int32, height and width of the image.
        canvases: (height, width) of each.

    Returns:
        int64 scalar; `len(canvases)` if it fits on none.
    """
    table = tf.constant(canvases, tf.int32)
    fits = tf.reduce_all(size <= table, axis=1)
    by_area = tf.constant([height * width for height, width in canvases], tf.int64)
    area = tf.where(fits, by_area, tf.int64.max)
    return tf.where(tf.reduce_any(fits), tf.argmin(area), tf.cast(len(canvases), tf.int64))
