"""Transforms of a record, each a small function that runs inside a `tf.data` graph; random ones take a seed.

By default the resampling is the one that the published weights were evaluated with: bilinear with anti-aliasing, to
whole levels.
"""

import tensorflow as tf

from tfdetr_keras.data.record import OBJECT_KEYS, Record
from tfdetr_keras.preprocessing import Interpolation

# Of `color_jitter`; those of SSD (Liu et al. 2016, arXiv:1512.02325), whose recipe detectors have used since.
BRIGHTNESS = 32 / 255  # at most added or taken away, of the whole range
CONTRAST = SATURATION = 0.5  # the factor is 1 ± at most this
HUE = 18 / 360  # of the colour circle


def resize(
    record: Record, size: tf.Tensor, interpolation: Interpolation = "bilinear", antialias: bool = True
) -> Record:
    """Resize a record's image to `size` (height, width), and its boxes, areas and masks with it.

    Published DETRs need anti-aliasing: without it a shrunk image is off by up to 29 levels.
    """
    old_size = tf.shape(record["image"])[:2]
    image = tf.ensure_shape(resized_levels(record["image"], size, interpolation, antialias), (None, None, 3))
    resized = resized_boxes(record, old_size, size) | {"image": tf.cast(whole_levels(image), tf.uint8)}
    if "masks" in record:
        rows, columns = (nearest(old_size[axis], size[axis]) for axis in (0, 1))
        resized["masks"] = tf.gather(tf.gather(record["masks"], rows, axis=1), columns, axis=2)
    return resized


def resized_boxes(record: Record, old_size: tf.Tensor, size: tf.Tensor) -> Record:
    """Scale a record's boxes and areas, and nothing else, from one size to another, `(2,)` height and width each."""
    scale = tf.cast(size, tf.float32) / tf.cast(old_size, tf.float32)
    return record | {
        "boxes": record["boxes"] * tf.gather(scale, [1, 0, 1, 0]),
        "area": record["area"] * scale[0] * scale[1],
    }


def resized_levels(
    images: tf.Tensor, size: tf.Tensor, interpolation: Interpolation = "bilinear", antialias: bool = True
) -> tf.Tensor:
    """Resize images `(…, height, width, 3)` uint8 to `size` (height, width); return float32, not rounded."""
    levels = tf.cast(images, tf.float32)
    if interpolation == "bicubic":
        # As Pillow, which makes levels whole after each of its passes: what the first one overshoots is cut off.
        across = tf.stack([tf.shape(images)[-3], size[1]])
        levels = whole_levels(tf.image.resize(levels, across, method="bicubic", antialias=antialias))
        return tf.image.resize(levels, size, method="bicubic", antialias=antialias)
    if not antialias:
        return tf.image.resize(levels, size, method="bilinear")
    return tf.cond(
        tf.reduce_all(size >= tf.shape(images)[-3:-1]),
        lambda: tf.image.resize(levels, size, method="bilinear"),  # nothing to smooth, and several times faster
        lambda: tf.image.resize(levels, size, method="bilinear", antialias=True),
    )


def whole_levels(levels: tf.Tensor) -> tf.Tensor:
    """Round levels to whole ones, 0 … 255; a bicubic resize exceeds both ends."""
    return tf.clip_by_value(tf.round(levels), 0.0, 255.0)


def nearest(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """Return the source pixel of each pixel along one axis, as PIL's nearest-neighbour resize takes it.

    PIL adds up steps: where a centre falls between two pixels, the rounding of the sum decides.
    """
    step = tf.cast(old, tf.float64) / tf.cast(new, tf.float64)
    centres = tf.cumsum(tf.concat([[step / 2], tf.fill([new - 1], step)], axis=0))
    return tf.minimum(tf.cast(centres, tf.int32), old - 1)


def flip_horizontally(record: Record) -> Record:
    """Mirror a record's image, boxes and masks left to right."""
    width = tf.cast(tf.shape(record["image"])[1], tf.float32)
    x1, y1, x2, y2 = tf.unstack(record["boxes"], axis=-1)
    flipped = record | {
        "image": tf.reverse(record["image"], axis=[1]),
        "boxes": tf.stack([width - x2, y1, width - x1, y2], axis=-1),
    }
    if "masks" in record:
        flipped["masks"] = tf.reverse(record["masks"], axis=[2])
    return flipped


def random_horizontal_flip(record: Record, seed: tf.Tensor) -> Record:
    """Mirror a record with probability 1/2; `seed` `(2,)` int decides."""
    flip = tf.random.stateless_uniform((), seed) < 0.5
    return tf.cond(flip, lambda: flip_horizontally(record), lambda: dict(record))


def crop(record: Record, window: tf.Tensor) -> Record:
    """Cut a window out of a record; leave out objects of which nothing remains.

    An object's area shrinks in proportion to its box.

    Args:
        record: see `tfdetr_keras.data.record`.
        window: `(4,)` int32, top, left, height and width, inside the image, pixels.
    """
    top, left, height, width = tf.unstack(window)
    cut = boxes_in_window(record, window) | {"image": record["image"][top : top + height, left : left + width]}
    if "masks" in record:
        cut["masks"] = record["masks"][:, top : top + height, left : left + width]
    return select(cut, have_sides(cut["boxes"]))


def boxes_in_window(record: Record, window: tf.Tensor) -> Record:
    """Move a record's boxes, and nothing else, into a window `(4,)` and clip them; areas shrink in proportion."""
    top, left, height, width = tf.unstack(window)
    boxes = record["boxes"] - tf.cast(tf.stack([left, top, left, top]), tf.float32)
    boxes = tf.clip_by_value(boxes, 0.0, tf.cast(tf.stack([width, height, width, height]), tf.float32))
    share = _areas(boxes) / _areas(record["boxes"])
    return record | {"boxes": boxes, "area": record["area"] * share}


def have_sides(boxes: tf.Tensor, least: float = 0.0) -> tf.Tensor:
    """Return which boxes, xyxy `(objects, 4)`, have both sides: longer than 0, or of at least as many pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return tf.reduce_all((sides > 0) & (sides >= least), axis=1)


def _areas(boxes: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def select(record: Record, kept: tf.Tensor) -> Record:
    """Keep only some of a record's objects, `kept` `(objects,)` bool."""
    return record | {key: tf.boolean_mask(record[key], kept) for key in OBJECT_KEYS if key in record}


def color_jitter(record: Record, seed: tf.Tensor) -> Record:
    """Change brightness, contrast, saturation and hue of a record's uint8 image at random; `seed` `(2,)` int decides.

    Source: Liu et al. 2016, "SSD: Single Shot MultiBox Detector", arXiv:1512.02325, section 2.2.
    """
    seeds = tf.unstack(tf.random.split(seed, 4), num=4)
    image = tf.image.stateless_random_brightness(record["image"], BRIGHTNESS, seeds[0])
    image = tf.image.stateless_random_contrast(image, 1 - CONTRAST, 1 + CONTRAST, seeds[1])
    image = tf.image.stateless_random_saturation(image, 1 - SATURATION, 1 + SATURATION, seeds[2])
    return record | {"image": tf.image.stateless_random_hue(image, HUE, seeds[3])}


def relative_boxes(boxes: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Convert xyxy pixels `(objects, 4)` to cxcywh in [0, 1], relative to an image of `size` (height, width).

    The size is that of the image without padding: the pretrained weights were trained on such boxes.
    """
    height, width = tf.unstack(tf.cast(size, tf.float32))
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return tf.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=-1)
