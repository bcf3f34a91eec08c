"""Reader of detection sets of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.images import stored_size
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.tensors import Fields, from_dataset, part_of
from tfdetr_keras.data.validation import OnError

# TensorFlow Datasets' names for object detection.
FIELDS = {"image": "image", "boxes": "objects/bbox", "labels": "objects/label"}
OPTIONAL_FIELDS = {"image_id": "image/id", "iscrowd": "objects/is_crowd", "area": "objects/area"}
FILE_NAME = "image/filename"


def load_tfds(
    source: Any,
    split: str = "train",
    class_names: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Read a detection set of TensorFlow Datasets.

    Args:
        source: a builder whose data is prepared, or a dataset (not batched) of
            `{"image": …, "objects": {"bbox": …, "label": …}}` with boxes (ymin, xmin, ymax, xmax) relative to the
            image. If present, `"image/id"`, if it is a number, the objects' `"is_crowd"` and `"area"`, and
            `"image/filename"`, for messages, are used. A builder's images are decoded here, in parallel; photographs
            stay as they are stored, as they do where TensorFlow Datasets decodes them.
        split: of the builder, also in parts ("train[:10%]").
        class_names: name of each label; by default the builder's. A dataset does not know them.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        TypeError: neither builder nor dataset.
        ValueError: a builder without data or without that split, elements without `objects` or these without boxes or
            labels, no class names; while iterating, unless skipped: as `from_dataset`.
    """
    if isinstance(source, tf.data.Dataset):
        dataset, remedy = source, "give class_names, or the builder instead"
    elif not hasattr(source, "as_dataset"):
        raise TypeError(f"source must be a builder (tfds.builder(…)) or a tf.data.Dataset, not {source!r:.100}")
    else:
        dataset, remedy = _built(source, split), "give class_names"
        class_names = _names_of(source) if class_names is None else class_names
    spec = dataset.element_spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("objects"), Mapping):
        found = sorted(spec) if isinstance(spec, Mapping) else spec
        raise ValueError(f"this is not a detection set: its elements have no 'objects', only {found}")
    if not {"bbox", "label"} <= set(spec["objects"]):
        raise ValueError(
            f"'objects' must have 'bbox' and 'label', but has {sorted(spec['objects'])}: to tell where boxes and "
            "labels are, use from_dataset"
        )
    if class_names is None:
        raise ValueError(f"the set does not state its class names: {remedy}")
    fields: Fields = FIELDS | {
        key: place for key, place in OPTIONAL_FIELDS.items() if _dtype(spec, place) not in (None, tf.string)
    }
    if _dtype(spec, FILE_NAME) == tf.string:
        fields = {**fields, "file_name": FILE_NAME}
    if getattr(spec.get("image"), "dtype", None) == tf.string:
        fields = {**fields, "size": _stored_size}
    return from_dataset(dataset, fields, class_names, "yxyx", relative=True, on_error=on_error)


def _built(builder: Any, split: str) -> tf.data.Dataset:
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    try:
        return builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"the builder {builder.info.name} has no split {split!r}, only {sorted(builder.info.splits or {})}: "
            "is its data prepared (download_and_prepare)?"
        ) from error


def _names_of(builder: Any) -> Sequence[str] | None:
    features = builder.info.features
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    return getattr(objects["label"], "names", None) if "label" in objects else None


def _dtype(spec: Any, place: str) -> tf.DType | None:
    """Return the dtype of a part of the elements; None where they have no such part."""
    try:
        return part_of(spec, place).dtype
    except ValueError:
        return None


def _stored_size(element: Mapping[str, Any]) -> tf.Tensor:
    """Return the size that keeps `from_dataset` from turning an image; (0, 0) if it is not an image, to be refused."""

    def size(content: bytes) -> np.ndarray:
        return np.array(stored_size(content) or (0, 0), np.int64)

    return tf.ensure_shape(numpy_call(size, [element["image"]], tf.int64), (2,))
