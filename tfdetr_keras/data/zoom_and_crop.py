"""Zoom-out and IoU crop, the geometry of SSD's augmentation as torchvision has it, without touching a pixel.

Both choose a window `(4,)` int32, top, left, height and width in pixels: zoom-out one that holds the image somewhere,
IoU crop one in which objects lie. `tfdetr_keras.data.windows` then resamples the pixels once.

The arithmetic takes uniform draws from [0, 1), so that the same draws give torchvision's windows.
"""

from collections.abc import Callable

import tensorflow as tf

MOST_ZOOM = 4.0  # sides of the window, in sides of the image, from 1 on
OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # least IoU of an object with the window; 1 leaves the image whole
AS_IT_IS = 1.0
TRIALS = 40  # of an option
LEAST_SCALE, MOST_SCALE = 0.3, 1.0  # sides of the crop, in sides of what is cropped
LEAST_RATIO, MOST_RATIO = 0.5, 2.0  # of the crop's width to its height

# Number of a round, () int32 -> place of its option, () int32, and `(TRIALS, 4)` float32 uniform draws: of width,
# height, left and top.
Rounds = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def whole(size: tf.Tensor) -> tf.Tensor:
    """Return the window that is an image of `size` `(2,)` int32, height and width."""
    return tf.concat([tf.zeros_like(size), size], axis=0)


def mirrored(window: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Return where a window is when its image of `width` pixels was mirrored left to right."""
    top, left, height, across = tf.unstack(window)
    return tf.stack([top, width - left - across, height, across])


def zoom_out(size: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Return a window of up to four times an image's sides, the image anywhere in it.

    Args:
        size: `(2,)` int32, height and width of the image, pixels.
        draws: `(3,)` float32 in [0, 1): of the side, of left and of top.

    Returns:
        The window `(4,)`, in pixels of the image; its top and left are 0 or less.

    Source: pytorch/vision, `RandomZoomOut` of `torchvision/transforms/v2/_geometry.py`.
    """
    ratio = 1.0 + draws[0] * (MOST_ZOOM - 1.0)
    frame = _whole_pixels(size, ratio)
    return tf.concat([-_whole_pixels(frame - size, tf.gather(draws, [2, 1])), frame], axis=0)


def iou_crop(boxes: tf.Tensor, is_object: tf.Tensor, size: tf.Tensor, rounds: Rounds) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a window with an object in it, and which boxes have their centre there.

    Each round has an option, by which at least one object has to overlap with the window, and as many trials, of which
    the first that succeeds is taken; the last option leaves everything whole. So does an image without objects.

    Args:
        boxes: `(objects, 4)` float32, xyxy in pixels of what is cropped.
        is_object: `(objects,)` bool, False for those that do not count, crowds.
        size: `(2,)` int32, height and width of what is cropped, pixels.
        rounds: draws the rounds.

    Returns:
        The window `(4,)` int32 and `(objects,)` bool.

    Source: Liu et al. 2016, "SSD: Single Shot MultiBox Detector", arXiv:1512.02325, section 2.2; pytorch/vision,
    `RandomIoUCrop` of `torchvision/transforms/v2/_geometry.py`.
    """
    options = tf.constant(OPTIONS)

    def round_(number: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        option, draws = rounds(number)
        least = options[option]
        windows, inside, overlaps = _trials(boxes, is_object, size, draws)
        good = overlaps >= least
        place = tf.argmax(good)
        stays = least >= AS_IT_IS
        window = tf.where(stays, whole(size), windows[place])
        return number + 1, stays | tf.reduce_any(good), window, stays | inside[place]

    start = tf.constant(0), ~tf.reduce_any(is_object), whole(size), tf.ones_like(is_object)
    _, _, window, kept = tf.while_loop(lambda _, ends, *__: ~ends, round_, start)
    return window, kept


def random_rounds(seed: tf.Tensor) -> Rounds:
    """Return the draws of `iou_crop`; `seed` `(2,)` int decides."""

    def rounds(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seeds = tf.unstack(tf.random.split(tf.random.fold_in(seed, number), 2), num=2)
        option = tf.random.stateless_uniform((), seeds[0], 0, len(OPTIONS), tf.int32)
        return option, tf.random.stateless_uniform((TRIALS, 4), seeds[1])

    return rounds


def _whole_pixels(length: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Return a share of a length in pixels, truncated; in float32, as torch computes it."""
    return tf.cast(tf.cast(length, tf.float32) * share, tf.int32)


def _trials(
    boxes: tf.Tensor, is_object: tf.Tensor, size: tf.Tensor, draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return of each trial its window, which boxes have their centre in it, and the most that an object overlaps.

    Returns:
        `(trials, 4)` int32, `(trials, objects)` bool, and `(trials,)` float32: the largest IoU of window and object, -1
        where there is no object or the window cannot be used.
    """
    sides = _whole_pixels(size[::-1], LEAST_SCALE + (MOST_SCALE - LEAST_SCALE) * draws[:, :2])  # width, height
    corners = _whole_pixels(size[::-1] - sides, draws[:, 2:])  # left, top
    ratio = tf.cast(sides[:, 0], tf.float64) / tf.cast(sides[:, 1], tf.float64)  # NaN or infinite without a height
    fits = (ratio >= LEAST_RATIO) & (ratio <= MOST_RATIO) & tf.reduce_all(sides > 0, axis=1)

    first, last = tf.cast(corners, tf.float32)[:, None], tf.cast(corners + sides, tf.float32)[:, None]
    centres = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    inside = tf.reduce_all((first < centres) & (centres < last), axis=-1)
    common = tf.reduce_prod(tf.maximum(tf.minimum(boxes[:, 2:], last) - tf.maximum(boxes[:, :2], first), 0.0), axis=-1)
    areas = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1) + tf.reduce_prod(last - first, axis=-1)
    counts = inside & is_object & fits[:, None]
    overlaps = tf.reduce_max(tf.where(counts, common / (areas - common), -1.0), axis=1)
    windows = tf.concat([corners[:, ::-1], sides[:, ::-1]], axis=1)
    return windows, inside, tf.maximum(overlaps, -1.0)  # the maximum of no object is -infinity
