"""Checks that run inside a `tf.data` pipeline, and the translation of TensorFlow's errors back to readable ones.

Targets are computed inside the graph, where Python cannot look at them beforehand; so they are checked batch by batch,
just before the model sees them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import file_of
from tfdetr_keras.losses.targets import dense_targets, refuse_padding, validate_targets

# What TensorFlow makes of a ValueError raised in a `numpy_function`, and of a failed `tf.debugging.Assert`.
_MESSAGES = (
    re.compile(r"ValueError: (.*?)\nTraceback \(most recent call last\)", re.DOTALL),
    re.compile(r"assertion failed: \[(.*?)\](?:\s*\[\[|\s*\[Op:|\s*$)", re.DOTALL),
)


def checked_dataset(dataset: tf.data.Dataset, num_classes: int, without_padding: str | None = None) -> tf.data.Dataset:
    """Wrap a dataset of batches so that a bad batch stops the iteration with an error that says what is wrong.

    The targets' `labels` and `boxes` are checked (see `tfdetr_keras.losses.targets`), and that `pixel_values` and
    `pixel_mask` agree in batch size, height and width. Elements pass unchanged, with their static shapes, except
    ragged targets, which are padded. Missing parts (bare pixels, no targets, others) are not checked.

    Args:
        dataset: of inputs, (inputs, targets) or (inputs, targets, sample_weight).
        num_classes: labels must lie in 0 .. num_classes - 1, or be -1 in padding rows.
        without_padding: what people call the model, if it knows no padding, which is then refused.

    Returns:
        A dataset with the same elements.

    Raises:
        tf.errors.InvalidArgumentError: while iterating; inside `readable_errors` a `ValueError`.
    """

    def check_targets(labels: np.ndarray, boxes: np.ndarray, image_ids: np.ndarray | None = None) -> np.int32:
        ids = None if image_ids is None else image_ids.tolist()
        validate_targets(labels, boxes, num_classes, ids, lambda image_id: file_of(dataset, image_id))
        return np.int32(0)

    def check_padding(pixel_mask: np.ndarray) -> np.int32:
        refuse_padding(pixel_mask, str(without_padding))
        return np.int32(0)

    @tf.autograph.experimental.do_not_convert
    def check(*element: Any) -> Any:
        element = (element[0], *(dense_targets(part) for part in element[1:2]), *element[2:])
        inputs, targets = element[0], element[1] if len(element) > 1 else None
        checks = []
        if isinstance(inputs, dict) and {"pixel_values", "pixel_mask"} <= set(inputs):
            shapes = [tf.shape(inputs["pixel_values"]), tf.shape(inputs["pixel_mask"])]
            checks.append(numpy_call(_check_shapes, shapes, tf.int32))
            if without_padding is not None:
                checks.append(numpy_call(check_padding, [inputs["pixel_mask"]], tf.int32))
        if isinstance(targets, dict) and {"labels", "boxes"} <= set(targets):
            tensors = [targets["labels"], targets["boxes"]]
            tensors += [targets["image_id"]] if "image_id" in targets else []
            checks.append(numpy_call(check_targets, tensors, tf.int32))
        with tf.control_dependencies(checks):
            element = tf.nest.map_structure(tf.identity, element)
        return element if len(element) > 1 else element[0]

    return dataset.map(check).prefetch(1)  # a check takes less than a millisecond, a batch much memory


def refuse_empty(dataset: tf.data.Dataset, complaint: str) -> tf.data.Dataset:
    """Return the same elements, but raise an error at the end of a pass that had none.

    Only the end of the pass can tell: it becomes an element of its own, which is not passed on.

    Args:
        dataset: of tensors; its length may be unknown, and the length of the result is unknown too.
        complaint: message of the error.

    Raises:
        tf.errors.InvalidArgumentError: while iterating; inside `readable_errors` a `ValueError`.
    """
    spec = dataset.element_spec

    def end(_: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda part: tf.zeros([0] * (part.shape.rank or 0), part.dtype), spec)

    @tf.autograph.experimental.do_not_convert
    def goes_on(place: tf.Tensor, marked: Any) -> tf.Tensor:
        at_end = marked[1]
        with tf.control_dependencies([tf.debugging.Assert(~at_end | (place > 0), [complaint])]):
            return ~at_end

    def element(_: tf.Tensor, marked: Any) -> Any:
        # The end has other sizes, which took the static ones away.
        return tf.nest.map_structure(lambda part, its: tf.ensure_shape(part, its.shape), marked[0], spec)

    ending = _marked(dataset, False).concatenate(_marked(tf.data.Dataset.range(1).map(end), True))
    return ending.enumerate().take_while(goes_on).map(element)


def _marked(dataset: tf.data.Dataset, mark: bool) -> tf.data.Dataset:
    return tf.data.Dataset.zip(dataset, tf.data.Dataset.from_tensors(mark).repeat())


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn a data error that comes out of TensorFlow back into the `ValueError` that it was.

    Only the message is kept: the traceback is that of a node of the graph. Other errors pass unchanged.

    Raises:
        ValueError: if a check of the data pipeline failed.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = [match.group(1) for pattern in _MESSAGES if (match := pattern.search(str(error)))]
        if not found:
            raise
        raise ValueError(found[0].strip()) from None


def _check_shapes(values: np.ndarray, mask: np.ndarray) -> np.int32:
    if values[:3].tolist() != mask.tolist():
        raise ValueError(
            f"pixel_values is (batch, height, width, channels) = {tuple(values.tolist())} but pixel_mask "
            f"(batch, height, width) = {tuple(mask.tolist())}: the mask must have the images' batch, height and width"
        )
    return np.int32(0)
