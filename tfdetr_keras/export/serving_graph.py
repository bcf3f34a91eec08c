"""The model with its pre- and post-processing as one TensorFlow graph: raw images in, detections in pixels out.

Other runtimes do not support TensorFlow's resizes. For those, resizing is two products with matrices of interpolation
weights, which are computed in the graph: plain arithmetic, in which padding to a canvas costs nothing, since its rows
of the matrices are zero. The weights are those of the resize of training, bilinear or bicubic; of 100,000 values about
one falls to the other side of a half.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdetr_keras.data.canvas import factor_and_shift
from tfdetr_keras.data.sizes import Resize, fitted, target_size
from tfdetr_keras.data.transforms import resized_levels, whole_levels
from tfdetr_keras.export.file_decoding import decoded
from tfdetr_keras.matching.classification import Classification, classification_named
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.preprocessing import Interpolation, Preprocessing


class ServingGraph:
    """The computation of an exported model.

    Args:
        model: the detector.
        preprocessing: how images are prepared; by default the model's own.
        portable: whether only plain arithmetic is used, without float64. An image that `longest_edge` limits may then
            be longer by one pixel than in training.
    """

    def __init__(self, model: Detector, preprocessing: Preprocessing | None = None, portable: bool = False) -> None:
        self.model, self.portable = model, portable
        self.preprocessing = preprocessing or model.preprocessing
        self.resize, self.pad_to = Resize.of(self.preprocessing), self.preprocessing.pad_to
        self._factor, self._shift = factor_and_shift(self.preprocessing)
        # Height and width of every canvas, where all are alike.
        self._fixed = self.preprocessing.largest if self.preprocessing.rule == "stretch" else self.pad_to

    def of_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect in images of one size.

        Args:
            images: `(batch, height, width, 3)` uint8, RGB.

        Returns:
            See `detections`.
        """
        old = tf.shape(images)[1:3]
        new = self._target(old)
        has_margin = self.pad_to is not None or self.preprocessing.multiple_of > 1
        canvas = self._canvas(new)
        inputs = {"pixel_values": self._resized(images, new, canvas) * self._factor - self._shift}
        if has_margin:
            mask = tf.cast(inside(tf.broadcast_to(new, (tf.shape(images)[0], 2)), canvas), tf.float32)
            inputs = {"pixel_values": inputs["pixel_values"] * mask[..., None], "pixel_mask": mask}
        outputs = self.model(inputs, training=False)
        count = tf.shape(images)[0]
        extents = tf.broadcast_to(tf.cast(new, tf.float32) / tf.cast(canvas, tf.float32), (count, 2))
        return self._detections(outputs, tf.broadcast_to(old, (count, 2)), extents)

    def of_files(self, files: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect in image files, each of its own size.

        Args:
            files: `(batch,)` string, the contents of JPEG, PNG, WebP, GIF or BMP files, see `decoded`. They are turned
                upright as a camera's rotation note (EXIF) says, and boxes are for the upright image.

        Returns:
            As `of_pixels`.
        """
        count = tf.shape(files)[0]
        images = tf.TensorArray(tf.float32, count, element_shape=(None, None, 3), infer_shape=False)
        old, new = (tf.TensorArray(tf.int32, count, element_shape=(2,)) for _ in range(2))

        def read(index: tf.Tensor, images: Any, old: Any, new: Any) -> tuple[Any, ...]:
            image = decoded(files[index])
            size = tf.shape(image)[:2]
            target = self._target(size)
            pixels = self._resized(image[None], target, target)[0] * self._factor - self._shift
            return index + 1, images.write(index, pixels), old.write(index, size), new.write(index, target)

        loop = (tf.constant(0), images, old, new)
        _, images, old, new = tf.while_loop(lambda index, *_: index < count, read, loop)
        sizes = new.stack()
        canvas = self._canvas(tf.reduce_max(sizes, axis=0))

        def padded(index: tf.Tensor) -> tf.Tensor:
            pixels, margin = images.read(index), canvas - sizes[index]
            return tf.pad(pixels, [[0, margin[0]], [0, margin[1]], [0, 0]])

        pixels = tf.map_fn(padded, tf.range(count), fn_output_signature=tf.TensorSpec((None, None, 3), tf.float32))
        if self._fixed is not None:
            pixels = tf.ensure_shape(pixels, (None, *self._fixed, 3))
        mask = tf.cast(inside(sizes, canvas), tf.int32)
        outputs = self.model({"pixel_values": pixels, "pixel_mask": mask}, training=False)
        return self._detections(outputs, old.stack(), tf.cast(sizes, tf.float32) / tf.cast(canvas, tf.float32))

    def _detections(self, outputs: dict[str, tf.Tensor], sizes: tf.Tensor, extents: tf.Tensor) -> dict[str, tf.Tensor]:
        return detections(outputs, sizes, extents, self.model.config.classification)

    def _target(self, size: tf.Tensor) -> tf.Tensor:
        """Return the height and width after the resize, `(2,)` int32."""
        if not self.portable:
            return tf.stack(target_size(size[0], size[1], self.resize))
        return tf.stack(fitted(*whole_target_size(size[0], size[1], self.resize), self.resize.canvas))

    def _canvas(self, size: tf.Tensor) -> Any:
        """Return the height and width of the canvas for a batch whose largest image is of `size`."""
        if self._fixed is not None:
            return self._fixed
        return size if self.preprocessing.multiple_of == 1 else size + -size % self.preprocessing.multiple_of

    def _resized(self, images: tf.Tensor, size: tf.Tensor, canvas: Any) -> tf.Tensor:
        """Resize images; see `resized_by_matrices`."""
        interpolation, antialias = self.resize.interpolation, self.resize.antialias
        if self.portable:
            levels = resized_by_matrices(images, size, canvas, interpolation, antialias)
        else:
            levels = whole_levels(resized_levels(images, size, interpolation, antialias))
            if canvas is not size:
                margin = [[0, canvas[axis] - size[axis]] for axis in (0, 1)]
                levels = tf.pad(levels, [[0, 0], *margin, [0, 0]])
        return tf.ensure_shape(levels, (None, *(self._fixed or (None, None)), 3)) if canvas is not size else levels


def whole_target_size(height: tf.Tensor, width: tf.Tensor, resize: Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute `target_size` in int32, by all rules but facebookresearch's, and without float64's rounding."""
    shorter, longer = tf.minimum(height, width), tf.maximum(height, width)
    edge, limit = resize.shortest_edge, resize.longest_edge
    if resize.rule == "stretch":
        return tf.fill(tf.shape(height), edge), tf.fill(tf.shape(width), limit)
    if resize.rule == "fit":
        is_high = height * limit >= width * edge  # so that the height limits it
        new_height = tf.where(is_high, edge, height * limit // width)
        new_width = tf.where(is_high, width * edge // height, limit)
        return tf.maximum(new_height, 1), tf.maximum(new_width, 1)
    whole, rest = limit * shorter // longer, limit * shorter % longer
    is_up = tf.logical_or(2 * rest > longer, tf.logical_and(tf.equal(2 * rest, longer), tf.equal(whole % 2, 1)))
    rounded = whole + tf.cast(is_up, tf.int32)
    limited = longer * edge > limit * shorter
    if resize.rule == "table":
        short, long = rounded, tf.fill(tf.shape(longer), limit)
    else:
        short = tf.where(limited, rounded, edge)
        long = tf.where(limited, limit, edge * longer // shorter)
        long = tf.where(tf.equal(shorter, short), longer, long)
        long = tf.minimum(long, limit) if resize.strict else long
    short, long = tf.maximum(short, 1), tf.maximum(long, 1)
    portrait = width < height
    return tf.where(portrait, long, short), tf.where(portrait, short, long)


def resized_by_matrices(
    images: tf.Tensor,
    size: tf.Tensor,
    canvas: Any,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> tf.Tensor:
    """Resize images to the top left of a canvas.

    Args:
        images: `(batch, height, width, 3)` uint8.
        size: `(2,)` int32, new height and width of the images.
        canvas: (height, width) at least as large.
        interpolation: "bilinear" or "bicubic".
        antialias: whether images that become smaller are smoothed.

    Returns:
        `(batch, canvas height, canvas width, 3)` float32, whole levels 0 … 255; 0 in the padding.
    """
    old = tf.shape(images)[1:3]
    rows, columns = (
        interpolation_weights(old[axis], size[axis], canvas[axis], interpolation, antialias) for axis in (0, 1)
    )
    batch, height = tf.shape(images)[0], old[0]
    levels = tf.cast(images, tf.float32)
    if interpolation == "bicubic":  # across first, to whole levels, as `resized_levels`
        levels = tf.linalg.matmul(columns[None], tf.reshape(levels, (batch * height, old[1], 3)))
        levels = tf.reshape(whole_levels(levels), (batch, height, canvas[1] * 3))
        levels = tf.linalg.matmul(rows[None], levels)
    else:
        levels = tf.reshape(levels, (batch, height, old[1] * 3))
        levels = tf.reshape(tf.linalg.matmul(rows[None], levels), (batch * canvas[0], old[1], 3))
        levels = tf.linalg.matmul(columns[None], levels)
    return whole_levels(tf.reshape(levels, (batch, canvas[0], canvas[1], 3)))


def interpolation_weights(
    old: Any, new: Any, rows: Any, interpolation: Interpolation = "bilinear", antialias: bool = True
) -> tf.Tensor:
    """Return the weights of an axis's old pixels in each new one, `(rows, old)` float32; rows from `new` on are 0.

    The kernel is a triangle, or Keys' cubic of −1/2, around the new pixel's centre, as wide as a pixel of the coarser
    of the two grids (without smoothing, of the old one), and cut off at the image's border. The order of operations is
    that of TensorFlow's own resizes, which differ between enlarging and shrinking: one rounding more or less moves a
    level where a value lies halfway between two.
    """
    old_size, new_size = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
    step = tf.where(new >= old, old_size / new_size, 1.0 / (new_size / old_size))
    places = tf.range(rows)
    centers = (tf.cast(places, tf.float32) + 0.5) * step
    distances = tf.cast(tf.range(old), tf.float32)[None] + 0.5 - centers[:, None]
    scaled = tf.abs(distances * (1.0 / tf.maximum(step, 1.0)) if antialias else distances)
    if interpolation == "bicubic":
        inner = (1.5 * scaled - 2.5) * scaled * scaled + 1.0
        outer = ((-0.5 * scaled + 2.5) * scaled - 4.0) * scaled + 2.0
        weights = tf.where(scaled < 1.0, inner, tf.where(scaled < 2.0, outer, tf.zeros_like(scaled)))
    else:
        weights = tf.maximum(0.0, 1.0 - scaled)
    weights = weights * (1.0 / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1e-6))
    return weights * tf.cast(places < new, tf.float32)[:, None]


def inside(sizes: tf.Tensor, canvas: Any) -> tf.Tensor:
    """Return where images of `(batch, 2)` height and width lie on a canvas, `(batch, height, width)` bool."""
    rows, columns = tf.range(canvas[0]) < sizes[:, :1], tf.range(canvas[1]) < sizes[:, 1:]
    return tf.logical_and(rows[:, :, None], columns[:, None])


def detections(
    outputs: dict[str, tf.Tensor],
    sizes: tf.Tensor,
    extents: tf.Tensor,
    classification: str | Classification = "softmax",
) -> dict[str, tf.Tensor]:
    """Compute `tfdetr_keras.post_process` in the graph: clipped to the image, without threshold, highest score first.

    Args:
        outputs: of the model.
        sizes: `(batch, 2)` int32, height and width of each image, pixels.
        extents: `(batch, 2)` float32, the fractions of the canvas' height and width that the image takes.
        classification: of the model.

    Returns:
        `{"scores": (batch, n) float32, "labels": (batch, n) int32, "boxes": (batch, n, 4) float32 xyxy in pixels of the
        images}`: all n queries, or the 100 likeliest pairs of query and class with `"focal"`. A model with masks
        returns also `"masks": (batch, n, h, w)`, float32 probabilities over the canvas, and `"extents"`.
    """
    scores, labels, order = classification_named(classification).ranked(outputs["logits"])
    centers, sides = outputs["pred_boxes"][..., :2], outputs["pred_boxes"][..., 2:]
    scale = tf.cast(tf.stack([sizes[:, 1], sizes[:, 0]] * 2, axis=-1), tf.float32)
    boxes = tf.concat([centers - sides / 2, centers + sides / 2], axis=-1) * scale[:, None]
    boxes = tf.minimum(tf.maximum(boxes, 0.0), scale[:, None])
    found = {"scores": scores, "labels": labels, "boxes": tf.gather(boxes, order, batch_dims=1)}
    if "pred_masks" in outputs:
        masks = tf.sigmoid(tf.gather(outputs["pred_masks"], order, batch_dims=1))
        found |= {"masks": masks, "extents": extents}
    return found
