"""Parser of one example of the TensorFlow Object Detection API; its errors name the feature, file and record.

It is written in Python rather than with `tf.io.parse_single_example`, whose errors name neither and end the whole pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfdetr_keras.data.numpy_calls import numpy_call

ELEMENT_SPEC = {
    "image": tf.TensorSpec((), tf.string),
    "size": tf.TensorSpec((2,), tf.int64),
    "boxes": tf.TensorSpec((None, None), tf.float32),
    "labels": tf.TensorSpec((None,), tf.int64),
    "image_id": tf.TensorSpec((), tf.int64),
    "file_name": tf.TensorSpec((), tf.string),
    "iscrowd": tf.TensorSpec((None,), tf.int64),
    "area": tf.TensorSpec((None,), tf.float32),
    "fault": tf.TensorSpec((), tf.string),
}
_SIDES = ("ymin", "xmin", "ymax", "xmax")
_KINDS = {"bytes_list": "texts", "float_list": "numbers with fractions (float)", "int64_list": "whole numbers (int64)"}
_REAL, _WHOLE, _TEXT = ("float_list", "int64_list"), ("int64_list",), ("bytes_list",)
_NUMBER = re.compile(rb"-?[0-9]{1,18}")


def parse_example(
    place: Any, file: bytes, row: Any, content: bytes, places: Mapping[int, int], by_name: Mapping[bytes, int]
) -> dict[str, Any]:
    """Read the fields of an example, as `tfdetr_keras.data.tensors.records_of` takes them.

    Args:
        place: of the record in the set.
        file: that it is in.
        row: its number in that file, from 0 on.
        content: the example, serialised.
        places: id of a class -> label.
        by_name: name of a class -> label.

    Returns:
        The arrays of `ELEMENT_SPEC`; if something is wrong, only `fault` has content.
    """
    try:
        return _parsed(int(place), content, places, by_name)
    except ValueError as error:
        fault = f"{error} (record {row} of {file.decode('utf-8', 'backslashreplace')})"
        boxes, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        values = (b"", np.zeros(2, np.int64), boxes, none, np.int64(-1 - place), b"", none, none.astype(np.float32))
        return dict(zip(ELEMENT_SPEC, (*values, fault.encode()), strict=True))


def image_id_of(place: tf.Tensor, file: tf.Tensor, row: tf.Tensor, example: tf.Tensor) -> tf.Tensor:
    """Read only the image id, in the graph."""

    def image_id(place: np.ndarray, example: bytes) -> np.int64:
        try:
            return _image_id(_single(_Features(example), "image/source_id", b""), int(place))
        except ValueError:  # told when the record is read
            return np.int64(-1 - place)

    return tf.ensure_shape(numpy_call(image_id, [place, example], tf.int64), ())


class _Features:
    """The features of an example: call it with a name to get the values.

    Raises:
        ValueError: not an example, or a feature of another type; the complaint continues from the record's name.
    """

    def __init__(self, content: bytes) -> None:
        try:
            self._features = tf.train.Example.FromString(content).features.feature
        except DecodeError:
            raise ValueError("is not a tf.train.Example") from None

    def __call__(self, key: str, kinds: Sequence[str]) -> Sequence[Any]:
        """Return the values of a feature; none if it is missing. Raise if it has another kind."""
        if key not in self._features:  # which looking it up would make
            return []
        feature = self._features[key]
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        if len(values) and kind not in kinds:
            raise ValueError(f"has {key} as {_KINDS[kind]}, not as {' or '.join(_KINDS[one] for one in kinds)}")
        return values


def _single(features: _Features, key: str, default: Any) -> Any:
    values = features(key, _TEXT if isinstance(default, bytes) else _WHOLE)
    if len(values) > 1:
        raise ValueError(f"has {len(values)} values of {key}, not one")
    return values[0] if len(values) else default


def _image_id(source_id: bytes, place: int) -> np.int64:
    """Return the id if it is a number; otherwise a number below 0, which no given id from 0 on is."""
    return np.int64(int(source_id) if _NUMBER.fullmatch(source_id) else -1 - place)


def _parsed(place: int, content: bytes, places: Mapping[int, int], by_name: Mapping[bytes, int]) -> dict[str, Any]:
    features = _Features(content)
    sides = [np.array(features(f"image/object/bbox/{side}", _REAL), np.float32) for side in _SIDES]
    # Where the sides differ in number, a box with one too many, for `records_of` to refuse.
    alike = len({len(side) for side in sides}) == 1
    boxes = np.stack(sides, axis=-1) if alike else np.zeros((1, len(sides) + 1), np.float32)
    numbers = features("image/object/class/label", _WHOLE)
    if len(numbers):
        labels = [places.get(number, -1) for number in numbers]
    else:
        labels = [by_name.get(name, -1) for name in features("image/object/class/text", _TEXT)]

    def column(key: str, kinds: Sequence[str], default: float) -> np.ndarray:
        values = features(key, kinds)
        if len(values) not in (0, len(labels)):
            raise ValueError(f"has {len(values)} values of {key} for {len(labels)} objects")
        return np.array(values if len(values) else [default] * len(labels))

    groups = [column(f"image/object/{key}", _WHOLE, 0) for key in ("is_crowd", "group_of")]
    return {
        "image": _single(features, "image/encoded", b""),
        "size": np.array([_single(features, f"image/{side}", 0) for side in ("height", "width")], np.int64),
        "boxes": boxes,
        "labels": np.array(labels, np.int64),
        "image_id": _image_id(_single(features, "image/source_id", b""), place),
        "file_name": _single(features, "image/filename", b""),
        "iscrowd": ((groups[0] != 0) | (groups[1] != 0)).astype(np.int64),
        # −1: not known, left to `records_of`, which knows the image's size.
        "area": column("image/object/area", _REAL, -1).astype(np.float32),
        "fault": b"",
    }
