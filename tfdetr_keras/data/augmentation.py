"""Augmentation recipes: from a record and a seed to the resized record that a model is trained on.

`paper` is facebookresearch's recipe (DETR, section 4 and appendix A.4), scaled to the requested size: the sides of
480 … 800 that the paper uses for 800 become 0.6 … 1 of that size (of the longer side by Table Transformer's rule, of
both sides by the rule "fit"; by "stretch" every image has the one size). It differs in one thing: where the original
enlarges or shrinks the image, crops it, and resizes it again, here the window is cut from the original pixels and
resized once.

`strong` is the recipe of RT-DETR and D-FINE: colours, zoom-out, IoU crop and flip. Its geometry is put together before
the pixels are resampled, once.
"""

from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from tfdetr_keras.data import transforms
from tfdetr_keras.data.photometric import distort, random_distortion
from tfdetr_keras.data.record import Record
from tfdetr_keras.data.sizes import NO_LIMIT, Resize, target_size
from tfdetr_keras.data.windows import resize_window
from tfdetr_keras.data.zoom_and_crop import iou_crop, mirrored, random_rounds, whole, zoom_out

Augmentation = Literal["paper", "strong", "flip", "none"]

# Of the shortest edge asked for, 800 in the paper.
SCALES = tuple(side / 800 for side in range(480, 801, 32))
CROP_SCALES = (400 / 800, 500 / 800, 600 / 800)
CROP_SIDES = (384 / 800, 600 / 800)
# Of `strong`.
ZOOM_OUT, IOU_CROP, FLIP = 0.5, 0.8, 0.5  # probabilities
LEAST_SIDE = 1.0  # of a box after the crop, and once more after the resize, pixels
# Which edges the scales are of, other than the shortest alone.
_SCALED: dict[str, tuple[str, ...]] = {
    "table": ("longest_edge",),
    "fit": ("shortest_edge", "longest_edge"),
    "stretch": (),
}


def evaluation(record: Record, resize: Resize) -> Record:
    """Resize a record and change nothing else."""
    height, width = tf.unstack(tf.shape(record["image"])[:2])
    size = tf.stack(target_size(height, width, resize))
    return transforms.resize(record, size, resize.interpolation, resize.antialias)


def flip(record: Record, seed: tf.Tensor, resize: Resize) -> Record:
    """Mirror a record with probability 1/2, and resize it."""
    return evaluation(transforms.random_horizontal_flip(record, seed), resize)


def paper(record: Record, seed: tf.Tensor, resize: Resize) -> Record:
    """Crop a record with probability 1/2, mirror it with probability 1/2, and resize it to one of eleven scales.

    Args:
        record: see `tfdetr_keras.data.record`.
        seed: `(2,)` int.
        resize: to the largest scale.

    Source: facebookresearch/detr, `datasets/coco.py`, `make_coco_transforms`.
    """
    seeds = tf.unstack(tf.random.split(seed, 4), num=4)
    crops = tf.random.stateless_uniform((), seeds[0]) < 0.5
    height, width = tf.unstack(tf.shape(record["image"])[:2])
    whole = tf.stack([0, 0, height, width])
    edge = min(resize.shortest_edge, resize.longest_edge)
    window = tf.cond(crops, lambda: _random_window(height, width, seeds[1], edge), lambda: whole)
    record = transforms.random_horizontal_flip(transforms.crop(record, window), seeds[2])
    changes = {}
    for name in _SCALED.get(resize.rule, ("shortest_edge",)):
        edges = tf.constant([max(round(getattr(resize, name) * scale), 1) for scale in SCALES])
        changes[name] = _choice(edges, seeds[3])
    return evaluation(record, resize._replace(**changes))


def strong(record: Record, seed: tf.Tensor, resize: Resize) -> Record:
    """Distort a record's colours, zoom out with probability 1/2, crop around an object, mirror it, and resize it.

    An object whose centre is outside the crop is left out, and so is one of which less than a pixel remains either
    way, before or after the resize.

    Args:
        record: see `tfdetr_keras.data.record`.
        seed: `(2,)` int.
        resize: to the model's size.

    Source: lyuwenyu/RT-DETR, `rtdetrv2_pytorch/configs/rtdetrv2/include/dataloader.yml`; Peterande/D-FINE,
    `configs/dfine/include/dataloader.yml`.
    """
    seeds = tf.unstack(tf.random.split(seed, 4), num=4)
    lots = tf.random.stateless_uniform((3,), seeds[0])
    size = tf.shape(record["image"])[:2]
    draws = tf.random.stateless_uniform((3,), seeds[1])
    frame = tf.cond(lots[0] < ZOOM_OUT, lambda: zoom_out(size, draws), lambda: whole(size))
    framed, is_object = transforms.boxes_in_window(record, frame)["boxes"], ~record["iscrowd"]
    part, kept = tf.cond(
        lots[1] < IOU_CROP,
        lambda: iou_crop(framed, is_object, frame[2:], random_rounds(seeds[2])),
        lambda: (whole(frame[2:]), tf.ones_like(is_object)),
    )
    window = tf.concat([frame[:2] + part[:2], part[2:]], axis=0)
    left = transforms.boxes_in_window(record, window)["boxes"]
    record = transforms.select(record, kept & transforms.have_sides(left, LEAST_SIDE))
    record = record | {"image": distort(record["image"], random_distortion(seeds[3]))}
    record, window = tf.cond(
        lots[2] < FLIP,
        lambda: (transforms.flip_horizontally(record), mirrored(window, size[1])),
        lambda: (dict(record), window),
    )
    record = resize_window(record, window, resize)
    return transforms.select(record, transforms.have_sides(record["boxes"], LEAST_SIDE))


RECIPES: dict[str, Callable[[Record, tf.Tensor, Resize], Record]] = {
    "paper": paper,
    "strong": strong,
    "flip": flip,
    "none": lambda record, seed, resize: evaluation(record, resize),
}


def _choice(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.gather(values, tf.random.stateless_uniform((), seed, 0, tf.size(values), tf.int32))


def _random_window(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, shortest_edge: int) -> tf.Tensor:
    """Return a window `(4,)` of the image whose sides, at one of the crop scales, lie between the two crop sides."""
    seeds = tf.unstack(tf.random.split(seed, 2), num=2)
    edge = _choice(tf.constant([max(round(shortest_edge * scale), 1) for scale in CROP_SCALES]), seeds[0])
    scaled = tf.stack(target_size(height, width, Resize(edge, NO_LIMIT)))
    least, most = (max(round(shortest_edge * side), 1) for side in CROP_SIDES)
    draws = tf.random.stateless_uniform((2, 2), seeds[1])

    def whole_number(draw: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        """Return a uniform draw from low .. high, both included."""
        return low + tf.minimum(tf.cast(draw * tf.cast(high - low + 1, tf.float32), tf.int32), high - low)

    most = tf.minimum(scaled, most)
    sides = whole_number(draws[0], tf.minimum(most, least), most)
    corner = whole_number(draws[1], tf.zeros_like(scaled), scaled - sides)
    # Back to the pixels of the image, outwards.
    ratio = tf.cast(tf.stack([height, width]), tf.float64) / tf.cast(scaled, tf.float64)
    first = tf.cast(tf.floor(tf.cast(corner, tf.float64) * ratio), tf.int32)
    last = tf.cast(tf.math.ceil(tf.cast(corner + sides, tf.float64) * ratio), tf.int32)
    return tf.concat([first, tf.minimum(last, tf.stack([height, width])) - first], axis=0)
