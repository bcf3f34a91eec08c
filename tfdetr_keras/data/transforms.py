"""Transforms of a record, each a small function that runs inside a `tf.data` graph.

Sizes, resampling and normalisation are those the pretrained weights were evaluated with: shortest edge 800, longest
at most 1333, bilinear with anti-aliasing to whole uint8 levels, ImageNet mean and standard deviation.
"""

import tensorflow as tf

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Record = dict[str, tf.Tensor]


def resized_size(
    height: tf.Tensor, width: tf.Tensor, shortest_edge: int, longest_edge: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives the size to which the Hugging Face image processor resizes an image, to the pixel.

    The shorter side becomes `shortest_edge`, unless the longer one would pass `longest_edge`: then the shorter side is
    rounded (half to even) and the longer one computed from the unrounded value and truncated.

    Args:
        height: integer tensor of any shape, pixels.
        width: as `height`.
        shortest_edge: wanted length of the shorter side, pixels.
        longest_edge: limit of the longer side, pixels.

    Returns:
        Height and width, int32 of the arguments' shape.

    Source: `transformers.image_transforms.get_size_with_aspect_ratio`, float64 as Python's floats.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    shorter, longer = tf.minimum(height, width), tf.maximum(height, width)
    edge = tf.constant(shortest_edge, tf.float64)
    limited = longer / shorter * edge > longest_edge
    unrounded = tf.where(limited, tf.constant(longest_edge, tf.float64) * shorter / longer, edge)
    edge = tf.where(limited, tf.round(unrounded), edge)
    scaled = tf.floor(unrounded * longer / shorter)
    scaled = tf.where(shorter == edge, longer, scaled)
    portrait = width < height
    new_height, new_width = tf.where(portrait, scaled, edge), tf.where(portrait, edge, scaled)
    return tf.cast(new_height, tf.int32), tf.cast(new_width, tf.int32)


def resize(record: Record, size: tf.Tensor) -> Record:
    """Resizes a record's image to `size` (height, width), and its boxes and areas with it.

    The image is left as float32 in whole levels 0 .. 255: the reference resizes to uint8, so the levels are
    rounded. Anti-aliasing is a must: without it a shrunk image is off by up to 29 levels.
    """
    scale = tf.cast(size, tf.float32) / tf.cast(tf.shape(record["image"])[:2], tf.float32)
    image = tf.image.resize(record["image"], size, method="bilinear", antialias=True)
    return record | {
        "image": tf.clip_by_value(tf.round(image), 0.0, 255.0),
        "boxes": record["boxes"] * tf.gather(scale, [1, 0, 1, 0]),
        "area": record["area"] * scale[0] * scale[1],
    }


def flip_horizontally(record: Record) -> Record:
    """Mirrors a record's image and boxes left to right."""
    width = tf.cast(tf.shape(record["image"])[1], tf.float32)
    x1, y1, x2, y2 = tf.unstack(record["boxes"], axis=-1)
    return record | {
        "image": tf.reverse(record["image"], axis=[1]),
        "boxes": tf.stack([width - x2, y1, width - x1, y2], axis=-1),
    }


def random_horizontal_flip(record: Record, seed: tf.Tensor) -> Record:
    """Mirrors a record with probability 1/2; `seed` `(2,)` int decides."""
    flip = tf.random.stateless_uniform((), seed) < 0.5
    return tf.cond(flip, lambda: flip_horizontally(record), lambda: dict(record))


def normalize(image: tf.Tensor) -> tf.Tensor:
    """Turns levels 0 .. 255 `(..., 3)` into float32 with ImageNet's mean 0 and standard deviation 1 per channel."""
    mean, std = tf.constant(IMAGENET_MEAN) * 255.0, tf.constant(IMAGENET_STD) * 255.0
    return (tf.cast(image, tf.float32) - mean) / std


def relative_boxes(boxes: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Turns xyxy pixels `(objects, 4)` into cxcywh in [0, 1], relative to an image of `size` (height, width).

    The size is that of the image without padding: this is what the pretrained weights were trained on.
    """
    height, width = tf.unstack(tf.cast(size, tf.float32))
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return tf.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=-1)
