"""The photometric distortion of SSD as torchvision has it: brightness, contrast, saturation, hue, order of channels.

Each change is made by lot. Levels are cut to 0 … 255 and truncated to whole ones after each of them, as on uint8 images
there; this decides what the next change sees.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

PROBABILITY = 0.5  # of each change
BRIGHTNESS = (0.875, 1.125)
CONTRAST = SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # of the colour circle
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in grey; ITU-R BT.601, as torchvision rounds it
WHITE = 255.0
# Shares of white become levels by this factor and truncation, in torchvision; so 1 is 255, and x / 255 is x again.
LEVELS_OF_SHARE = 255.999


class Distortion(NamedTuple):
    """What is changed in one image.

    Attributes:
        brightness: factor of the levels, float32 scalar; 1 for none.
        contrast: factor of the distance from the mean grey of the image; 1 for none.
        saturation: factor of the distance from the grey of the pixel; 1 for none.
        hue: added, in turns of the colour circle; 0 for none.
        contrast_comes_first: whether contrast changes before saturation and hue, bool scalar.
        channels: `(3,)` int32, which channel comes first, second and third.
    """

    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor
    contrast_comes_first: tf.Tensor
    channels: tf.Tensor


def random_distortion(seed: tf.Tensor) -> Distortion:
    """Draw what is changed in an image; `seed` `(2,)` int decides.

    Source: pytorch/vision, `RandomPhotometricDistort` of `torchvision/transforms/v2/_color.py`, with its defaults.
    """
    lots = tf.random.stateless_uniform((13,), seed)
    happens = lots[:6] < PROBABILITY

    def drawn(place: int, limits: tuple[float, float], neutral: float) -> tf.Tensor:
        low, high = limits
        return tf.where(happens[place], low + (high - low) * lots[6 + place], neutral)

    return Distortion(
        drawn(0, BRIGHTNESS, 1.0),
        drawn(1, CONTRAST, 1.0),
        drawn(2, SATURATION, 1.0),
        drawn(3, HUE, 0.0),
        happens[4],
        tf.where(happens[5], tf.argsort(lots[10:]), tf.range(3)),
    )


def distort(image: tf.Tensor, distortion: Distortion) -> tf.Tensor:
    """Change the colours of an image `(height, width, 3)` uint8.

    Source: pytorch/vision, `torchvision/transforms/v2/functional/_color.py`, of which it stays within a level.
    """
    brightness, contrast, saturation, hue, contrast_comes_first, channels = distortion
    changes_contrast = contrast != 1.0
    levels = tf.cast(image, tf.float32)
    levels = _changed(levels, brightness != 1.0, lambda old: _truncated(old * brightness))
    levels = _changed(levels, changes_contrast & contrast_comes_first, lambda old: _with_contrast(old, contrast))
    levels = _changed(levels, saturation != 1.0, lambda old: _blend(old, _grey(old)[..., None], saturation))
    levels = _changed(levels, hue != 0.0, lambda old: _with_hue(old, hue))
    levels = _changed(levels, changes_contrast & ~contrast_comes_first, lambda old: _with_contrast(old, contrast))
    levels = _changed(levels, tf.reduce_any(channels != tf.range(3)), lambda old: _permuted(old, channels))
    return tf.cast(levels, tf.uint8)


def _changed(levels: tf.Tensor, happens: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    return tf.ensure_shape(tf.cond(happens, lambda: change(levels), lambda: levels), levels.shape)


def _truncated(levels: tf.Tensor) -> tf.Tensor:
    return tf.floor(tf.clip_by_value(levels, 0.0, WHITE))


def _grey(levels: tf.Tensor) -> tf.Tensor:
    """Return the grey of each pixel `(height, width)`, truncated to whole levels."""
    red, green, blue = tf.unstack(levels, num=3, axis=-1)
    return tf.floor(_plus_product(_plus_product(red * LUMA[0], green, LUMA[1]), blue, LUMA[2]))


def _blend(levels: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return _truncated(_plus_product(levels * share, other, 1.0 - share))


def _plus_product(term: tf.Tensor, factor: tf.Tensor, other: tf.Tensor | float) -> tf.Tensor:
    """Return term + factor · other, rounded once, to float32, as torch computes it.

    Where a level equals its grey, its blend is a whole number but for that rounding, which decides what it is truncated
    to; further changes would make more than a level of the difference.
    """
    product = tf.cast(factor, tf.float64) * tf.cast(tf.cast(other, tf.float32), tf.float64)
    return tf.cast(tf.cast(term, tf.float64) + product, tf.float32)


def _with_contrast(levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _blend(levels, tf.reduce_mean(_grey(levels)), factor)


def _with_hue(levels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    return tf.floor(tf.raw_ops.AdjustHue(images=levels * (1 / WHITE), delta=turn) * LEVELS_OF_SHARE)


def _permuted(levels: tf.Tensor, channels: tf.Tensor) -> tf.Tensor:
    """Reorder the channels; a product with zeros and ones is exact, and five times faster than gathering them."""
    order = tf.one_hot(channels, 3, axis=0)
    return tf.reshape(tf.matmul(tf.reshape(levels, (-1, 3)), order), tf.shape(levels))
