"""From resized records to batches: lay out the targets, pad, normalise.

The images of a batch share one canvas, the `(height, width)` that all of them are padded to at the bottom and the
right. They stay uint8 until then, which takes a quarter of the memory. Targets share one number of rows; a padding row
has label -1 and box 0.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfdetr_keras.data import transforms
from tfdetr_keras.data.canvas import canvas_painter
from tfdetr_keras.data.checks import refuse_empty
from tfdetr_keras.data.multiscale import MultiScale, check_sides, rescaled
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import Record, name_of
from tfdetr_keras.data.sizes import smallest_bucket
from tfdetr_keras.preprocessing import Preprocessing

Batch = tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]
Canvas = tuple[int, int]
BoxReference = Literal["image", "padded"]

# Batches made at once, and kept ready. More would take more memory, and a model seldom takes one in less than 10 ms.
BATCHES_AT_ONCE = 2


def encode(record: Record) -> Batch:
    """Turn one resized record into the unpadded inputs and targets of one image.

    Args:
        record: see `tfdetr_keras.data.record`.

    Returns:
        `{"levels": (height, width, 3) uint8, "size": (2,) int32, height and width}` and
        `{"labels": (objects,) int32, "boxes": (objects, 4) float32 cxcywh relative to the image, "image_id": () int64,
        "orig_size": (2,) int32}` and, if the record has them, `"masks": (objects, height, width) bool`. Crowds are left
        out.
    """
    size = tf.shape(record["image"])[:2]
    single = transforms.select(record, ~record["iscrowd"])
    inputs = {"levels": record["image"], "size": size}
    targets = {
        "labels": single["labels"],
        "boxes": transforms.relative_boxes(single["boxes"], size),
        "image_id": record["image_id"],
        "orig_size": record["orig_size"],
    }
    return inputs, targets | ({"masks": single["masks"]} if "masks" in single else {})


def pad_batches(
    examples: tf.data.Dataset,
    batch_size: int,
    pad_to: Canvas | Sequence[Canvas] | None = None,
    max_boxes: int | None = None,
    drop_remainder: bool = False,
    box_reference: BoxReference = "image",
    may_be_empty: bool = True,
    preprocessing: Preprocessing | None = None,
    scales: MultiScale | None = None,
) -> tf.data.Dataset:
    """Pad examples (see `encode`) to a common shape and batch them; see `prepare` for the arguments.

    Of the preprocessing, the levels are used, and the number that a canvas's sides are multiples of.

    Further target keys are padded to the batch's maximum, with -1 where the key ends in "labels" and 0 elsewhere. By
    `scales`, batches are then resized, see `tfdetr_keras.data.multiscale`.
    Some batches are made ahead. Unless `may_be_empty`, iterating raises an error if a pass has only incomplete batches.
    """
    preprocessing = Preprocessing.of(preprocessing)
    canvases = _canvases(pad_to, preprocessing)
    if canvases or max_boxes is not None:
        examples = _checked_to_fit(examples, canvases, max_boxes)
    if not canvases and preprocessing.multiple_of > 1:
        examples = examples.map(lambda inputs, targets: _rounded_up(inputs, targets, preprocessing.multiple_of))
    if len(canvases) < 2:
        height, width = canvases[0] if canvases else (None, None)
        batches = _padded(examples, batch_size, height, width, max_boxes, drop_remainder)
    else:
        table = tf.constant(canvases, tf.int64)

        def padded(place: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
            return _padded(window, batch_size, table[place, 0], table[place, 1], max_boxes, drop_remainder)

        batches = examples.group_by_window(
            lambda inputs, targets: smallest_bucket(inputs["size"], canvases), padded, batch_size
        )
    if not may_be_empty and not _must_fill_one(examples, batch_size, canvases):
        batches = refuse_empty(batches, _no_batch(batch_size, canvases))
    paint = canvas_painter(preprocessing)

    def finished(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor]) -> Batch:
        if max_boxes is None:
            targets = _at_least_one_row(targets)
        if box_reference == "padded":
            targets = targets | {"boxes": _relative_to_canvas(targets["boxes"], **inputs)}
        pixel_values, pixel_mask = paint(inputs["levels"], inputs["size"])
        return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}, targets

    batches = batches.map(finished, num_parallel_calls=BATCHES_AT_ONCE, deterministic=True)
    if scales is not None:
        check_sides(canvases, scales)
        batches = rescaled(batches, scales, BATCHES_AT_ONCE)
    return batches.prefetch(BATCHES_AT_ONCE).with_options(_without_autotuning())


def _must_fill_one(examples: tf.data.Dataset, batch_size: int, canvases: Sequence[Canvas]) -> bool:
    """Return whether there are enough examples to fill a batch, however they are spread over the canvases."""
    count = int(examples.cardinality())
    return count == tf.data.INFINITE_CARDINALITY or count > (batch_size - 1) * max(1, len(canvases))


def _no_batch(batch_size: int, canvases: Sequence[Canvas]) -> str:
    several = len(canvases) > 1
    return (
        f"no training batch of {batch_size} images can be filled: fewer than {batch_size} images can be read"
        f"{f' for any of the {len(canvases)} canvases of pad_to' if several else ''}, and training leaves out "
        f"incomplete batches: lower batch_size, {'give fewer canvases, ' if several else ''}or set repeat=True in "
        "td.data.prepare, which fills them up in the next epoch"
    )


def _without_autotuning() -> tf.data.Options:
    """Return options that switch off autotuning.

    With it, buffers grow as long as there is memory, and an iterator that ends may wait for the tuner to wake up.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _canvases(pad_to: Canvas | Sequence[Canvas] | None, preprocessing: Preprocessing) -> list[Canvas]:
    """Return the canvases as a list: empty for None, else of one or several."""
    if pad_to is None and preprocessing.rule == "stretch":
        pad_to = preprocessing.size  # that of every image, so that shapes are known
    sides = [] if pad_to is None else np.reshape(pad_to, (-1, 2)).tolist()
    return [(preprocessing.rounded_up(height), preprocessing.rounded_up(width)) for height, width in sides]


def _rounded_up(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor], multiple: int) -> Batch:
    """Pad an example so that its sides are multiples; the largest sides in a batch then are, too."""
    height, width = tf.unstack(-inputs["size"] % multiple)
    levels = tf.pad(inputs["levels"], [[0, height], [0, width], [0, 0]])
    if "masks" in targets:
        targets = targets | {"masks": tf.pad(targets["masks"], [[0, 0], [0, height], [0, width]])}
    return inputs | {"levels": levels}, targets


def _checked_to_fit(examples: tf.data.Dataset, canvases: Sequence[Canvas], max_boxes: int | None) -> tf.data.Dataset:
    """Raise while iterating if an image is larger than every canvas or has more objects than there are rows."""

    def refuse(image_id: np.int64, size: np.ndarray, objects: np.int32, fits_canvas: np.bool_) -> np.int32:
        name = name_of(examples, int(image_id))
        if not fits_canvas:
            allowed = ", ".join(f"{height} x {width}" for height, width in canvases)
            raise ValueError(
                f"{name} is {size[0]} x {size[1]} after the resize, larger than pad_to = {allowed}: "
                "make pad_to larger or size smaller"
            )
        raise ValueError(
            f"{name} has {objects} objects, more than max_boxes = {max_boxes}: leave max_boxes out, or raise it to the "
            "most objects in an image, which td.data.summarize and tfdetr inspect-data count"
        )

    @tf.autograph.experimental.do_not_convert
    def check(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor]) -> Batch:
        size, objects = inputs["size"], tf.size(targets["labels"])
        fits_canvas = fits_rows = tf.constant(True)
        if canvases:
            fits_canvas = tf.reduce_any(tf.reduce_all(size <= tf.constant(canvases), axis=1))
        if max_boxes is not None:
            fits_rows = objects <= max_boxes
        checked = tf.cond(
            fits_canvas & fits_rows,
            lambda: tf.constant(0),
            lambda: numpy_call(refuse, [targets["image_id"], size, objects, fits_canvas], tf.int32),
        )
        with tf.control_dependencies([checked]):
            return tf.nest.map_structure(tf.identity, (inputs, targets))

    return examples.map(check)


def _padded(
    examples: tf.data.Dataset, batch_size: int, height: Any, width: Any, max_boxes: int | None, drop_remainder: bool
) -> tf.data.Dataset:
    """Return padded batches of one canvas; a side may be None, for that of the largest image, or a tensor."""
    input_spec, target_spec = examples.element_spec
    shapes: dict[str, Any] = {key: spec.shape for key, spec in target_spec.items()}
    shapes |= {"labels": (max_boxes,), "boxes": (max_boxes, 4)}
    if "masks" in shapes:
        shapes["masks"] = _shape(max_boxes, height, width)
    values = {key: tf.constant(-1, spec.dtype) if key.endswith("labels") else None for key, spec in target_spec.items()}
    return examples.padded_batch(
        batch_size,
        padded_shapes=({"levels": _shape(height, width, 3), "size": (2,)}, shapes),
        padding_values=(dict.fromkeys(input_spec), values),
        drop_remainder=drop_remainder,
    )


def _shape(*sides: Any) -> Any:
    """Return a shape for `padded_batch`, which takes tensors only as one tensor; -1 stands for the batch's maximum."""
    if any(isinstance(side, tf.Tensor) for side in sides):
        return tf.stack([tf.cast(-1 if side is None else side, tf.int64) for side in sides])
    return sides


def _at_least_one_row(targets: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Add a padding row to a batch without objects: M = 0 would be a corner case for all later code."""
    missing = tf.maximum(0, 1 - tf.shape(targets["labels"])[1])
    rows = [[0, 0], [0, missing]]
    padded = {
        "labels": tf.pad(targets["labels"], rows, constant_values=-1),
        "boxes": tf.pad(targets["boxes"], [*rows, [0, 0]]),
    }
    if "masks" in targets:
        padded["masks"] = tf.pad(targets["masks"], [*rows, [0, 0], [0, 0]], constant_values=False)
    return targets | padded


def _relative_to_canvas(boxes: tf.Tensor, levels: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Rescale boxes from their image to the padded canvas."""
    share = tf.cast(size, tf.float32) / tf.cast(tf.shape(levels)[1:3], tf.float32)
    return boxes * tf.gather(share, [1, 0, 1, 0], axis=1)[:, None, :]
